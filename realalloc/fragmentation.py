"""A report on fragmentation: why a request fails that has enough free pages, what could be had, what slabs waste.

The numbers are those of :mod:`realalloc.mm.fragment`, read in one hold of the arena's lock; the formulas of the two indices
are also used on counts that are read without it, for ``stats()`` and for the text of an OutOfMemory.

Invariant, of a cache:     slab_bytes = used_bytes + padding_bytes + free_bytes + tail_bytes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from realalloc.mm import fragment, layout
from realalloc.mm.jit import Words

PAGE: Final = layout.PAGE_BYTES

# The formulas as Python: what is compiled is for inlining into kernels alone.
_extfrag: Callable[[int, int, int, int], int] = getattr(fragment.extfrag_index, "py_func", fragment.extfrag_index)
_unusable: Callable[[int, int, int], int] = getattr(fragment.unusable_index, "py_func", fragment.unusable_index)


@dataclass(frozen=True, slots=True)
class CacheWaste:
    """Where the bytes of one cache's slabs are."""

    name: str
    slab_bytes: int  # all of its slabs
    used_bytes: int  # objects that users have, by the size that the cache was made with
    padding_bytes: int  # of these objects: what alignment adds to each
    free_bytes: int  # objects that nobody has, those that threads keep included
    tail_bytes: int  # too short for one more object, behind the last one of each slab

    @property
    def wasted_bytes(self) -> int:
        """Bytes that hold nothing of users."""
        return self.slab_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class ZoneFragmentation:
    """Free memory of one zone; tuples have an entry for each order that the arena has."""

    name: str
    free_bytes: int  # that the limit lets be had
    free_blocks: tuple[int, ...]
    extfrag_index: tuple[int, ...]  # thousandths; -1000: such a block is free
    unusable_index: tuple[int, ...]  # thousandths of the free pages
    largest_block: int  # bytes that one request for a block can get
    largest_run: int  # bytes that one request for contiguous pages can get: adjacent blocks, too


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """The state of an arena at one moment; bytes unless named otherwise."""

    zones: tuple[ZoneFragmentation, ...]
    largest_vmalloc: int  # scattered pages, and addresses for them; areas that are kept lazily count as free
    caches: tuple[CacheWaste, ...]  # those that have slabs
    slab_bytes: int
    slab_wasted: int  # of them, bytes that hold nothing of users

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict of plain values."""
        return asdict(self)


def indices(free_blocks: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the extfrag index and the unusable index of each order, from the free blocks of each order."""
    pages = sum(count << order for order, count in enumerate(free_blocks))
    blocks = sum(free_blocks)
    suitable = 0
    extfrag, unusable = [], []
    for order in range(len(free_blocks) - 1, -1, -1):
        suitable = 2 * suitable + free_blocks[order]
        extfrag.append(_extfrag(order, pages, blocks, suitable))
        unusable.append(_unusable(order, pages, suitable))
    return tuple(reversed(extfrag)), tuple(reversed(unusable))


def largest_block(free_blocks: Sequence[int], had_pages: int) -> int:
    """Return the pages of the largest block that one request can get, from a larger one if need be, of so many to be had."""
    largest = max((order for order, count in enumerate(free_blocks) if count), default=-1)
    order = min(largest, had_pages.bit_length() - 1)
    return 1 << order if order >= 0 else 0


def why(free_blocks: Sequence[int], nbytes: int) -> str:
    """Say why a contiguous request fails although that much is free; an empty text where too little is, or one fits."""
    pages = -(-nbytes // PAGE)
    if not 0 < pages <= sum(count << order for order, count in enumerate(free_blocks)):
        return ""
    order = (pages - 1).bit_length()
    if order >= len(free_blocks):
        return f" but no {pages} pages adjacent"
    index = indices(free_blocks)[0][order]
    return (
        "" if index == fragment.NO_FAILURE else f" but fragmented (extfrag index {index / 1000:.2f} at order {order})"
    )


def _zone(row: list[int], orders: int, name: str) -> ZoneFragmentation:
    blocks = row[fragment.F_BLOCKS : fragment.F_BLOCKS + orders]
    had = row[fragment.F_HAD_PAGES]
    return ZoneFragmentation(
        name=name,
        free_bytes=had * PAGE,
        free_blocks=tuple(blocks),
        extfrag_index=tuple(row[fragment.F_EXTFRAG : fragment.F_EXTFRAG + orders]),
        unusable_index=tuple(row[fragment.F_UNUSABLE : fragment.F_UNUSABLE + orders]),
        largest_block=largest_block(blocks, had) * PAGE,
        largest_run=row[fragment.F_RUN_PAGES] * PAGE,
    )


def _waste(words: Words, c: int, row: list[int], name: str) -> CacheWaste:
    size, stride = int(words[c + layout.C_OBJECT_BYTES]), int(words[c + layout.C_STRIDE_BYTES])
    slabs, objects = row[fragment.W_PAGES] * PAGE, row[fragment.W_OBJECTS]
    used = min(max(row[fragment.W_USED], 0), objects)  # threads at their sheaves are not waited for
    return CacheWaste(
        name=name,
        slab_bytes=slabs,
        used_bytes=used * size,
        padding_bytes=used * (stride - size),
        free_bytes=(objects - used) * stride,
        tail_bytes=slabs - objects * stride,
    )


def fragmentation(words: Words, zone_names: Sequence[str], cache_names: dict[int, str]) -> Fragmentation:
    """Survey an arena. ``cache_names``: of live caches, by word index."""
    out = np.zeros(fragment.O_CACHES + fragment.W_WORDS * int(words[layout.H_MAX_CACHES]), np.int64)
    fragment.survey(words, out)
    found = [int(value) for value in out]
    orders = int(words[layout.H_MAX_ORDER]) + 1
    zones = []
    for zone in range(int(words[layout.H_NR_ZONES])):
        at = fragment.O_ZONES + zone * fragment.F_WORDS
        zones.append(_zone(found[at : at + fragment.F_WORDS], orders, zone_names[zone]))
    caches = []
    for c, name in cache_names.items():
        at = fragment.O_CACHES + (c - int(words[layout.H_CACHES])) // layout.CACHE_WORDS * fragment.W_WORDS
        if found[at + fragment.W_PAGES]:
            caches.append(_waste(words, c, found[at : at + fragment.W_WORDS], name))
    return Fragmentation(
        zones=tuple(zones),
        largest_vmalloc=found[fragment.O_AREA_PAGES] * PAGE,
        caches=tuple(caches),
        slab_bytes=sum(cache.slab_bytes for cache in caches),
        slab_wasted=sum(cache.wasted_bytes for cache in caches),
    )


def thousandths(index: int) -> str:
    """Spell an index as the kernel does: ``%2d.%03d``."""
    return f"{'-' if index < 0 else ' '}{abs(index) // 1000:d}.{abs(index) % 1000:03d}"
