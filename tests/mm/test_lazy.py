"""Freed areas that stay mapped: which one serves again, how many are kept, who takes them apart, and when."""

from __future__ import annotations

import itertools

import pytest
from kernels import (
    area_record,
    assert_pristine,
    holds,
    is_zero,
    write,
    zone_pages,
)
from support import MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, ksize, vmalloc
from realalloc.mm.layout import (
    AREA_KIND_MASK,
    AREA_LAZY,
    DECAY,
    DECAY_EPOCHS,
    ENOMEM,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_VM_AREAS,
    H_VM_LAZY_PAGES,
    V_BYTES,
    V_INFO,
    Y_EPOCHS,
    Y_NS,
    Y_PURGED,
    Y_SERVED,
)
from realalloc.mm.lazy import LAZY_SLACK_SHIFT, purge_lazy_locked, purge_old_lazy_locked, undo_oldest_lazy_locked
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.vmalloc import LAZY_PAGES


def test_a_freed_area_is_handed_out_again_for_the_same_length(raw: RawArena) -> None:
    offsets = [int(vmalloc(raw.words, pages * PAGE, 0)) for pages in (3, 5, 7)]
    for offset, pages in zip(offsets, (3, 5, 7), strict=True):
        write(raw, offset, pages * PAGE, pages)
        assert kfree(raw.words, offset) == 0
    assert (raw.words[H_VM_LAZY_PAGES], raw.words[H_VM_AREAS]) == (15, 0)
    assert raw.words[area_record(raw, offsets[0]) + V_INFO] & AREA_KIND_MASK == AREA_LAZY
    committed = int(raw.words[H_COMMITTED_PAGES])
    assert vmalloc(raw.words, 5 * PAGE - 100, 0) == offsets[1]
    assert raw.words[area_record(raw, offsets[1]) + V_BYTES] == 5 * PAGE - 100
    assert holds(raw, offsets[1], 5 * PAGE, 5)  # not even unmapped in between
    assert raw.words[H_COMMITTED_PAGES] == committed
    assert vmalloc(raw.words, 5 * PAGE, 0) not in offsets
    raw.validate()


def test_an_area_that_is_a_little_longer_serves_too_the_best_one_first(raw: RawArena) -> None:
    offsets = {pages: int(vmalloc(raw.words, pages * PAGE, 0)) for pages in (16, 17, 18, 10)}
    for pages, offset in offsets.items():
        write(raw, offset, pages * PAGE, pages)
        kfree(raw.words, offset)
    taken = int(vmalloc(raw.words, 16 * PAGE - 5, GFP_ZERO_BIT))
    assert taken == offsets[16]
    kfree(raw.words, taken)
    assert vmalloc(raw.words, 17 * PAGE, 0) == offsets[17]
    longer = int(vmalloc(raw.words, 17 * PAGE, GFP_ZERO_BIT))  # an eighth of slack is two pages
    assert longer == offsets[18]
    assert is_zero(raw, longer, 18 * PAGE)
    assert ksize(raw.words, longer) == 18 * PAGE
    assert vmalloc(raw.words, 14 * PAGE, 0) not in offsets.values()  # 16 pages are too many for 14
    raw.validate()
    assert kfree(raw.words, longer) == 0
    assert raw.words[H_VM_LAZY_PAGES] == 16 + 18 + 10
    raw.validate()


@pytest.mark.parametrize("zero", [0, GFP_ZERO_BIT])
def test_a_new_area_is_made_of_kept_ones_before_fresh_pages_the_oldest_first(zero: int) -> None:
    raw = RawArena(64 * MIB, 10)
    areas = [int(vmalloc(raw.words, pages * PAGE, 0)) for pages in (700, 900, 1100)]
    live = int(vmalloc(raw.words, 40 * PAGE, 0))
    for offset, pages in zip((*areas, live), (700, 900, 1100, 40), strict=True):
        write(raw, offset, min(pages, 512) * PAGE, pages)
    for offset in areas:
        kfree(raw.words, offset)
    committed = int(raw.words[H_COMMITTED_PAGES])
    taken = int(vmalloc(raw.words, 1500 * PAGE, zero))
    assert raw.words[H_COMMITTED_PAGES] < committed + 512  # what is less than 2 MiB may be fresh
    assert raw.words[H_VM_LAZY_PAGES] == 1100
    assert is_zero(raw, taken, 1500 * PAGE) or not zero
    write(raw, taken, 512 * PAGE, 5)
    assert vmalloc(raw.words, 1100 * PAGE, 0) == areas[2]
    assert holds(raw, areas[2], 512 * PAGE, 1100)
    assert holds(raw, live, 40 * PAGE, 40)
    fresh = int(vmalloc(raw.words, 1500 * PAGE, zero))  # nothing is kept any more
    assert raw.words[H_COMMITTED_PAGES] >= committed + 1500 - 100
    raw.validate()
    assert_pristine_after(raw, [taken, areas[2], live, fresh])


def test_beyond_some_areas_only_as_much_is_kept_as_lives_the_oldest_goes_first() -> None:
    raw = RawArena(1024 * MIB, 10)
    pages = LAZY_PAGES // 8
    areas = [int(vmalloc(raw.words, pages * PAGE, 0)) for _ in range(30)]
    for k, offset in enumerate(areas):
        assert kfree(raw.words, offset) == 0
        live, kept = (len(areas) - k - 1) * pages, int(raw.words[H_VM_LAZY_PAGES])
        assert kept <= max(LAZY_PAGES, live, 2 * pages)
        assert kept <= raw.plan.end_pfn // 4
        raw.validate()
    assert kept == LAZY_PAGES
    assert {int(vmalloc(raw.words, pages * PAGE, 0)) for _ in range(8)} == set(areas[-8:])
    assert_pristine_after(raw, areas[-8:])


def assert_pristine_after(raw: RawArena, areas: list[int]) -> None:
    for offset in areas:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_lazy_areas_are_bounded_by_a_quarter_of_the_arena(raw: RawArena) -> None:
    offsets = [int(vmalloc(raw.words, 10 * PAGE, 0)) for _ in range(20)]
    for offset in offsets:
        assert kfree(raw.words, offset) == 0
        assert raw.words[H_VM_LAZY_PAGES] <= raw.plan.end_pfn // 4
    assert raw.words[H_VM_LAZY_PAGES] == raw.plan.end_pfn // 4 // 10 * 10
    assert_pristine(raw)


def test_lazy_areas_are_purged_before_memory_runs_out(raw: RawArena) -> None:
    for _ in range(6):
        assert kfree(raw.words, int(vmalloc(raw.words, 10 * PAGE, 0))) == 0
        assert kfree(raw.words, int(vmalloc(raw.words, 7 * PAGE, 0))) == 0
    assert raw.words[H_VM_LAZY_PAGES] == 17
    offset = int(vmalloc(raw.words, zone_pages(raw) * PAGE, 0))
    assert offset > 0
    assert raw.words[H_VM_LAZY_PAGES] == 0
    assert raw.words[H_ALLOCATED_PAGES] == zone_pages(raw)
    assert vmalloc(raw.words, PAGE, 0) == ENOMEM
    write(raw, offset, zone_pages(raw) * PAGE, 6)
    assert holds(raw, offset, zone_pages(raw) * PAGE, 6)
    assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def keep(raw: RawArena, *sizes: int) -> dict[int, int]:
    """Make areas of so many pages and free them: the last one is the youngest. Return offsets by pages."""
    made = {pages: int(vmalloc(raw.words, pages * PAGE, 0)) for pages in sizes}
    for pages, offset in made.items():
        write(raw, offset, pages * PAGE, pages)
        assert kfree(raw.words, offset) == 0
    return made


@pytest.mark.parametrize("order", list(itertools.permutations((8, 9, 10, 16))))
def test_of_those_that_fit_the_shortest_serves_whatever_their_order(order: tuple[int, ...]) -> None:
    for wanted in range(1, 18):
        raw = RawArena(MIB, 4)
        made = keep(raw, *order)
        fits = [pages for pages in order if wanted <= pages <= wanted + (wanted >> LAZY_SLACK_SHIFT)]
        offset = int(vmalloc(raw.words, wanted * PAGE, 0))
        if fits:
            assert offset == made[min(fits)] and holds(raw, offset, min(fits) * PAGE, min(fits))
            assert raw.words[H_VM_LAZY_PAGES] == sum(order) - min(fits)
        else:
            assert offset not in made.values() and raw.words[H_VM_LAZY_PAGES] == sum(order)
        raw.validate()


def test_taking_apart_goes_from_the_oldest_and_memory_stays(raw: RawArena) -> None:
    sizes = (5, 9, 3, 7)
    keep(raw, *sizes)
    committed, left = int(raw.words[H_COMMITTED_PAGES]), sum(sizes)
    for pages in sizes:
        assert undo_oldest_lazy_locked(raw.words) == pages
        left -= pages
        assert raw.words[H_VM_LAZY_PAGES] == left
        assert raw.words[H_COMMITTED_PAGES] == committed
        raw.validate()
    assert undo_oldest_lazy_locked(raw.words) == purge_lazy_locked(raw.words, 0) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("drop", [0, 1])
def test_purging_takes_all_and_drops_their_memory_if_it_shall(raw: RawArena, drop: int) -> None:
    keep(raw, 5, 9, 3)
    committed = int(raw.words[H_COMMITTED_PAGES])
    assert purge_lazy_locked(raw.words, drop) == 17
    assert (raw.words[H_VM_LAZY_PAGES], raw.words[H_ALLOCATED_PAGES]) == (0, 0)
    assert raw.words[H_COMMITTED_PAGES] == committed - 17 * drop
    raw.validate()
    pages = [int(alloc_pages(raw.words, 0, GFP_ZERO_BIT)) for _ in range(zone_pages(raw))]
    assert all(is_zero(raw, pfn * PAGE, PAGE) for pfn in pages)
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert_pristine(raw)


def test_the_old_ones_go_when_their_time_is_over_memory_too(raw: RawArena) -> None:
    keep(raw, 5)
    assert purge_old_lazy_locked(raw.words) == 0  # there is no decay here
    raw.words[DECAY + Y_NS] = 1
    raw.words[DECAY + Y_SERVED] = 1
    keep(raw, 7)
    for epoch in range(DECAY_EPOCHS):
        raw.words[DECAY + Y_EPOCHS] = epoch
        assert purge_old_lazy_locked(raw.words) == 0
    raw.words[DECAY + Y_EPOCHS] = DECAY_EPOCHS
    keep(raw, 9)  # it is of now
    committed = int(raw.words[H_COMMITTED_PAGES])
    assert purge_old_lazy_locked(raw.words) == 5
    assert raw.words[H_COMMITTED_PAGES] == committed - 5
    assert purge_old_lazy_locked(raw.words) == 7
    assert purge_old_lazy_locked(raw.words) == 0 and raw.words[H_VM_LAZY_PAGES] == 9
    assert raw.words[DECAY + Y_PURGED] == 12
    raw.words[DECAY + Y_NS] = 0
    assert purge_old_lazy_locked(raw.words) == 9
    raw.words[DECAY + Y_NS] = -1
    raw.validate()
