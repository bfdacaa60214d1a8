"""The header: whole in every arena there can be, and not with any word of it, or of the record that is null, changed."""

from __future__ import annotations

import numba
import pytest
from checks import meanwhile, some
from support import MIB, RawArena

from realalloc.mm import layout as at
from realalloc.mm.atomic import atomic_store
from realalloc.mm.header import is_whole
from realalloc.mm.kmalloc import kmalloc, vmalloc


@pytest.mark.parametrize("size", [256 << 10, MIB, 64 * MIB])
@pytest.mark.parametrize("max_order", [0, 4, 10, 18])
@pytest.mark.parametrize(("dma", "limit"), [(0, None), (8 * at.PAGE_BYTES, None), (0, 64 << 10)])
def test_a_fresh_header_is_whole_and_stays_so(size: int, max_order: int, dma: int, limit: int | None) -> None:
    raw = RawArena(size, max_order, dma, limit)
    assert is_whole(raw.words)
    kmalloc(raw.words, 3000, 0)
    vmalloc(raw.words, 30_000, 0)
    assert is_whole(raw.words)


@numba.njit(nogil=True)
def come_and_go(words, times):
    for k in range(times):
        for slot in range(at.THREAD_SLOTS):
            atomic_store(words, at.THREADS + slot * at.THREAD_WORDS + at.T_INSIDE, k & 1)


def test_it_is_whole_while_threads_are_at_their_sheaves() -> None:
    raw = RawArena(MIB, 4)
    come_and_go(raw.words, 2)
    with meanwhile(lambda: come_and_go(raw.words, some(1_000_000, 100))):
        assert all(is_whole(raw.words) for _ in range(some(5000, 30)))


TABLES = [
    "H_MAGIC", "H_TOTAL_WORDS", "H_END_PFN", "H_CACHES", "H_RESMAP", "H_HUGEMAP", "H_MOBILITY", "H_MEMMAP",
    "H_VMAP", "H_META_PAGES", "H_MAX_CACHES", "H_FREEMAP_CACHE", "H_SHEAF_CACHE", "H_VM_START_BYTES", "H_VM_GRANULES",
    "H_NR_ZONES", "H_ZERO",
]  # fmt: skip
COUNTS = ["H_MAX_ORDER", "H_NR_CACHES", "H_VM_FRONTIER", "H_FARTHEST", "H_INSIDE"]
ZONE_FIELDS = ["Z_START_PFN", "Z_END_PFN", "Z_FRONTIER_PFN", "Z_PAGE_BLOCK_ORDER"]


def is_whole_with(raw: RawArena, where: int, value: int) -> bool:
    old = int(raw.words[where])
    raw.words[where] = value
    found = is_whole(raw.words)
    raw.words[where] = old
    assert is_whole(raw.words)
    return found


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_has_moved_is_seen(name: str) -> None:
    raw = RawArena(MIB, 4, dma=8 * at.PAGE_BYTES)
    where = getattr(at, name)
    old = int(raw.words[where])
    for value in {old + 1, old - 1, old ^ 1 << 40, -old, 0, -1, 1 << 62} - {old}:
        assert not is_whole_with(raw, where, value)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_of_places_is_within_them(name: str) -> None:
    raw = RawArena(MIB, 4)
    for value in (-1, -1 << 63, 1 << 20, 1 << 62):
        assert not is_whole_with(raw, getattr(at, name), value)


@pytest.mark.parametrize("zone", [at.ZONE_NORMAL, at.ZONE_DMA])
@pytest.mark.parametrize("name", ZONE_FIELDS)
def test_a_zone_is_where_it_was_laid_out(name: str, zone: int) -> None:
    raw = RawArena(MIB, 4, dma=8 * at.PAGE_BYTES)
    for value in (-1, 1 << 20, 1 << 62):
        assert not is_whole_with(raw, at.ZONES + zone * at.ZONE_WORDS + getattr(at, name), value)


def test_the_null_record_is_null() -> None:
    raw = RawArena(MIB, 4)
    for where in range(at.NULL_RECORD, at.NULL_RECORD + at.RECORD_WORDS):
        assert not is_whole_with(raw, where, int(raw.words[where]) + 1)


def test_a_thread_is_at_its_sheaves_or_it_is_not() -> None:
    raw = RawArena(MIB, 4)
    where = at.THREADS + 5 * at.THREAD_WORDS + at.T_INSIDE
    assert [is_whole_with(raw, where, value) for value in (0, 1, 2, -1)] == [True, True, False, False]
    assert not is_whole_with(raw, at.H_LOCK, -5)
