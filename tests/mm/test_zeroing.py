"""What shall read as zero does: written over or given back, whoever had it; the books and the neighbours stay as they are."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest
from kernels import area_record, assert_pristine, holds, is_committed, is_zero, octets, pattern, trim, write, zone_pages
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.buddy import alloc_block_locked, free_block_locked, reach
from realalloc.mm.decay import set_decay
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import (
    DECAY,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_COMMITTED_PAGES,
    H_HUGEMAP,
    H_LIMIT_PAGES,
    HUGE_ALWAYS,
    HUGE_AUTO,
    HUGE_NEVER,
    HUGE_PAGES,
    KIND_PAGES,
    V_FIRST,
    Y_NS,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages
from realalloc.mm.pages import clear_resident_locked, set_resident_locked
from realalloc.mm.residency import RES_COMMITTED, RES_PAGES, RES_STRAY, RES_WINDOW, RESIDENCY_WORDS, residency
from realalloc.mm.resize import krealloc_in_place
from realalloc.mm.zeroing import zero_memory

MODES = pytest.mark.parametrize("huge", [HUGE_NEVER, HUGE_AUTO, HUGE_ALWAYS])
UNIT = HUGE_PAGES * PAGE


def make(size: int, *, dma: int = 0, limit: int | None = None, sheaves: bool = True, huge: int) -> RawArena:
    """Make an arena whose memory may go back, in a long time."""
    raw = RawArena(size, 10, dma, limit, sheaves=sheaves, huge=huge)
    set_decay(raw.words, 1 << 50)
    return raw


def is_huge(raw: RawArena, unit: int) -> bool:
    flag = int(raw.words[raw.words[H_HUGEMAP] + unit // 64]) >> unit % 64 & 1
    return bool(flag)


def take(raw: RawArena, order: int, zero: int = 0, zone: int = ZONE_NORMAL) -> int:
    return int(alloc_block_locked(raw.words, zone, order, KIND_PAGES, zero))


def agrees(raw: RawArena) -> None:
    """The walkers pass, and nothing is resident that the books do not have."""
    raw.validate()
    out = np.zeros(RESIDENCY_WORDS, np.int64)
    residency(raw.words, out)
    assert out[RES_STRAY] == 0
    assert out[RES_PAGES] + out[RES_WINDOW] <= out[RES_COMMITTED] == raw.words[H_COMMITTED_PAGES]


def advise(raw: RawArena, huge: int) -> None:
    """Advise the system as for an arena: where khugepaged finds metadata and pages in one unit it makes all of it resident."""
    raw.memory.advise_huge(0, raw.plan.window_start_bytes, wanted=huge == HUGE_ALWAYS)
    raw.memory.advise_huge(0, raw.plan.meta_pages * PAGE, wanted=False)


def resident(raw: RawArena, offset: int, nbytes: int) -> int:
    return int(raw.memory.resident_pages(offset, nbytes))


def fill(raw: RawArena, offset: int, nbytes: int) -> None:
    octets(raw, offset, nbytes)[:] = 7


def test_only_pages_that_may_hold_memory_are_zeroed() -> None:
    raw = RawArena(MIB, 4)
    pfn = int(alloc_pages(raw.words, 4, 0))
    write(raw, pfn * PAGE, 16 * PAGE, 8)
    clear_resident_locked(raw.words, np.int64(pfn + 3), 2)  # the map says that these two hold nothing
    assert zero_memory(raw.words, pfn * PAGE, pfn, 16) == 0
    assert is_zero(raw, pfn * PAGE, 3 * PAGE)
    assert is_zero(raw, (pfn + 5) * PAGE, 11 * PAGE)
    assert octets(raw, (pfn + 3) * PAGE, 2 * PAGE).any()
    set_resident_locked(raw.words, np.int64(pfn + 3), 2)
    free_pages(raw.words, pfn, 4)
    trim(raw)
    assert_pristine(raw)


def test_zeroing_pages_that_hold_nothing_touches_nothing() -> None:
    raw = RawArena(MIB, 4)
    pfn = raw.plan.end_pfn - 20
    assert zero_memory(raw.words, pfn * PAGE, pfn, 20) == 0
    assert resident(raw, pfn * PAGE, 20 * PAGE) == 0
    assert zone_pages(raw) > 20


@pytest.mark.parametrize("order", [9, 10])
def test_a_block_of_huge_units_is_given_back_and_not_touched(order: int) -> None:
    raw = make(32 * MIB, huge=HUGE_AUTO)
    pfn = int(alloc_pages(raw.words, order, 0))
    if not is_huge(raw, pfn // HUGE_PAGES):
        pytest.skip("this kernel has no huge pages")
    for _ in range(3):  # from a sheaf, or from the buddy
        fill(raw, pfn * PAGE, PAGE << order)
        committed = int(raw.words[H_COMMITTED_PAGES])
        free_pages(raw.words, pfn, order)
        assert alloc_pages(raw.words, order, GFP_ZERO_BIT) == pfn
        assert resident(raw, pfn * PAGE, PAGE << order) == 0
        assert raw.words[H_COMMITTED_PAGES] == committed
        assert is_huge(raw, pfn // HUGE_PAGES)
        agrees(raw)
        assert is_zero(raw, pfn * PAGE, PAGE << order)
    free_pages(raw.words, pfn, order)
    assert_pristine(raw)


@pytest.mark.parametrize("why", ["small pages", "decay off", "less than a unit"])
def test_what_costs_more_to_fault_in_or_shall_stay_is_written_over(why: str) -> None:
    raw = make(32 * MIB, huge=HUGE_NEVER if why == "small pages" else HUGE_AUTO)
    if why == "decay off":
        set_decay(raw.words, -1)
    order = 8 if why == "less than a unit" else 10
    pfn = int(alloc_pages(raw.words, order, 0))
    fill(raw, pfn * PAGE, PAGE << order)
    free_pages(raw.words, pfn, order)
    assert alloc_pages(raw.words, order, GFP_ZERO_BIT) == pfn
    assert resident(raw, pfn * PAGE, PAGE << order) == 1 << order
    assert is_zero(raw, pfn * PAGE, PAGE << order)
    free_pages(raw.words, pfn, order)
    assert_pristine(raw)


def test_units_of_small_pages_become_huge_ones_and_the_limit_admits_no_more() -> None:
    raw = make(32 * MIB, sheaves=False, huge=HUGE_AUTO)
    singles = []
    while not singles or singles[-1] % 1024 != 1023 or singles[-1] < 2048:
        singles.append(take(raw, 0))
        fill(raw, singles[-1] * PAGE, PAGE)
    for single in singles:
        free_block_locked(raw.words, single)
    committed = int(raw.words[H_COMMITTED_PAGES])
    raw.words[H_LIMIT_PAGES] = committed
    pfn = take(raw, 10, 1)
    assert pfn in singles
    assert raw.words[H_COMMITTED_PAGES] == committed
    assert resident(raw, pfn * PAGE, 2 * UNIT) == 0
    assert is_zero(raw, pfn * PAGE, 2 * UNIT)
    agrees(raw)
    free_block_locked(raw.words, pfn)
    raw.words[H_LIMIT_PAGES] = 1 << 40
    assert_pristine(raw)


@pytest.mark.parametrize("pages", [300, 447, 700])
def test_a_unit_that_a_request_does_not_fill_stays_small_and_is_written_over(pages: int) -> None:
    raw = make(32 * MIB, sheaves=False, huge=HUGE_AUTO)
    singles = []
    while not singles or singles[-1] % 1024 != 1023 or singles[-1] < 2048:
        singles.append(take(raw, 0))
        fill(raw, singles[-1] * PAGE, PAGE)
    for single in singles:
        free_block_locked(raw.words, single)
    committed = int(raw.words[H_COMMITTED_PAGES])
    offset = int(kmalloc(raw.words, pages * PAGE, GFP_ZERO_BIT))
    units = (pages + HUGE_PAGES - 1) // HUGE_PAGES
    assert raw.words[H_COMMITTED_PAGES] == committed
    assert resident(raw, offset, units * UNIT) == HUGE_PAGES  # a unit before the last one was given back
    assert not is_huge(raw, offset // UNIT + units - 1)
    assert is_zero(raw, offset, units * UNIT)
    agrees(raw)
    assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_a_locked_zone_keeps_its_memory() -> None:
    raw = make(32 * MIB, dma=16 * MIB, sheaves=False, huge=HUGE_AUTO)
    reach(raw.words, ZONE_DMA, zone_pages(raw, ZONE_DMA))  # all of it is resident, as where it is locked
    pfn = take(raw, 10, 0, ZONE_DMA)
    fill(raw, pfn * PAGE, 2 * UNIT)
    free_block_locked(raw.words, pfn)
    again = int(alloc_pages(raw.words, 10, GFP_ZERO_BIT | GFP_DMA_BIT))
    assert again == pfn
    assert resident(raw, pfn * PAGE, 2 * UNIT) == 1024
    assert is_zero(raw, pfn * PAGE, 2 * UNIT)


@pytest.mark.parametrize("unit", [0, 1])
@pytest.mark.parametrize("small", [False, True])
def test_what_the_system_does_not_take_is_written_over(unit: int, small: bool) -> None:
    """MADV_DONTNEED fails with EINVAL over pages that somebody has locked, perhaps half-way."""
    raw = make(32 * MIB, sheaves=False, huge=HUGE_AUTO)
    pfn = take(raw, 10)
    if small:
        raw.words[raw.words[H_HUGEMAP] + pfn // HUGE_PAGES // 64] = 0
    fill(raw, pfn * PAGE, 2 * UNIT)
    libc = ctypes.CDLL(None, use_errno=True)
    locked = ctypes.c_void_p(raw.memory.address + (pfn + unit * HUGE_PAGES + 100) * PAGE), ctypes.c_size_t(PAGE)
    if libc.mlock(*locked) != 0:
        pytest.skip("RLIMIT_MEMLOCK is too small")
    free_block_locked(raw.words, pfn)
    assert take(raw, 10, 1) == pfn
    assert is_zero(raw, pfn * PAGE, 2 * UNIT)
    raw.validate()
    libc.munlock(*locked)
    free_block_locked(raw.words, pfn)
    assert_pristine(raw)


@MODES
def test_an_area_that_is_handed_out_again_holds_nothing_in_its_huge_units(huge: int) -> None:
    raw = make(128 * MIB, huge=huge)
    advise(raw, huge)
    nbytes = 9 * MIB + 5 * PAGE
    offset = int(kmalloc(raw.words, nbytes, 0))
    neighbour = int(kmalloc(raw.words, nbytes, 0))
    pfn = int(raw.words[area_record(raw, offset) + V_FIRST])
    given = huge == HUGE_ALWAYS or (huge == HUGE_AUTO and is_huge(raw, pfn // HUGE_PAGES))
    fill(raw, offset, nbytes)
    fill(raw, neighbour, nbytes)
    for _ in range(3):
        committed = int(raw.words[H_COMMITTED_PAGES])
        kfree(raw.words, offset)
        assert kmalloc(raw.words, nbytes, GFP_ZERO_BIT) == offset
        assert raw.words[H_COMMITTED_PAGES] == committed
        assert resident(raw, offset, 8 * MIB) == (0 if given else 8 * MIB // PAGE)
        assert resident(raw, offset + 8 * MIB, MIB + 5 * PAGE) == MIB // PAGE + 5  # small pages: a memset
        agrees(raw)
        assert is_zero(raw, offset, nbytes)
        assert (octets(raw, neighbour, nbytes) == 7).all()
        fill(raw, offset, nbytes)
        agrees(raw)
    kfree(raw.words, offset)
    kfree(raw.words, neighbour)
    assert_pristine(raw)


def test_an_area_whose_units_lie_askew_is_written_over() -> None:
    raw = make(128 * MIB, huge=HUGE_AUTO)
    offset = int(kmalloc(raw.words, 5 * MIB, 0))
    moved = int(krealloc_in_place(raw.words, offset, 13 * MIB))  # blocks of 4 MiB, 5 MiB behind the beginning
    assert moved > 0
    fill(raw, moved, 13 * MIB)
    kfree(raw.words, moved)
    assert kmalloc(raw.words, 13 * MIB, GFP_ZERO_BIT) == moved
    assert resident(raw, moved + 5 * MIB, 8 * MIB) == 8 * MIB // PAGE
    assert is_zero(raw, moved, 13 * MIB)
    agrees(raw)
    kfree(raw.words, moved)
    assert_pristine(raw)


@MODES
@pytest.mark.parametrize("limit", [0, 24 * MIB])
def test_a_random_life_of_zeroes(huge: int, limit: int) -> None:
    rng = random.Random(huge)
    raw = make(40 * MIB, limit=limit or None, huge=huge)
    advise(raw, huge)
    live: dict[int, tuple[int, int]] = {}
    for step in range(1200 if JIT else 120):
        if step % 50 == 0:
            raw.words[DECAY + Y_NS] = rng.choice((1 << 40, 1 << 40, 0, -1))
        if rng.random() < 0.55:
            size = int(rng.choice((100, 20_000, 300_000, 2_000_000, 4_000_000, 9_000_000)) * rng.uniform(0.3, 1.1))
            zero = rng.choice((0, GFP_ZERO_BIT))
            if rng.random() < 0.2:
                pfn = int(alloc_run(raw.words, -(-size // PAGE), zero))
                offset = pfn * PAGE if pfn > 0 else pfn
            else:
                offset = int(kmalloc(raw.words, size, zero))
            if offset == ENOMEM:
                continue
            assert offset > 0
            if zero:
                assert is_zero(raw, offset, size)
            octets(raw, offset, size)[:] = np.resize(pattern(step, min(size, MIB)), size)
            live[offset] = size, step
        elif live:
            offset = rng.choice(sorted(live))
            size, seed = live.pop(offset)
            assert holds(raw, offset, min(size, MIB), seed)
            assert kfree(raw.words, offset) == 0
        if step % 40 == 0:
            agrees(raw)
    for offset, (size, seed) in live.items():
        assert np.array_equal(octets(raw, offset, size), np.resize(pattern(seed, min(size, MIB)), size))
        kfree(raw.words, offset)
    assert_pristine(raw)
    assert not any(is_committed(raw, pfn) for pfn in range(raw.plan.end_pfn))
