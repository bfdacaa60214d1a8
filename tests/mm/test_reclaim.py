"""Memory that goes back: what reclaim takes, what a trim drops, where the frontier retreats to."""

from __future__ import annotations

import pytest
from kernels import (
    ORDERINGS,
    assert_coalesced,
    assert_pristine,
    class_cache,
    free_blocks,
    holds,
    is_zero,
    octets,
    trim,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, kmalloc, vmalloc
from realalloc.mm.layout import (
    C_NR_SLABS,
    GFP_DMA_BIT,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_VM_LAZY_PAGES,
    INFOS,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages
from realalloc.mm.reclaim import TRIM_SPAN_PAGES, reclaim, retreat, trim_span


def resident(raw: RawArena) -> int:
    start, end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
    return raw.memory.resident_pages(start * PAGE, (end - start) * PAGE)


def test_reclaim_takes_lazy_areas_and_empty_slabs_and_says_how_many_pages(raw: RawArena) -> None:
    area, obj = int(vmalloc(raw.words, 7 * PAGE, 0)), int(kmalloc(raw.words, 64, 0))
    assert reclaim(raw.words) == 0
    assert kfree(raw.words, area) == kfree(raw.words, obj) == 0
    assert (raw.words[H_ALLOCATED_PAGES], raw.words[H_VM_LAZY_PAGES]) == (8, 7)
    assert reclaim(raw.words) == 8
    assert raw.words[H_ALLOCATED_PAGES] == raw.words[H_VM_LAZY_PAGES] == 0
    assert raw.words[class_cache(raw, 64) + C_NR_SLABS] == 0
    assert reclaim(raw.words) == 0


def test_reclaim_drops_the_memory_of_lazy_areas(raw: RawArena) -> None:
    area = int(vmalloc(raw.words, 7 * PAGE, 0))
    write(raw, area, 7 * PAGE, 1)
    kfree(raw.words, area)
    committed = int(raw.words[H_COMMITTED_PAGES])
    reclaim(raw.words)
    assert raw.words[H_COMMITTED_PAGES] == committed - 7
    raw.validate()


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_trim_gives_back_exactly_the_free_pages(ordering: str) -> None:
    raw = RawArena(MIB, 4)
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    for pfn in pages:
        write(raw, pfn * PAGE, PAGE, pfn)
    assert resident(raw) == len(pages)
    live = set(pages)
    for k, pfn in enumerate(ORDERINGS[ordering](pages)):
        free_pages(raw.words, pfn, 0)
        live.remove(pfn)
        if k % 48 == 47:
            assert trim(raw) == 48
            assert resident(raw) == len(live) == raw.words[H_COMMITTED_PAGES]
            assert all(holds(raw, page * PAGE, PAGE, page) for page in live)
            frontier = zone_word(raw, 0, Z_FRONTIER_PFN)
            assert frontier == max(live, default=zone_word(raw, 0, Z_START_PFN) - 1) + 1 or (
                0,
                frontier,
            ) not in free_blocks(raw)
            assert_coalesced(raw, [(page, 1) for page in live])
            raw.validate()
    assert_pristine(raw)
    assert resident(raw) == 0


def test_the_frontier_retreats_to_the_last_page_in_use(raw: RawArena) -> None:
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    pages.sort()
    for keep in (200, 133, 64, 17, 1, 0):
        for pfn in pages[keep:]:
            free_pages(raw.words, pfn, 0)
        del pages[keep:]
        trim(raw)
        assert zone_word(raw, 0, Z_FRONTIER_PFN) == (pages[-1] + 1 if pages else zone_word(raw, 0, Z_START_PFN))


def test_the_frontier_stays_over_free_pages_that_hold_memory(raw: RawArena) -> None:
    pfn = int(alloc_pages(raw.words, 4, 0))
    free_pages(raw.words, pfn, 4)
    frontier = zone_word(raw, 0, Z_FRONTIER_PFN)
    assert retreat(raw.words, ZONE_NORMAL) == frontier
    trim(raw)
    assert zone_word(raw, 0, Z_FRONTIER_PFN) < frontier


def test_dropped_pages_read_as_zero_and_can_be_used_again(raw: RawArena) -> None:
    for seed in range(4):
        run = int(alloc_run(raw.words, 40, 0))
        assert is_zero(raw, run * PAGE, 40 * PAGE)
        write(raw, run * PAGE, 40 * PAGE, seed)
        free_pages(raw.words, run, -1)
        assert trim(raw) == 40


def test_the_memmap_behind_the_frontier_goes_back_too() -> None:
    raw = RawArena(256 * MIB, 10)
    infos = INFOS * 8
    nbytes = raw.plan.caches * 8 - infos
    before = raw.memory.resident_pages(infos, nbytes)
    pages = []
    for _ in range(60):  # a block of 4 MiB each, not touched
        pages.append(int(alloc_pages(raw.words, 10, 0)))
    assert raw.memory.resident_pages(infos, nbytes) > before + 50
    for pfn in pages:
        free_pages(raw.words, pfn, 10)
    trim(raw)
    assert raw.memory.resident_pages(infos, nbytes) <= before + 2  # of either table the page that its end lies on
    assert_pristine(raw)


def test_a_span_ends_and_goes_on_where_it_ended() -> None:
    raw = RawArena(300 * MIB, 10)
    blocks = [int(alloc_pages(raw.words, 10, 0)) for _ in range(70)]
    for pfn in blocks:
        octets(raw, pfn * PAGE, 1)[:] = 1
        free_pages(raw.words, pfn, 10)
    given, stops, at = raw.out(), [], 0
    while (at := int(trim_span(raw.words, ZONE_NORMAL, at, given))) != 0:
        stops.append(at)
    assert given[0] == 70 << 10
    assert 2 <= len(stops) <= 3
    assert all(b - a <= TRIM_SPAN_PAGES + 1024 for a, b in zip([0, *stops], stops, strict=False))
    assert resident(raw) == 0
    retreat(raw.words, ZONE_NORMAL)
    assert_pristine(raw)


@pytest.mark.parametrize("begin", [-5, 0, 3, 1 << 40])
def test_a_span_may_begin_anywhere(raw: RawArena, begin: int) -> None:
    run = int(alloc_run(raw.words, 21, 0))
    block = int(alloc_pages(raw.words, 3, 0))
    write(raw, run * PAGE, 21 * PAGE, 1)
    write(raw, block * PAGE, 8 * PAGE, 2)
    given = raw.out()
    for at in (begin, run + 5, block + 3, block + 7):
        assert trim_span(raw.words, ZONE_NORMAL, at, given) == 0
    assert holds(raw, run * PAGE, 21 * PAGE, 1)
    assert holds(raw, block * PAGE, 8 * PAGE, 2)
    raw.validate()


def test_pages_of_the_locked_zone_are_trimmed_only_when_asked() -> None:
    raw = RawArena(MIB, 4, dma=40 * PAGE)
    low, high = int(alloc_pages(raw.words, 3, GFP_DMA_BIT)), int(alloc_pages(raw.words, 3, 0))
    free_pages(raw.words, low, 3)
    free_pages(raw.words, high, 3)
    given = raw.out()
    assert trim_span(raw.words, ZONE_NORMAL, 0, given) == 0
    assert given[0] == 8
    assert trim_span(raw.words, ZONE_DMA, 0, given) == 0
    assert given[0] == 16
    assert_pristine(raw)


def test_an_arena_lives_many_lives() -> None:
    raw = RawArena(2 * MIB, 5)
    for life in range(30 if JIT else 6):
        live = [int(kmalloc(raw.words, 1 + (life * 7919 + k * 104729) % 40_000, 0)) for k in range(60)]
        assert all(offset > 0 for offset in live[:30])
        for offset in live:
            if offset > 0:
                assert kfree(raw.words, offset) == 0
        assert_pristine(raw)
        assert resident(raw) == 0
