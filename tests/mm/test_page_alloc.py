"""Blocks, runs of any length, pages in bulk: what is handed out, what is verified at free."""

from __future__ import annotations

import random

import pytest
from kernels import (
    ORDERINGS,
    assert_coalesced,
    assert_pristine,
    assert_unchanged,
    block_pages,
    free_blocks,
    holds,
    is_zero,
    metadata,
    page_kind,
    trim,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, kmalloc, ksize, vmalloc
from realalloc.mm.layout import (
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_BLOCKS,
    H_CLOSED,
    H_COMMITTED_PAGES,
    KIND_RUN,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_pages_bulk, alloc_run, free_pages


def test_a_free_with_another_order_is_refused_and_changes_nothing(raw: RawArena) -> None:
    for order in range(5):
        pfn = int(alloc_pages(raw.words, order, 0))
        before = metadata(raw)
        for wrong in (*range(5), -2, 5, 31, 32 + order, 1 << 32, order - 32):
            if wrong != order:
                assert free_pages(raw.words, pfn, wrong) == EINVAL
        assert_unchanged(raw, before)
        assert free_pages(raw.words, pfn, order) == 0
        before = metadata(raw)
        assert free_pages(raw.words, pfn, order) == EINVAL
        assert free_pages(raw.words, pfn, -1) == EINVAL
        assert_unchanged(raw, before)


def test_only_the_first_page_of_a_live_block_can_be_freed(raw: RawArena) -> None:
    pfn = int(alloc_pages(raw.words, 3, 0))
    small = int(kmalloc(raw.words, 100, 0))
    large = int(kmalloc(raw.words, 3 * PAGE, 0))
    area = int(vmalloc(raw.words, 3 * PAGE, 0))
    before = metadata(raw)
    for wrong in (0, -1, -pfn, 1, raw.plan.meta_pages - 1, raw.plan.end_pfn, raw.plan.end_pfn + 1, 1 << 40, 1 << 62):
        for order in (-1, 0, 3):
            assert free_pages(raw.words, wrong, order) == EINVAL
    for inner in range(pfn + 1, pfn + 8):
        for order in (-1, 0, 1, 2, 3):
            assert free_pages(raw.words, inner, order) == EINVAL
    for foreign in (small, large, area):  # a slab, a large kmalloc block and an area are not page blocks
        for order in (-1, 0, 2, 3):
            assert free_pages(raw.words, foreign // PAGE, order) == EINVAL
    assert_unchanged(raw, before)
    for offset in (small, large, area):
        assert kfree(raw.words, offset) == 0
    assert free_pages(raw.words, pfn, -1) == 0


@pytest.mark.parametrize(("size", "max_order"), [(MIB, 4), (MIB + 5 * PAGE, 3), (333 * PAGE, 1), (MIB - PAGE, 7)])
def test_a_run_of_every_length_has_exactly_that_length(size: int, max_order: int) -> None:
    raw = RawArena(size, max_order)
    start, end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
    for pages in range(1, zone_pages(raw) + 2):
        pfn = int(alloc_run(raw.words, pages, 0))
        if pages > raw.pages:
            assert pfn == ENOMEM
            continue
        assert start <= pfn <= end - pages
        assert (page_kind(raw, pfn), block_pages(raw, pfn)) == (KIND_RUN, pages)
        assert raw.words[H_ALLOCATED_PAGES] == pages
        assert_coalesced(raw, [(pfn, pages)])
        assert ksize(raw.words, pfn * PAGE) == pages * PAGE
        assert free_pages(raw.words, pfn, 0) == EINVAL  # a run has no order
        assert free_pages(raw.words, pfn, -1) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 11, 16, 17, 40, 100])
def test_runs_fill_the_arena_and_come_back_in_any_order(length: int) -> None:
    raw = RawArena(2 * MIB - 3 * PAGE, 4)
    for reorder in ORDERINGS.values():
        runs = []
        while (pfn := int(alloc_run(raw.words, length, 0))) > 0:
            runs.append(pfn)
            write(raw, pfn * PAGE, length * PAGE, pfn)
        assert len(runs) * length >= zone_pages(raw) - 2 * 16 - (length if length > 16 else 0) - len(runs) * 16
        assert_coalesced(raw, [(pfn, length) for pfn in runs])
        raw.validate()
        left = reorder(runs)
        while left:
            pfn = left.pop()
            assert holds(raw, pfn * PAGE, length * PAGE, pfn)
            assert free_pages(raw.words, pfn, -1) == 0
            assert_coalesced(raw, [(pfn, length) for pfn in left])
    assert_pristine(raw)


def test_single_page_runs_use_every_page(raw: RawArena) -> None:
    runs = []
    while (pfn := int(alloc_run(raw.words, 1, 0))) > 0:
        runs.append(pfn)
    assert sorted(runs) == list(range(raw.plan.meta_pages, raw.plan.end_pfn))
    assert raw.words[H_BLOCKS] == len(runs)


def test_an_impossible_run_takes_nothing_and_reaches_nothing(raw: RawArena) -> None:
    before = metadata(raw)
    for pages in (zone_pages(raw) + 1, 1 << 20, 1 << 40, 1 << 62, 0, -1, -(1 << 40)):
        assert alloc_run(raw.words, pages, 0) == ENOMEM
    assert_unchanged(raw, before)


def test_a_long_run_is_found_behind_a_half_used_block_at_the_frontier() -> None:
    raw = RawArena(MIB, 4)
    blocks = []
    while not blocks or blocks[-1] % 16:
        blocks.append(int(alloc_pages(raw.words, 0, 0)))  # the first page of an aligned block
    trim(raw)  # the frontier is now right behind it, inside the block
    assert zone_word(raw, 0, Z_FRONTIER_PFN) == blocks[-1] + 1
    pfn = int(alloc_run(raw.words, 40, 0))
    assert pfn == blocks[-1] + 16
    assert_coalesced(raw, [(pfn, 40), *((page, 1) for page in blocks)])


@pytest.mark.parametrize("pages", [5, 16, 17, 40])
def test_a_run_needs_no_more_than_its_own_pages_under_the_limit(pages: int) -> None:
    raw = RawArena(MIB, 4, limit=pages * PAGE)
    assert alloc_run(raw.words, pages + 1, 0) == ENOMEM
    pfn = int(alloc_run(raw.words, pages, 0))
    assert pfn > 0
    assert raw.words[H_COMMITTED_PAGES] == pages
    assert alloc_run(raw.words, 1, 0) == ENOMEM
    raw.validate()
    assert free_pages(raw.words, pfn, -1) == 0
    assert_pristine(raw)


def test_a_run_that_fits_into_no_block_is_found_among_adjacent_ones() -> None:
    raw = RawArena(MIB, 10)  # no block is as large as the arena
    pfn = int(alloc_run(raw.words, raw.pages, 0))
    assert pfn == zone_word(raw, 0, Z_START_PFN)
    assert alloc_run(raw.words, 1, 0) == ENOMEM
    assert free_pages(raw.words, pfn, -1) == 0
    single = int(alloc_pages(raw.words, 0, 0))
    longest = raw.pages - 1 if single in (pfn, pfn + raw.pages - 1) else max(single - pfn, pfn + raw.pages - 1 - single)
    assert alloc_run(raw.words, longest + 1, 0) == ENOMEM
    run = int(alloc_run(raw.words, longest, 0))
    assert run > 0
    for taken in (single, run):
        assert free_pages(raw.words, taken, -1) == 0
    assert_pristine(raw)


def test_a_long_run_uses_a_hole_among_reached_blocks(raw: RawArena) -> None:
    blocks = []
    while (pfn := int(alloc_pages(raw.words, 4, 0))) > 0:
        blocks.append(pfn)
    blocks.sort()
    for pfn in (*blocks[1:3], *blocks[5:9]):
        free_pages(raw.words, pfn, 4)
    assert alloc_run(raw.words, 65, 0) == ENOMEM
    assert alloc_run(raw.words, 50, 0) == blocks[5]
    assert alloc_run(raw.words, 30, 0) == blocks[1]
    assert alloc_run(raw.words, 17, 0) == ENOMEM


def test_a_long_run_ends_at_the_arenas_last_page() -> None:
    raw = RawArena(MIB - 3 * PAGE, 4)
    first = -(-zone_word(raw, 0, Z_START_PFN) // 16) * 16
    pages = zone_word(raw, 0, Z_END_PFN) - first
    assert pages % 16 != 0
    pfn = int(alloc_run(raw.words, pages, 0))
    assert pfn == first
    assert zone_word(raw, 0, Z_FRONTIER_PFN) == zone_word(raw, 0, Z_END_PFN)
    write(raw, pfn * PAGE, pages * PAGE, 5)
    assert holds(raw, pfn * PAGE, pages * PAGE, 5)
    assert free_pages(raw.words, pfn, -1) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("pages", [3, 16, 23])
def test_a_zeroed_run_reads_as_zero(raw: RawArena, pages: int) -> None:
    pfn = int(alloc_run(raw.words, pages, GFP_ZERO_BIT))
    assert is_zero(raw, pfn * PAGE, pages * PAGE)
    write(raw, pfn * PAGE, pages * PAGE, 1)
    free_pages(raw.words, pfn, -1)
    again = int(alloc_run(raw.words, pages, GFP_ZERO_BIT))
    assert again == pfn
    assert is_zero(raw, pfn * PAGE, pages * PAGE)


def test_runs_count_as_committed_and_go_back(raw: RawArena) -> None:
    pfn = int(alloc_run(raw.words, 37, 0))
    assert raw.words[H_COMMITTED_PAGES] == 37
    free_pages(raw.words, pfn, -1)
    assert trim(raw) == 37
    assert_pristine(raw)


def test_runs_of_the_locked_zone_stay_in_it() -> None:
    raw = RawArena(MIB, 3, dma=30 * PAGE)
    border = zone_word(raw, ZONE_NORMAL, Z_START_PFN)
    pfn = int(alloc_run(raw.words, 5, GFP_DMA_BIT))
    assert border - 30 <= pfn <= border - 5
    assert alloc_run(raw.words, 31, GFP_DMA_BIT) == ENOMEM
    free_pages(raw.words, pfn, -1)
    long = int(alloc_run(raw.words, 14, GFP_DMA_BIT))
    assert border - 30 <= long <= border - 14
    assert_coalesced(raw, [(long, 14)], ZONE_DMA)
    free_pages(raw.words, long, -1)
    assert_pristine(raw)


def test_bulk_fills_what_was_asked(raw: RawArena) -> None:
    out = raw.out(64)
    assert alloc_pages_bulk(raw.words, 50, 0, out) == 50
    pages = out[:50].tolist()
    assert len(set(pages)) == 50
    assert out[50:].tolist() == [0] * 14
    assert raw.words[H_BLOCKS] == 50
    assert_coalesced(raw, [(pfn, 1) for pfn in pages])
    for pfn in pages:
        assert free_pages(raw.words, pfn, 0) == 0
    assert alloc_pages_bulk(raw.words, 0, 0, out) == 0
    assert alloc_pages_bulk(raw.words, -3, 0, out) == 0
    assert_pristine(raw)


def test_bulk_says_how_many_there_were(raw: RawArena) -> None:
    out = raw.out(1000)
    done = int(alloc_pages_bulk(raw.words, 1000, 0, out))
    assert done == zone_pages(raw)
    assert sorted(out[:done].tolist()) == list(range(raw.plan.meta_pages, raw.plan.end_pfn))
    assert alloc_pages_bulk(raw.words, 5, 0, out) == 0
    assert alloc_pages_bulk(raw.words, 5, GFP_DMA_BIT, out) == 0


def test_a_closed_arena_hands_out_nothing_and_takes_everything_back(raw: RawArena) -> None:
    pfn, run, out = int(alloc_pages(raw.words, 2, 0)), int(alloc_run(raw.words, 20, 0)), raw.out(4)
    raw.words[H_CLOSED] = 1
    assert alloc_pages(raw.words, 0, 0) == ENOMEM
    assert alloc_run(raw.words, 1, 0) == ENOMEM
    assert alloc_pages_bulk(raw.words, 4, 0, out) == 0
    assert free_pages(raw.words, pfn, 2) == 0
    assert free_pages(raw.words, run, -1) == 0
    assert_pristine(raw)


def test_empty_slabs_and_lazy_areas_are_reclaimed_before_pages_run_out(raw: RawArena) -> None:
    objects = [int(kmalloc(raw.words, 2000, 0)) for _ in range(60)]
    area = int(vmalloc(raw.words, 20 * PAGE, 0))
    for offset in (*objects, area):
        assert kfree(raw.words, offset) == 0
    kept = (
        zone_pages(raw)
        - zone_word(raw, 0, Z_FREE_PAGES)
        - (zone_word(raw, 0, Z_END_PFN) - zone_word(raw, 0, Z_FRONTIER_PFN))
    )
    assert kept > 20
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    assert sorted(pages) == list(range(raw.plan.meta_pages, raw.plan.end_pfn))
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert_pristine(raw)


def test_blocks_and_runs_mixed_never_overlap_and_leave_the_maximal_free_blocks() -> None:
    rng = random.Random(11)
    raw = RawArena(2 * MIB - 9 * PAGE, 5)
    live: dict[int, tuple[int, int]] = {}
    for step in range(2500 if JIT else 500):
        if rng.random() < 0.5:
            order = rng.randrange(6)
            pages = rng.randint(1, 80)
            pfn = int(alloc_run(raw.words, pages, 0) if rng.random() < 0.5 else alloc_pages(raw.words, order, 0))
            if pfn > 0:
                run = page_kind(raw, pfn) == KIND_RUN
                live[pfn] = (pages, -1) if run else (1 << order, order)
                write(raw, pfn * PAGE, live[pfn][0] * PAGE, pfn)
        elif live:
            pfn = rng.choice(sorted(live))
            pages, order = live.pop(pfn)
            assert holds(raw, pfn * PAGE, pages * PAGE, pfn)
            assert free_pages(raw.words, pfn, order) == 0
        if step % 200 == 100:
            trim(raw)
        if step % 10 == 0:
            assert_coalesced(raw, [(pfn, pages) for pfn, (pages, _) in live.items()])
            raw.validate()
    for pfn, (_, order) in live.items():
        assert free_pages(raw.words, pfn, order) == 0
    assert free_blocks(raw) != set()
    assert_pristine(raw)
