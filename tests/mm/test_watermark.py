"""Watermarks: the kernel's tiers to the page, on every path that takes pages, and when kswapd is woken."""

from __future__ import annotations

import itertools
import random

import pytest
from kernels import assert_pristine, make_cache, zone_pages, zone_word
from support import MIB, PAGE, RawArena

from realalloc import gfp as flags
from realalloc.mm.decay import serve
from realalloc.mm.kmalloc import kfree, kmalloc, vmalloc
from realalloc.mm.layout import (
    BACKING_PAGES,
    BAD_MARKS,
    ENOMEM,
    H_LIMIT_PAGES,
    ORDER_ALLOC_FIRST,
    STAGE_IDLE,
    STAGE_SHEAVES,
    Z_FAILURES,
    Z_HIGH_PAGES,
    Z_LOW_PAGES,
    Z_MIN_PAGES,
    Z_STAGE,
    Z_WAKES,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)
from realalloc.mm.mempool import pool_alloc
from realalloc.mm.mempool_life import pool_create, pool_fill
from realalloc.mm.objects import kmem_cache_alloc
from realalloc.mm.page_alloc import alloc_pages, alloc_pages_bulk, alloc_run, free_pages
from realalloc.mm.resize import krealloc_in_place
from realalloc.mm.watermark import MAX_FAILURES, could_ever, mark_for, set_marks, validate_marks
from realalloc.zones import zone_free_pages

ZONE = int(ZONES + ZONE_NORMAL * ZONE_WORDS)
TIERS = (flags.GFP_HIGH, flags.GFP_DIRECT_RECLAIM, flags.GFP_KSWAPD_RECLAIM, flags.GFP_MEMALLOC, flags.GFP_NOMEMALLOC)
COMBINATIONS = [sum(chosen) for k in range(len(TIERS) + 1) for chosen in itertools.combinations(TIERS, k)]


def kernels_mark(lowest: int, gfp: int) -> int:
    """What __gfp_pfmemalloc_flags, gfp_to_alloc_flags and __zone_watermark_ok say."""
    if gfp & flags.GFP_MEMALLOC and not gfp & flags.GFP_NOMEMALLOC:
        return 0
    non_block = not gfp & flags.GFP_DIRECT_RECLAIM and not gfp & flags.GFP_NOMEMALLOC
    if gfp & flags.GFP_HIGH:
        lowest -= lowest // 2
        if non_block:
            lowest -= lowest // 4
    return lowest


def marked(lowest: int, size: int = MIB, **options: int) -> RawArena:
    raw = RawArena(size, 4, **options)
    set_marks(raw.words, ZONE_NORMAL, lowest, lowest + 8, lowest + 16)
    serve(raw.words, 1, 0)
    return raw


def free(raw: RawArena) -> int:
    return zone_free_pages(raw.words, ZONE_NORMAL)


def test_the_mark_of_each_combination_is_the_kernels() -> None:
    raw = RawArena(MIB)
    for lowest in range(65):
        set_marks(raw.words, ZONE_NORMAL, lowest, lowest, lowest)
        for gfp in COMBINATIONS:
            assert mark_for(raw.words, ZONE_NORMAL, gfp) == kernels_mark(lowest, gfp), (lowest, gfp)
    assert all(mark_for(raw.words, ZONE_DMA, gfp) == 0 for gfp in COMBINATIONS)


@pytest.mark.parametrize("lowest", [1, 2, 3, 7, 8, 37, 64])
def test_single_pages_go_exactly_as_far_as_their_flags_allow(lowest: int) -> None:
    raw = marked(lowest)
    pages = zone_pages(raw)
    taken = []
    for gfp in (flags.GFP_KERNEL, flags.GFP_KERNEL | flags.GFP_HIGH, flags.GFP_ATOMIC, flags.GFP_MEMALLOC):
        while (pfn := int(alloc_pages(raw.words, 0, gfp))) > 0:
            taken.append(pfn)
        assert pfn == ENOMEM
        assert pages - len(taken) == free(raw) == kernels_mark(lowest, gfp)
        assert all(alloc_pages(raw.words, 0, g) == ENOMEM for g in COMBINATIONS if kernels_mark(lowest, g) >= free(raw))
        raw.validate()
    assert len(set(taken)) == pages
    for pfn in taken:
        assert free_pages(raw.words, pfn, 0) == 0
    raw.validate()
    set_marks(raw.words, ZONE_NORMAL, 0, 0, 0)
    assert_pristine(raw)


@pytest.mark.parametrize("seed", range(6))
def test_no_path_goes_below_its_tier_and_none_is_refused_above_it(seed: int) -> None:
    """Each request either leaves its mark, or is refused; one of a single page is refused only where it would not leave it."""
    rng = random.Random(seed)
    raw = marked(48)
    c = make_cache(raw, 4000)
    out = raw.out(8)
    held: list[int] = []
    for _ in range(1500):
        gfp = rng.choice(COMBINATIONS) | (flags.GFP_ZERO if rng.random() < 0.2 else 0)
        mark = kernels_mark(48, gfp)
        before = free(raw)
        what = rng.randrange(7)
        wanted = 1
        if what == 0:
            order = rng.choice([0, 0, 0, 1, 3])
            wanted = 1 << order
            found = int(alloc_pages(raw.words, order, gfp)) * PAGE
        elif what == 1:
            wanted = rng.randrange(1, 9)
            found = int(alloc_run(raw.words, wanted, gfp)) * PAGE
        elif what == 2:
            found = int(kmalloc(raw.words, rng.choice([8, 200, 2000, 8192, 9000, 40000, 100000]), gfp))
        elif what == 3:
            wanted = rng.randrange(1, 5)
            found = int(vmalloc(raw.words, wanted * PAGE, gfp))
        elif what == 4:
            gfp, mark = flags.GFP_KERNEL, 48
            found = int(kmem_cache_alloc(raw.words, c))
        elif what == 5:
            count = int(alloc_pages_bulk(raw.words, 4, gfp, out))
            held += [int(pfn) * PAGE for pfn in out[:count]]
            assert free(raw) >= min(before, mark)
            assert count == 4 or free(raw) <= mark
            found = ENOMEM
        else:
            found = 0
            if held:
                assert kfree(raw.words, held.pop(rng.randrange(len(held)))) == 0
        if found > 0:
            held.append(found)
            assert free(raw) >= min(before, mark), "it took what is not its"
        elif what == 0 and wanted == 1 and found < 0:
            assert before - 1 < mark or before == 0, "it was refused what is its"
    raw.validate()
    for offset in held:
        assert kfree(raw.words, offset) == 0
    raw.validate()


def test_growing_in_place_and_pools_are_requests_too() -> None:
    raw = marked(32)
    block = int(kmalloc(raw.words, 4 * PAGE, flags.GFP_KERNEL))
    p = int(pool_create(raw.words, 1, BACKING_PAGES, 0, PAGE, ORDER_ALLOC_FIRST, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == 0
    taken = []
    while free(raw) > 34:
        taken.append(int(alloc_pages(raw.words, 0, flags.GFP_KERNEL)))
    assert krealloc_in_place(raw.words, block, 8 * PAGE) == ENOMEM
    while free(raw) > 32:
        taken.append(int(alloc_pages(raw.words, 0, flags.GFP_KERNEL)))
    first = int(pool_alloc(raw.words, p, flags.GFP_MEMALLOC))
    assert first > 0 and free(raw) == 32, "its reserve served: a pool does not drain the arena's"
    assert pool_alloc(raw.words, p, flags.GFP_MEMALLOC) == ENOMEM
    assert pool_alloc(raw.words, p, flags.GFP_HIGH | flags.GFP_DIRECT_RECLAIM) > 0 and free(raw) == 31
    raw.validate()


def test_without_marks_nothing_is_refused_and_nobody_is_woken() -> None:
    raw = RawArena(MIB, 4)
    while alloc_pages(raw.words, 0, flags.GFP_NOWAIT) > 0:
        pass
    assert free(raw) == 0
    assert zone_word(raw, ZONE_NORMAL, Z_WAKES) == 0 and zone_word(raw, ZONE_NORMAL, Z_STAGE) == STAGE_IDLE


def test_kswapd_is_woken_once_below_low_by_who_may_wake_it() -> None:
    raw = marked(16)  # low 24, high 32
    while free(raw) > 24:
        assert alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0
    assert zone_word(raw, ZONE_NORMAL, Z_WAKES) == 0
    assert alloc_pages(raw.words, 0, flags.GFP_DIRECT_RECLAIM) > 0  # may not wake it
    assert zone_word(raw, ZONE_NORMAL, Z_WAKES) == 0
    assert alloc_pages(raw.words, 0, flags.GFP_NOWAIT) > 0
    assert alloc_pages(raw.words, 0, flags.GFP_NOWAIT) > 0
    assert zone_word(raw, ZONE_NORMAL, Z_WAKES) == 1 and zone_word(raw, ZONE_NORMAL, Z_STAGE) == STAGE_SHEAVES


def test_where_kswapd_does_not_serve_nobody_wakes_it() -> None:
    raw = marked(16)
    serve(raw.words, 0, 0)
    while alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0:
        pass
    assert zone_word(raw, ZONE_NORMAL, Z_WAKES) == 0 and zone_word(raw, ZONE_NORMAL, Z_STAGE) == STAGE_IDLE


def test_who_may_not_wait_takes_nothing_back_where_there_are_marks() -> None:
    for lowest in (0, 16):
        raw = marked(lowest) if lowest else RawArena(MIB, 4)
        area = int(vmalloc(raw.words, 20 * PAGE, 0))
        while alloc_pages(raw.words, 0, flags.GFP_DIRECT_RECLAIM) > 0:
            pass
        assert kfree(raw.words, area) == 0  # lazily: its pages are not free yet
        assert free(raw) == lowest
        for gfp in (flags.GFP_NOWAIT, flags.GFP_KSWAPD_RECLAIM, 0):
            assert (alloc_pages(raw.words, 0, gfp) > 0) == (lowest == 0)
        assert alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0
        assert free(raw) in (16, 19, lowest + 19)
        raw.validate()


def test_kswapd_is_left_alone_after_runs_that_brought_nothing_until_there_was_room_again() -> None:
    raw = marked(16)
    taken = []
    while (pfn := int(alloc_pages(raw.words, 0, flags.GFP_DIRECT_RECLAIM))) > 0:
        taken.append(pfn)
    raw.words[ZONE + Z_FAILURES] = MAX_FAILURES
    assert alloc_pages(raw.words, 0, flags.GFP_KERNEL) == ENOMEM
    assert zone_word(raw, ZONE_NORMAL, Z_STAGE) == STAGE_IDLE
    for _ in range(20):
        free_pages(raw.words, taken.pop(), 0)
    assert alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0  # leaves more than low
    assert zone_word(raw, ZONE_NORMAL, Z_FAILURES) == 0
    while alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0:
        pass
    assert zone_word(raw, ZONE_NORMAL, Z_STAGE) == STAGE_SHEAVES


def test_free_pages_are_those_that_the_limit_admits() -> None:
    raw = marked(16)
    raw.words[H_LIMIT_PAGES] = 64
    taken = 0
    while alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0:
        taken += 1
    assert taken == 64 - 16 and free(raw) == 16
    while alloc_pages(raw.words, 0, flags.GFP_MEMALLOC) > 0:
        taken += 1
    assert taken == 64
    raw.validate()


def test_what_an_empty_zone_could_serve() -> None:
    raw = marked(32)
    pages = zone_pages(raw)
    assert could_ever(raw.words, ZONE_NORMAL, pages - 32, -1, flags.GFP_KERNEL)
    assert not could_ever(raw.words, ZONE_NORMAL, pages - 31, -1, flags.GFP_KERNEL)
    assert could_ever(raw.words, ZONE_NORMAL, pages - 16, -1, flags.GFP_KERNEL | flags.GFP_HIGH)
    assert could_ever(raw.words, ZONE_NORMAL, 16, 4, flags.GFP_KERNEL)
    assert not could_ever(raw.words, ZONE_NORMAL, 32, 5, flags.GFP_KERNEL), "above the largest order"
    raw.words[H_LIMIT_PAGES] = 40
    assert could_ever(raw.words, ZONE_NORMAL, 8, 3, flags.GFP_KERNEL)
    assert not could_ever(raw.words, ZONE_NORMAL, 9, -1, flags.GFP_KERNEL)
    odd = RawArena(MIB, 7)  # pages 37 to 255: a block of 128 pages has one place
    assert could_ever(odd.words, ZONE_NORMAL, 128, 7, flags.GFP_KERNEL)


@pytest.mark.parametrize("marks", [(-1, 2, 3), (3, 2, 4), (1, 4, 3)])
def test_marks_that_are_out_of_order_are_found(marks: tuple[int, int, int]) -> None:
    raw = RawArena(MIB)
    assert validate_marks(raw.words) == 0
    for word, mark in zip((Z_MIN_PAGES, Z_LOW_PAGES, Z_HIGH_PAGES), marks, strict=True):
        raw.words[ZONE + word] = mark
    assert validate_marks(raw.words) == BAD_MARKS
