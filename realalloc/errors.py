"""The errors that reach users, and the one place where status codes of the kernels become them.

``OutOfMemory``     a request could not be served; says what was asked, what is free and which knob to turn
``InvalidFree``     a buffer that is not a live lease of this arena or pool
``ArenaClosed``     an operation on a closed arena
``CorruptionError`` a walker found a broken invariant, and names it
A wait that ran out is ``TimeoutError``; a bad size, order or alignment ``ValueError``; a wrong type ``TypeError``;
something still in use ``BufferError``. After any of these nothing is lost.
"""

from __future__ import annotations

from typing import Final


class OutOfMemory(MemoryError):
    """No memory for this request."""


class InvalidFree(ValueError):
    """The buffer is not this arena's, or was already freed."""


class ArenaClosed(ValueError):
    """The arena is closed."""


class CorruptionError(RuntimeError):
    """Metadata contradict each other."""


# Texts for the BAD_* codes of realalloc.mm.layout, which may not be imported here: it needs numba.
BROKEN_INVARIANTS: Final[dict[int, str]] = {
    -1001: "buddy: a free list is not a list of aligned free blocks of its order",
    -1002: "buddy: pages on the free lists != free pages of the zone",
    -1003: "buddy: two free buddies are not merged",
    -1004: "buddy: start + listed free + allocated pages != frontier",
    -1005: "buddy: a struct page contradicts the block it is in",
    -1006: "buddy: resident bits != committed pages",
    -1007: "buddy: unmovable pages of a page block are miscounted, or a free block is on the list of another type",
    -1011: "slab: the number of slabs or objects of a cache is wrong",
    -1012: "slab: a slab is on the wrong list",
    -1013: "slab: free bits + inuse != objects of a slab",
    -1014: "slab: allocs - frees != objects in use of a cache, or a slab has no cache",
    -1021: "vmalloc: areas do not tile the window",
    -1022: "vmalloc: the blocks of an area do not add up to it",
    -1023: "vmalloc: pages of live or lazy areas are miscounted",
    -1031: "mempool: curr_nr + out + missing < capacity",
    -1032: "mempool: a reserved element is not a live block",
    -1033: "mempool: queue of waiters: a request is lost, granted what is not there, or not granted what is",
    -1034: "mempool: poison was overwritten: somebody wrote into an element that was free",
    -1041: "sheaf: a thread keeps what is not in use, or keeps it twice",
    -1061: "budget: used != what is charged to it + what its children use, or above its peak or its limit",
    -1071: "watermarks: not 0 <= min <= low <= high",
    -1051: "arena: the header is damaged, or a block was freed that was not in use",
}


def describe_broken(code: int) -> str:
    """Return the text of a broken invariant."""
    return BROKEN_INVARIANTS.get(code, f"unknown invariant {code}")
