"""What the words of an arena's budgets say: names, paths, who holds how much.

Reads without the lock, but for the numbers of one budget, which are of one moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from realalloc import views
from realalloc.mm import layout
from realalloc.mm.budget import budget_copy, slab_bytes
from realalloc.mm.jit import Words
from realalloc.records import Record
from realalloc.sizes import format_bytes

NAMED_HOLDERS: Final = 4  # how many of the largest holders an OutOfMemory names


@dataclass(frozen=True, slots=True)
class BudgetStats(Record):
    """One budget, in bytes unless named otherwise. ``used``: charged here and below; the four kinds are its own alone."""

    name: str
    path: str
    used: int
    peak: int
    limit: int | None
    high: int | None
    failures: int  # charges that it refused, for itself and for those below
    throttled: int  # sleeps of those who allocated above ``high``
    buffers: int  # count of leases of kmalloc, vmalloc and pages
    buffer_bytes: int
    slabs: int  # count of slabs of caches
    slab_bytes: int
    elements: int  # count of elements of pools, those in reserve included
    element_bytes: int
    arrays: int  # count of NumPy's blocks
    array_bytes: int
    closed: bool
    children: tuple[BudgetStats, ...]


def _unbound(value: Any) -> int | None:
    return None if value == layout.NO_LIMIT else int(value)


def _name_at(words: Words, b: int) -> str:
    return bytes(words[b + layout.B_NAME : b + layout.BUDGET_WORDS].tobytes()).rstrip(b"\0").decode()


def _path_at(words: Words, b: int) -> str:
    names = []
    while b != 0:
        names.append(_name_at(words, b))
        b = int(words[b + layout.B_PARENT])
    return "/".join(reversed(names))


def _children(words: Words, b: int) -> list[int]:
    found = []
    child = int(words[layout.H_BUDGETS])
    while child != 0:
        if words[child + layout.B_PARENT] == b:
            found.append(child)
        child = int(words[child + layout.B_NEXT])
    return found[::-1]


def scratch(count: int) -> Words:
    """Make words outside of every arena, also where NumPy allocates from one."""
    return np.frombuffer(bytearray(count * layout.WORD_BYTES), np.int64)


def read_budget(words: Words, b: int) -> BudgetStats:
    """Read a budget's descriptor, and those below it."""
    d = scratch(layout.BUDGET_WORDS)
    budget_copy(words, b, d)
    counts, sizes = d[layout.B_COUNTS :], d[layout.B_BYTES :]
    return BudgetStats(
        name=_name_at(words, b),
        path=_path_at(words, b),
        used=int(d[layout.B_USED]),
        peak=int(d[layout.B_PEAK]),
        limit=_unbound(d[layout.B_LIMIT]),
        high=_unbound(d[layout.B_HIGH]),
        failures=int(d[layout.B_FAILURES]),
        throttled=int(d[layout.B_THROTTLES]),
        buffers=int(counts[layout.CHARGE_BUFFERS]),
        buffer_bytes=int(sizes[layout.CHARGE_BUFFERS]),
        slabs=int(counts[layout.CHARGE_SLABS]),
        slab_bytes=int(sizes[layout.CHARGE_SLABS]),
        elements=int(counts[layout.CHARGE_ELEMENTS]),
        element_bytes=int(sizes[layout.CHARGE_ELEMENTS]),
        arrays=int(counts[layout.CHARGE_ARRAYS]),
        array_bytes=int(sizes[layout.CHARGE_ARRAYS]),
        closed=bool(d[layout.B_STATE] != layout.BUDGET_OPEN),
        children=tuple(read_budget(words, child) for child in _children(words, b)),
    )


def largest_holders(words: Words, b: int) -> str:
    """Name the largest holders of a budget: budgets below it, caches, and what is left of its own by kind."""
    own = read_budget(words, b)
    held = [(child.used, f"budget {child.path!r}") for child in own.children]
    paid = [c for c in views.caches(words) if words[c + layout.C_BUDGET] == b]
    held += [(int(slab_bytes(words, c)), f"cache {views.cache_name(words, c)!r}") for c in paid]
    held.append((own.buffer_bytes, f"{own.buffers} buffers"))
    held.append((own.element_bytes, f"{own.elements} elements of pools"))
    held.append((own.array_bytes, f"{own.arrays} arrays"))
    largest = sorted((pair for pair in held if pair[0]), reverse=True)[:NAMED_HOLDERS]
    return ", ".join(f"{what}: {format_bytes(nbytes)}" for nbytes, what in largest) or "nobody"
