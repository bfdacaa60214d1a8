"""Shared by the tests of pools' kernels: pools over every backing, and what their words say."""

from __future__ import annotations

from support import RawArena

from realalloc.mm.kmem_cache import cache_create, cache_geometry
from realalloc.mm.layout import (
    BACKING_KMALLOC,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc
from realalloc.mm.mempool_life import pool_create, pool_fill
from realalloc.mm.page_alloc import alloc_pages


def make_pool(raw: RawArena, min_nr: int, nbytes: int = 2000, order: int = 0, zone: int = ZONE_NORMAL) -> int:
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, nbytes, nbytes, order, zone))
    assert p > 0
    assert pool_fill(raw.words, p) == 0
    return p


def make_cache(raw: RawArena, nbytes: int, flags: int = 0) -> int:
    stride, order = cache_geometry(nbytes, 8, raw.plan.max_order, 12)
    return int(cache_create(raw.words, nbytes, 8, stride, order, flags, ZONE_NORMAL))


def get(raw: RawArena, p: int, name: int) -> int:
    return int(raw.words[p + name])


def gets_and_puts(raw: RawArena, p: int) -> tuple[int, int, int, int]:
    names = (P_GETS_RESERVE, P_GETS_ALLOC, P_PUTS_RESERVE, P_PUTS_FREE)
    return tuple(get(raw, p, name) for name in names)  # type: ignore[return-value]


def hog(raw: RawArena) -> list[int]:
    """Take every free page, so that no backing allocator can serve."""
    pages = []
    while (pfn := int(alloc_pages(raw.words, 0, 0))) > 0:
        pages.append(pfn)
    return pages


def drain(raw: RawArena, p: int, count: int) -> list[int]:
    taken = [int(pool_alloc(raw.words, p, 0)) for _ in range(count)]
    assert all(offset > 0 for offset in taken)
    assert len(set(taken)) == count
    return taken
