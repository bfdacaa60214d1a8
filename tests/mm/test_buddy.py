"""The page allocator: alignment, splitting, coalescing, the frontier, zones, limits, and a walker that can fail."""

from __future__ import annotations

import random

import numpy as np
import pytest
from kernels import (
    ORDERINGS,
    assert_coalesced,
    assert_pristine,
    assert_unchanged,
    blocks_that_fit,
    free_blocks,
    info_index,
    is_zero,
    metadata,
    page_index,
    page_kind,
    trim,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.buddy import grow, validate_buddy
from realalloc.mm.commit import set_limit
from realalloc.mm.layout import (
    BAD_COMMITTED,
    BAD_FREE_COUNT,
    BAD_FREE_LIST,
    BAD_PAGE_STATE,
    BAD_PAGE_SUM,
    BAD_UNMERGED,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_BLOCKS,
    H_COMMITTED_PAGES,
    H_LIMIT_PAGES,
    H_PEAK_ALLOCATED_PAGES,
    H_PEAK_COMMITTED_PAGES,
    H_RESMAP,
    KIND_FREE,
    KIND_NONE,
    KIND_PAGES,
    ORDER_SHIFT,
    PG_LINK,
    Z_ALLOCS,
    Z_COUNTS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FREES,
    Z_FRONTIER_PFN,
    Z_HEADS,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_SHIFT,
    ZONE_WORDS,
    ZONES,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages

ODD_SIZES = [256 << 10, (256 << 10) + 3 * PAGE, 333 * PAGE, MIB - PAGE, MIB + 7 * PAGE, 2 * MIB - 5 * PAGE]


def take_all(raw: RawArena, order: int, gfp: int = 0) -> list[int]:
    taken = []
    while (pfn := alloc_pages(raw.words, order, gfp)) > 0:
        taken.append(int(pfn))
    assert pfn == ENOMEM
    return taken


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("max_order", [1, 4, 7])
def test_every_order_fills_every_place_and_coalesces_back(size: int, max_order: int) -> None:
    raw = RawArena(size, max_order)
    start, end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
    assert (start, end) == (raw.plan.meta_pages, size // PAGE)
    for order in range(max_order + 1):
        for reorder in ORDERINGS.values():
            taken = take_all(raw, order)
            assert len(taken) == len(set(taken)) == blocks_that_fit(start, end, order)
            assert all(pfn % (1 << order) == 0 and start <= pfn <= end - (1 << order) for pfn in taken)
            assert_coalesced(raw, [(pfn, 1 << order) for pfn in taken])
            assert raw.words[H_ALLOCATED_PAGES] == len(taken) << order
            assert raw.words[H_BLOCKS] == len(taken)
            raw.validate()
            left = reorder(taken)
            while left:
                assert free_pages(raw.words, left.pop(0), order) == 0
                if len(left) % 50 == 0:
                    assert_coalesced(raw, [(pfn, 1 << order) for pfn in left])
            raw.validate()
    assert_pristine(raw)


@pytest.mark.parametrize("seed", range(3))
def test_random_orders_always_leave_exactly_the_maximal_free_blocks(seed: int) -> None:
    rng = random.Random(seed)
    raw = RawArena((1 << 20) + 13 * PAGE * seed, 5)
    live: dict[int, int] = {}
    for step in range(3000 if JIT else 600):
        if rng.random() < 0.55:
            order = min(int(rng.expovariate(0.7)), 5)
            pfn = int(alloc_pages(raw.words, order, 0))
            if pfn > 0:
                assert pfn % (1 << order) == 0
                live[pfn] = order
            else:
                assert all(found < order for found, _ in free_blocks(raw))
                assert zone_word(raw, 0, Z_FRONTIER_PFN) == zone_word(raw, 0, Z_END_PFN)
        elif live:
            pfn = rng.choice(sorted(live))
            assert free_pages(raw.words, pfn, live.pop(pfn)) == 0
        if step % 10 == 0:
            assert_coalesced(raw, [(pfn, 1 << order) for pfn, order in live.items()])
    raw.validate()
    for pfn in sorted(live):
        assert free_pages(raw.words, pfn, live[pfn]) == 0
    assert_coalesced(raw, [])
    assert_pristine(raw)


def test_the_smallest_sufficient_block_is_split_and_its_lower_half_handed_out(raw: RawArena) -> None:
    blocks = [int(alloc_pages(raw.words, 4, 0)) for _ in range(4)]
    pages = [int(alloc_pages(raw.words, 0, 0))]
    while any(order < 4 for order, _ in free_blocks(raw)):  # use up what is left below the first block
        pages.append(int(alloc_pages(raw.words, 0, 0)))
    for pfn in (blocks[0], blocks[2]):
        assert free_pages(raw.words, pfn, 4) == 0
    for order in (3, 1, 0):
        candidates = free_blocks(raw)
        smallest = min(found for found, _ in candidates if found >= order)
        pfn = int(alloc_pages(raw.words, order, 0))
        assert (smallest, pfn) in candidates
        expected = candidates - {(smallest, pfn)}
        expected |= {(k, pfn + (1 << k)) for k in range(order, smallest)}
        assert free_blocks(raw) == expected
        pages.append(pfn)


def test_the_block_freed_last_is_handed_out_first(raw: RawArena) -> None:
    blocks = [int(alloc_pages(raw.words, 4, 0)) for _ in range(6)]
    for pfn in blocks[1::2]:
        free_pages(raw.words, pfn, 4)
    assert [alloc_pages(raw.words, 4, 0) for _ in blocks[1::2]] == blocks[1::2][::-1]


def test_a_block_that_will_soon_merge_goes_to_the_end_of_its_list(raw: RawArena) -> None:
    blocks = take_all(raw, 4)
    take_all(raw, 0)
    lower, upper = blocks[0], blocks[2]
    for pfn in (lower, upper):
        free_pages(raw.words, pfn, 4)
    assert set(take_all(raw, 0)) == {*range(lower, lower + 16), *range(upper, upper + 16)}
    free_pages(raw.words, upper, 0)  # its higher neighbours are taken: goes to the front
    for pfn in (lower + 2, lower + 3):  # a free order-1 block next to which pair 0, 1 will merge
        free_pages(raw.words, pfn, 0)
    free_pages(raw.words, lower, 0)  # page 1 is taken and 2..3 is free: likely to merge soon, so it waits at the end
    assert alloc_pages(raw.words, 0, 0) == upper
    assert alloc_pages(raw.words, 0, 0) == lower


def test_the_frontier_moves_by_aligned_blocks_only_when_no_list_can_serve() -> None:
    raw = RawArena(MIB, 4)
    start = zone_word(raw, 0, Z_START_PFN)
    seen = start
    while (grown := int(grow(raw.words, ZONE_NORMAL))) != 0:
        lowest = seen & -seen
        assert seen % grown == 0
        assert grown == min(lowest, 16) or seen + 2 * grown > zone_word(raw, 0, Z_END_PFN)
        seen += grown
        assert zone_word(raw, 0, Z_FRONTIER_PFN) == seen
    assert seen == zone_word(raw, 0, Z_END_PFN)
    assert_coalesced(raw, [])
    assert_pristine(raw)


def test_frontier_stays_while_the_lists_serve() -> None:
    raw = RawArena(MIB, 4)
    first = int(alloc_pages(raw.words, 4, 0))
    frontier = zone_word(raw, 0, Z_FRONTIER_PFN)
    free_pages(raw.words, first, 4)
    pages = [alloc_pages(raw.words, 0, 0) for _ in range(16)]
    assert zone_word(raw, 0, Z_FRONTIER_PFN) == frontier
    assert len(set(pages)) == 16


def test_an_order_beyond_the_largest_or_below_zero_takes_nothing(raw: RawArena) -> None:
    before = metadata(raw)
    for order in (5, 6, 18, 31, 62, 63, 64, 1000, 1 << 40, -1, -2, -64, -(1 << 40)):
        assert alloc_pages(raw.words, order, 0) == ENOMEM
    assert_unchanged(raw, before)


def test_memory_that_ran_out_is_said_and_nothing_is_taken() -> None:
    raw = RawArena(256 << 10, 3)
    taken = take_all(raw, 0)
    before = metadata(raw)
    for order in range(4):
        assert alloc_pages(raw.words, order, 0) == ENOMEM
    assert_unchanged(raw, before)
    free_pages(raw.words, taken[20], 0)
    assert alloc_pages(raw.words, 1, 0) == ENOMEM
    assert alloc_pages(raw.words, 0, 0) == taken[20]


def test_zeroed_blocks_read_as_zero_and_fresh_ones_are_not_touched_for_it(raw: RawArena) -> None:
    pfn = int(alloc_pages(raw.words, 4, GFP_ZERO_BIT))
    assert raw.memory.resident_pages(pfn * PAGE, 16 * PAGE) == 0
    write(raw, pfn * PAGE, 16 * PAGE, 3)
    free_pages(raw.words, pfn, 4)
    assert alloc_pages(raw.words, 4, 0) == pfn
    assert not is_zero(raw, pfn * PAGE, 16 * PAGE)
    free_pages(raw.words, pfn, 4)
    take_all(raw, 3)
    free_pages(raw.words, pfn, 3)
    free_pages(raw.words, pfn + 8, 3)
    for order in (3, 2, 2):
        pfn = int(alloc_pages(raw.words, order, GFP_ZERO_BIT))
        assert is_zero(raw, pfn * PAGE, PAGE << order)


def test_pages_count_as_committed_from_their_first_use_until_a_trim(raw: RawArena) -> None:
    pfn, other = int(alloc_pages(raw.words, 4, 0)), int(alloc_pages(raw.words, 4, 0))
    assert raw.words[H_COMMITTED_PAGES] == 32
    free_pages(raw.words, pfn, 4)
    assert raw.words[H_COMMITTED_PAGES] == 32
    assert alloc_pages(raw.words, 4, 0) == pfn
    assert raw.words[H_COMMITTED_PAGES] == 32
    assert trim(raw) == 0
    free_pages(raw.words, pfn, 4)
    assert trim(raw) == 16
    assert raw.words[H_COMMITTED_PAGES] == 16
    free_pages(raw.words, other, 4)
    assert trim(raw) == 16
    assert raw.words[H_COMMITTED_PAGES] == 0
    assert raw.words[H_PEAK_COMMITTED_PAGES] == 32


def test_allocs_and_frees_are_counted(raw: RawArena) -> None:
    pages = [int(alloc_pages(raw.words, 1, 0)) for _ in range(5)]
    for pfn in pages[:3]:
        free_pages(raw.words, pfn, 1)
    assert (zone_word(raw, 0, Z_ALLOCS), zone_word(raw, 0, Z_FREES)) == (5, 3)
    assert raw.words[H_PEAK_ALLOCATED_PAGES] == 10
    assert raw.words[H_ALLOCATED_PAGES] == 4


@pytest.mark.parametrize("limit_pages", [0, 1, 2, 17, 40])
def test_a_limit_bounds_what_can_be_committed(limit_pages: int) -> None:
    raw = RawArena(MIB, 4, limit=limit_pages * PAGE)
    taken = take_all(raw, 0)
    assert len(taken) == limit_pages
    start = zone_word(raw, 0, Z_START_PFN)
    assert set_limit(raw.words, limit_pages + 3) == 0
    assert len(take_all(raw, 0)) == 3
    assert set_limit(raw.words, 1 << 40) == 0
    more = take_all(raw, 0)
    assert limit_pages + 3 + len(more) == zone_pages(raw)
    for pfn in range(start, zone_word(raw, 0, Z_END_PFN)):
        assert free_pages(raw.words, pfn, 0) == 0
    assert_pristine(raw)


def test_a_limit_that_cannot_be_is_refused(raw: RawArena) -> None:
    pfn = int(alloc_pages(raw.words, 4, 0))
    before = metadata(raw)
    for limit in (15, 1, 0, -1, -(1 << 40)):
        assert set_limit(raw.words, limit) == ENOMEM
    assert_unchanged(raw, before)
    assert set_limit(raw.words, 16) == 0
    assert take_all(raw, 0) == []
    free_pages(raw.words, pfn, 4)
    assert len(take_all(raw, 0)) == 16


def test_zones_keep_to_themselves_and_never_merge() -> None:
    raw = RawArena(MIB, 4, dma=37 * PAGE)
    border = zone_word(raw, ZONE_NORMAL, Z_START_PFN)
    assert (zone_word(raw, ZONE_DMA, Z_START_PFN), zone_word(raw, ZONE_DMA, Z_END_PFN)) == (border - 37, border)
    for order in range(5):
        for reorder in ORDERINGS.values():
            low, high = take_all(raw, order, GFP_DMA_BIT), take_all(raw, order)
            assert len(low) == blocks_that_fit(border - 37, border, order)
            assert all(pfn + (1 << order) <= border for pfn in low)
            assert all(pfn >= border for pfn in high)
            for pfn in reorder(low + high):
                assert free_pages(raw.words, pfn, order) == 0
            for zone in (ZONE_DMA, ZONE_NORMAL):
                assert_coalesced(raw, [], zone)
            raw.validate()
    assert_pristine(raw)


def test_an_arena_without_the_locked_zone_refuses_its_flag(raw: RawArena) -> None:
    before = metadata(raw)
    assert alloc_pages(raw.words, 0, GFP_DMA_BIT) == ENOMEM
    assert_unchanged(raw, before)


def test_the_words_can_be_copied_elsewhere_and_go_on() -> None:
    raw, other = RawArena(MIB, 4), RawArena(MIB, 4)
    taken = [int(alloc_pages(raw.words, k % 4, 0)) for k in range(40)]
    end = raw.plan.end_pfn * PAGE // 8
    other.words[:end] = raw.words[:end]
    for k, pfn in enumerate(taken):
        assert free_pages(other.words, pfn, k % 4) == 0
    assert_pristine(other)
    raw.validate()


def damaged_arena() -> tuple[RawArena, int]:
    raw = RawArena(MIB, 4)
    first, _, third = (int(alloc_pages(raw.words, 4, 0)) for _ in range(3))
    free_pages(raw.words, third, 4)
    assert validate_buddy(raw.words) == 0
    return raw, first


def lone_block(raw: RawArena) -> tuple[int, int]:
    order, pfn = max(free_blocks(raw))
    return order, pfn


def z(field: int) -> int:
    return ZONES + ZONE_NORMAL * ZONE_WORDS + field


def split_by_hand(raw: RawArena, _pfn: int) -> None:
    order, pfn = max(free_blocks(raw))
    assert zone_word(raw, 0, Z_COUNTS + order) == 1
    half = pfn + (1 << (order - 1))
    old = raw.words[z(Z_HEADS + order - 1)] >> 32
    raw.words[z(Z_HEADS + order)] = raw.words[z(Z_COUNTS + order)] = 0
    raw.words[info_index(pfn)] = KIND_FREE | (order - 1) << ORDER_SHIFT
    raw.words[info_index(half)] = KIND_FREE | (order - 1) << ORDER_SHIFT
    raw.words[page_index(raw, pfn) + PG_LINK] = half << 32
    raw.words[page_index(raw, half) + PG_LINK] = old << 32 | pfn
    if old:
        raw.words[page_index(raw, int(old)) + PG_LINK] |= half
        raw.words[z(Z_HEADS + order - 1)] = pfn << 32 | (raw.words[z(Z_HEADS + order - 1)] & 0xFFFFFFFF)
    else:
        raw.words[z(Z_HEADS + order - 1)] = pfn << 32 | half
    raw.words[z(Z_COUNTS + order - 1)] += 2


def poke(index: int, change: int):
    def damage(raw: RawArena, _pfn: int) -> None:
        raw.words[index] += change

    return damage


def poke_info(change, inner: int = 0):
    def damage(raw: RawArena, pfn: int) -> None:
        at = info_index(pfn + inner)
        raw.words[at] = change(int(raw.words[at]))

    return damage


def poke_free(field: int | None, change):
    """Change a field of a free block's struct page, or what the page is (None)."""

    def damage(raw: RawArena, _pfn: int) -> None:
        _, pfn = lone_block(raw)
        at = info_index(pfn) if field is None else page_index(raw, pfn) + field
        raw.words[at] = change(int(raw.words[at]))

    return damage


def flip_resident(raw: RawArena, pfn: int) -> None:
    raw.words[int(raw.words[H_RESMAP]) + (pfn >> 6)] ^= np.int64(1) << (pfn & 63)


def forget_last(raw: RawArena, _pfn: int) -> None:
    order, pfn = lone_block(raw)
    raw.words[z(Z_HEADS + order)] = pfn << 32


DAMAGE = {
    "a count of a list": (BAD_FREE_LIST, poke(z(Z_COUNTS + 1), 1)),
    "a lost head": (BAD_FREE_LIST, lambda raw, _: raw.words.__setitem__(z(Z_HEADS + lone_block(raw)[0]), 0)),
    "a lost tail": (BAD_FREE_LIST, forget_last),
    "a back link": (BAD_FREE_LIST, poke_free(PG_LINK, lambda link: link | 99)),
    "a listed block of another kind": (BAD_FREE_LIST, poke_free(None, lambda info: info ^ KIND_FREE ^ KIND_PAGES)),
    "a listed block of another order": (BAD_FREE_LIST, poke_free(None, lambda info: info ^ 1 << ORDER_SHIFT)),
    "the sum of free pages": (BAD_FREE_COUNT, poke(z(Z_FREE_PAGES), 1)),
    "two free buddies": (BAD_UNMERGED, split_by_hand),
    "the sum of allocated pages": (BAD_PAGE_SUM, poke(H_ALLOCATED_PAGES, -1)),
    "an end below the frontier": (BAD_PAGE_SUM, lambda raw, pfn: raw.words.__setitem__(z(Z_END_PFN), pfn)),
    "a limit below what is committed": (BAD_COMMITTED, lambda raw, pfn: raw.words.__setitem__(H_LIMIT_PAGES, 1)),  # noqa: ARG005
    "a block without a kind": (BAD_PAGE_STATE, poke_info(lambda info: KIND_NONE)),
    "a block of another zone": (BAD_PAGE_STATE, poke_info(lambda info: info | 1 << ZONE_SHIFT)),
    "a block inside a block": (BAD_PAGE_STATE, poke_info(lambda info: KIND_PAGES, inner=2)),
    "a block that is too long": (BAD_PAGE_STATE, poke_info(lambda info: info + (1 << ORDER_SHIFT))),
    "the sum of committed pages": (BAD_COMMITTED, poke(H_COMMITTED_PAGES, 1)),
    "a resident bit": (BAD_COMMITTED, flip_resident),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_walker_reports(what: str) -> None:
    code, damage = DAMAGE[what]
    raw, pfn = damaged_arena()
    damage(raw, pfn)
    assert validate_buddy(raw.words) == code


def test_a_free_page_is_no_kind_of_block(raw: RawArena) -> None:
    pfn = int(alloc_pages(raw.words, 2, 0))
    assert page_kind(raw, pfn) == KIND_PAGES
    assert [page_kind(raw, pfn + k) for k in (1, 2, 3)] == [KIND_NONE] * 3
    free_pages(raw.words, pfn, 2)
    assert page_kind(raw, pfn + 1) == KIND_NONE
