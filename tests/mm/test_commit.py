"""What may hold memory: the equation of the dirty pages, the limit, purging by order, huge units; against a plain model."""

from __future__ import annotations

import ctypes
import random

import pytest
from kernels import (
    assert_pristine,
    dirty_pages,
    free_blocks,
    holds,
    is_committed,
    is_zero,
    octets,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.buddy import alloc_block_locked, alloc_part_locked, free_block_locked
from realalloc.mm.commit import (
    DROP_PAGES,
    LOOKS,
    MIN_RUN_ORDER,
    drop_locked,
    purge,
    purge_list_locked,
    purge_locked,
    set_limit,
)
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import (
    DECAY,
    ENOMEM,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_HUGEMAP,
    H_LIMIT_PAGES,
    HUGE_ALWAYS,
    HUGE_AUTO,
    HUGE_PAGES,
    KIND_PAGES,
    Y_CLEAN,
    Y_NS,
    Y_SMALL,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.mobility import ungroup
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages
from realalloc.mm.vmalloc import vfree_locked, vmalloc_locked

ALL = 1 << 40
MODES = pytest.mark.parametrize("huge", [0, HUGE_AUTO, HUGE_ALWAYS])


def huge_bit(raw: RawArena, unit: int) -> int:
    return int(raw.words[raw.words[H_HUGEMAP] + unit // 64]) >> unit % 64 & 1


def check(raw: RawArena) -> None:
    """Every walker, and the equations at the head of commit.py."""
    raw.validate()
    words = raw.words
    start, end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
    assert words[H_COMMITTED_PAGES] == sum(is_committed(raw, pfn) for pfn in range(start, end))
    assert words[H_COMMITTED_PAGES] - words[H_ALLOCATED_PAGES] == len(dirty_pages(raw))
    assert words[H_COMMITTED_PAGES] <= words[H_LIMIT_PAGES]
    small = [pfn + k for order, pfn in free_blocks(raw) if order < MIN_RUN_ORDER for k in range(1 << order)]
    assert words[DECAY + Y_SMALL] == sum(is_committed(raw, pfn) for pfn in small)
    for order, pfn in free_blocks(raw):
        if words[DECAY + Y_CLEAN] >> order & 1:
            assert not any(is_committed(raw, pfn + k) for k in range(1 << order))
    frontier = zone_word(raw, 0, Z_FRONTIER_PFN)
    assert not any(is_committed(raw, pfn) for pfn in range(frontier, end))


def take(raw: RawArena, order: int) -> int:
    return int(alloc_block_locked(raw.words, ZONE_NORMAL, order, KIND_PAGES, 0))


def dirty_arena(size: int = MIB, max_order: int = 4, huge: int = 0) -> RawArena:
    """Make an arena all of whose pages are free and hold bytes."""
    raw = RawArena(size, max_order, sheaves=False, huge=huge)
    blocks = []
    while (pfn := take(raw, 0)) > 0:
        octets(raw, pfn * PAGE, 8)[:] = 7
        blocks.append(pfn)
    assert len(blocks) == zone_pages(raw)
    for pfn in blocks:
        free_block_locked(raw.words, pfn)
    return raw


@pytest.mark.parametrize("order", range(5))
def test_every_limit_admits_exactly_its_pages(order: int) -> None:
    for limit in range(70):
        raw = RawArena(MIB, 4, limit=limit * PAGE, sheaves=False)
        assert raw.words[H_LIMIT_PAGES] == min(limit, zone_pages(raw))
        taken = []
        while (pfn := take(raw, order)) > 0:
            taken.append(pfn)
        assert pfn == ENOMEM
        assert len(taken) == limit >> order
        check(raw)
        for pfn in taken[::2]:  # what is free gives its memory up for blocks elsewhere
            free_block_locked(raw.words, pfn)
        singles = []
        while (pfn := take(raw, 0)) > 0:
            singles.append(pfn)
        assert len(singles) + (len(taken) - len(taken[::2]) << order) == limit
        check(raw)


@MODES
def test_a_random_life_under_a_limit_that_moves(huge: int) -> None:
    rng = random.Random(huge)
    raw = RawArena(8 * MIB, 10, limit=3 * MIB, sheaves=False, huge=huge)
    live: dict[int, int] = {}
    for step in range(2500 if JIT else 250):
        what = rng.random()
        if what < 0.5:
            order = min(int(rng.expovariate(0.5)), 9)
            pfn = take(raw, order)
            used = int(raw.words[H_ALLOCATED_PAGES])
            if pfn > 0:
                live[pfn] = order
                write(raw, pfn * PAGE, PAGE << order, pfn)
            else:  # refused by the limit, or for want of a block
                room = raw.words[H_LIMIT_PAGES] - used
                assert room < 1 << order or all(k < order for k, _ in free_blocks(raw))
        elif what < 0.85 and live:
            pfn = rng.choice(sorted(live))
            assert holds(raw, pfn * PAGE, PAGE << live.pop(pfn), pfn)
            free_block_locked(raw.words, pfn)
        elif what < 0.95:
            before = len(dirty_pages(raw))
            wanted = rng.randrange(200)
            gone = int(purge(raw.words, wanted, rng.choice((0, 4)), step % 2))
            assert before - gone == len(dirty_pages(raw))
        else:
            limit = rng.randrange(zone_pages(raw) + 10)
            allowed = limit >= raw.words[H_ALLOCATED_PAGES]
            assert set_limit(raw.words, limit) == (0 if allowed else ENOMEM)
        if step % 10 == 0:
            check(raw)
    for pfn, order in live.items():
        assert holds(raw, pfn * PAGE, PAGE << order, pfn)
        free_block_locked(raw.words, pfn)
    assert set_limit(raw.words, ALL) == 0
    check(raw)
    assert_pristine(raw)


@pytest.mark.parametrize("pages", [1, 7, 64])
def test_the_limit_holds_for_runs_and_areas(pages: int) -> None:
    raw = RawArena(MIB, 4, limit=64 * PAGE, sheaves=False)
    runs, areas = [], []
    while (pfn := int(alloc_run(raw.words, pages, 0))) > 0:
        runs.append(pfn)
    assert len(runs) == 64 // pages
    for pfn in runs:
        free_pages(raw.words, pfn, -1)
    while (offset := int(vmalloc_locked(raw.words, pages * PAGE, 0))) > 0:
        areas.append(offset)
        write(raw, offset, pages * PAGE, offset)
    assert len(areas) == min(64 // pages, 63)  # granules of the window
    raw.validate()
    for offset in areas:
        assert holds(raw, offset, pages * PAGE, offset)
        vfree_locked(raw.words, offset)
    assert_pristine(raw)


def test_purging_gives_back_what_is_wanted_the_largest_blocks_first() -> None:
    for wanted in (1, 15, 16, 17, 64, 100, ALL):
        raw = dirty_arena(2 * MIB, 6)
        before = len(dirty_pages(raw))
        gone = int(purge_locked(raw.words, wanted, 0, 0))
        assert min(wanted, before) <= gone <= min(wanted + 15, before)
        assert len(dirty_pages(raw)) == before - gone
        check(raw)
        clean = {p for order, pfn in free_blocks(raw) for p in range(pfn, pfn + (1 << order))} - dirty_pages(raw)
        assert all(is_zero(raw, pfn * PAGE, PAGE) for pfn in clean)
        assert all(octets(raw, pfn * PAGE, 1)[0] == 7 for pfn in dirty_pages(raw))


def test_blocks_below_the_lowest_order_keep_their_memory() -> None:
    raw = dirty_arena()
    kept = []
    while (pfn := take(raw, 0)) > 0:
        kept.append(pfn)
    for pfn in kept[::2]:  # single pages: no two free ones are buddies, but at the very ends
        free_block_locked(raw.words, pfn)
    before = dirty_pages(raw)
    assert purge_locked(raw.words, ALL, 4, 0) == 0
    assert dirty_pages(raw) == before
    assert purge_locked(raw.words, ALL, 0, 0) == len(before)
    assert dirty_pages(raw) == set()
    check(raw)


def test_a_step_is_bounded_and_what_was_looked_at_goes_to_the_end() -> None:
    raw = RawArena(16 * MIB, 4, sheaves=False)
    ungroup(raw.words)  # one list of an order
    blocks = []
    while (pfn := take(raw, 0)) > 0:
        blocks.append(pfn)
    for pfn in blocks:
        if pfn % 2:
            free_block_locked(raw.words, pfn)
    before = len(dirty_pages(raw))
    seen = gone = 0
    while gone < before:
        done = int(purge_list_locked(raw.words, 0, 0, ALL, 0))
        assert 0 < done & 0xFFFFFFFF <= DROP_PAGES
        assert done >> 32 <= LOOKS
        seen += done >> 32
        gone += done & 0xFFFFFFFF
    assert gone == before
    assert seen < gone + LOOKS  # none was looked at twice before all were looked at once
    assert dirty_pages(raw) == set()
    check(raw)


def test_without_decay_memory_goes_back_with_the_free() -> None:
    raw = RawArena(4 * MIB, 6, sheaves=False)
    raw.words[DECAY + Y_NS] = 0
    blocks = [take(raw, 2) for _ in range(64)]
    for pfn in blocks:
        write(raw, pfn * PAGE, 4 * PAGE, pfn)
    for pfn in blocks[1:]:
        free_block_locked(raw.words, pfn)
        assert len(dirty_pages(raw)) < 16 + 16  # less than what is worth a call, on either side of what is in use
    free_block_locked(raw.words, blocks[0])
    assert len(dirty_pages(raw)) < 16
    check(raw)
    assert_pristine(raw)


def test_a_whole_unit_comes_with_its_first_page_where_all_are_huge() -> None:
    raw = RawArena(16 * MIB, 4, sheaves=False, huge=HUGE_ALWAYS)
    start, end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
    while (pfn := take(raw, 4)) < HUGE_PAGES:  # before the first whole unit pages come one by one
        assert raw.words[H_COMMITTED_PAGES] <= pfn + 16 - start
    unit = pfn // HUGE_PAGES
    assert all(is_committed(raw, p) for p in range(unit * HUGE_PAGES, (unit + 1) * HUGE_PAGES))
    assert zone_word(raw, 0, Z_FRONTIER_PFN) == (unit + 1) * HUGE_PAGES
    check(raw)
    while take(raw, 0) > 0:
        pass
    assert raw.words[H_COMMITTED_PAGES] == end - start
    check(raw)


def test_a_part_of_a_huge_unit_goes_only_when_asked() -> None:
    raw = RawArena(16 * MIB, 10, sheaves=False, huge=HUGE_AUTO)
    big = take(raw, 9)
    unit = big // HUGE_PAGES
    write(raw, big * PAGE, HUGE_PAGES * PAGE, 3)
    thp = huge_bit(raw, unit)  # 0 where the kernel has no huge pages: then all is as with small ones
    free_block_locked(raw.words, big)
    parts = [take(raw, 5)]
    while parts[-1] // HUGE_PAGES != unit:
        parts.append(take(raw, 5))
    before = {pfn for pfn in dirty_pages(raw) if pfn // HUGE_PAGES == unit}
    purge(raw.words, ALL, 4, 0)
    assert {pfn for pfn in dirty_pages(raw) if pfn // HUGE_PAGES == unit} == (before if thp else set())
    assert huge_bit(raw, unit) == thp
    purge(raw.words, ALL, 4, 1)
    assert {pfn for pfn in dirty_pages(raw) if pfn // HUGE_PAGES == unit} == set()
    assert huge_bit(raw, unit) == 0
    check(raw)
    for pfn in parts:
        free_block_locked(raw.words, pfn)
    assert_pristine(raw)


def test_a_whole_huge_unit_goes_by_itself() -> None:
    raw = RawArena(16 * MIB, 10, sheaves=False, huge=HUGE_AUTO)
    big = take(raw, 10)
    write(raw, big * PAGE, 16, 3)
    free_block_locked(raw.words, big)
    assert purge(raw.words, ALL, 4, 0) == 2 * HUGE_PAGES
    assert huge_bit(raw, big // HUGE_PAGES) == huge_bit(raw, big // HUGE_PAGES + 1) == 0
    check(raw)
    assert_pristine(raw)


@pytest.mark.parametrize("eighths", range(1, 17))
@pytest.mark.parametrize("above", [-1, 0, 1])
def test_units_are_huge_where_a_request_leaves_no_more_than_an_eighth_of_them(eighths: int, above: int) -> None:
    raw = RawArena(16 * MIB, 10, sheaves=False, huge=HUGE_AUTO)
    whole = take(raw, 9)
    thp = huge_bit(raw, whole // HUGE_PAGES)
    asked = min(max(eighths * HUGE_PAGES // 8 + above, 1), 2 * HUGE_PAGES)
    order = max(9, (asked - 1).bit_length())
    pfn = int(alloc_part_locked(raw.words, ZONE_NORMAL, order, KIND_PAGES, 0, asked))
    units = [min(asked - k * HUGE_PAGES, HUGE_PAGES) for k in range(1 << order - 9)]
    assert [huge_bit(raw, pfn // HUGE_PAGES + k) for k in range(1 << order - 9)] == [
        thp if 8 * filled >= 7 * HUGE_PAGES else 0 for filled in units
    ]
    assert all(is_committed(raw, p) for p in range(pfn, pfn + (1 << order)))  # all of the block may be written
    check(raw)
    for block in (whole, pfn):
        free_block_locked(raw.words, block)
    assert_pristine(raw)


@pytest.mark.parametrize("sheaves", [False, True])
@pytest.mark.parametrize("pages", [257, 300, 447, 513, 900])
def test_what_a_request_does_not_ask_for_is_not_resident(pages: int, sheaves: bool) -> None:
    raw = RawArena(16 * MIB, 10, sheaves=sheaves, huge=HUGE_AUTO)
    offset = int(kmalloc(raw.words, pages * PAGE, 0))
    block = 1 << (pages - 1).bit_length()
    assert raw.memory.resident_pages(offset, block * PAGE) == 0
    octets(raw, offset, pages * PAGE)[:] = 7
    assert raw.memory.resident_pages(offset, block * PAGE) == pages
    octets(raw, offset, block * PAGE)[-1] = 7  # ksize() says that it may
    assert raw.memory.resident_pages(offset, block * PAGE) == pages + 1
    check(raw)
    assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_under_the_limit_a_huge_unit_is_no_more_than_its_pages() -> None:
    raw = RawArena(16 * MIB, 10, limit=MIB, sheaves=False, huge=HUGE_ALWAYS)
    first = zone_word(raw, 0, Z_START_PFN)
    taken = []
    while (pfn := take(raw, 0)) > 0:
        taken.append(pfn)
    assert len(taken) == MIB // PAGE
    assert min(taken) >= first
    check(raw)


@pytest.mark.parametrize("pages", [1, 5, 16])
def test_memory_that_the_system_keeps_stays_in_the_books(pages: int) -> None:
    """MADV_DONTNEED fails with EINVAL over pages that somebody has locked."""
    raw = dirty_arena()
    libc = ctypes.CDLL(None, use_errno=True)
    order, pfn = max(free_blocks(raw))
    address = ctypes.c_void_p(raw.memory.address + pfn * PAGE)
    if libc.mlock(address, ctypes.c_size_t(pages * PAGE)) != 0:
        pytest.skip("RLIMIT_MEMLOCK is too small")
    before = dirty_pages(raw)
    assert drop_locked(raw.words, pfn, 1 << order, 1) == 0
    assert dirty_pages(raw) == before
    gone = int(purge(raw.words, ALL, 0, 1))
    assert dirty_pages(raw) == set(range(pfn, pfn + (1 << order)))
    assert gone == len(before) - (1 << order)
    check(raw)
    assert set_limit(raw.words, (1 << order) - 1) == ENOMEM
    assert set_limit(raw.words, 1 << order) == 0
    assert take(raw, order) == pfn  # nothing else may be committed, but what is can be used
    assert alloc_pages(raw.words, 0, 0) == ENOMEM
    free_block_locked(raw.words, pfn)
    libc.munlock(address, ctypes.c_size_t(pages * PAGE))
    assert set_limit(raw.words, ALL) == 0
    assert_pristine(raw)


def test_at_the_limit_clean_blocks_are_looked_at_once() -> None:
    raw = RawArena(16 * MIB, 4, limit=8 * MIB, sheaves=False)
    blocks = [take(raw, 2) for _ in range(8 * MIB // PAGE // 4)]
    for pfn in blocks[::2]:
        free_block_locked(raw.words, pfn)
    assert purge_locked(raw.words, ALL, 0, 1) > 0
    assert purge_locked(raw.words, ALL, 0, 1) == 0
    orders = {order for order, _ in free_blocks(raw)}
    assert all(raw.words[DECAY + Y_CLEAN] >> order & 1 for order in orders)
    check(raw)
    free_block_locked(raw.words, blocks[1])
    assert purge_locked(raw.words, ALL, 0, 1) == 4
    check(raw)
