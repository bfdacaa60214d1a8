"""What a zone has free, beside a plain model of its pages: every block, both types, frontier and limit; and the text of it."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from kernels import cut_into_blocks, zone_pages, zone_word
from support import MIB, PAGE, RawArena

import realalloc as ra
from realalloc import zones
from realalloc.gfp import GFP_DMA, GFP_HIGH, GFP_KERNEL
from realalloc.mm.buddy import alloc_block_locked, free_block_locked, reach
from realalloc.mm.layout import (
    H_MOBILITY,
    H_VM_REFUSED_PAGES,
    KIND_SLAB,
    M_BLOCKS,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.watermark import set_marks

SHAPES = {
    "small": {"size": MIB, "max_order": 4},
    "odd": {"size": MIB + 5 * PAGE, "max_order": 3},
    "two zones": {"size": 2 * MIB, "max_order": 4, "dma": 37 * PAGE},
    "limited": {"size": MIB, "max_order": 4, "limit": 90 * PAGE},
    "grouped": {"size": 2 * MIB + 3 * PAGE, "max_order": 4},
}


def make(shape: str) -> RawArena:
    raw = RawArena(**SHAPES[shape], sheaves=False)
    reach(raw.words, ZONE_DMA, zone_pages(raw, ZONE_DMA))  # as where it is locked: all of it
    return raw


class Model:
    """Which pages of the zones are taken, kept beside the arena."""

    def __init__(self, raw: RawArena) -> None:
        self.raw = raw
        self.taken: dict[int, tuple[int, int]] = {}  # pfn: (pages, zone)

    def take(self, order: int, gfp: int) -> bool:
        pfn = int(alloc_pages(self.raw.words, order, gfp))
        if pfn > 0:
            self.taken[pfn] = 1 << order, ZONE_DMA if gfp & GFP_DMA else ZONE_NORMAL
        return pfn > 0

    def take_slab(self, order: int) -> None:
        pfn = int(alloc_block_locked(self.raw.words, ZONE_NORMAL, order, KIND_SLAB, 0))
        if pfn > 0:
            self.taken[pfn] = 1 << order, ZONE_NORMAL

    def free(self, pfn: int) -> None:
        del self.taken[pfn]
        free_block_locked(self.raw.words, pfn)

    def is_free(self, zone: int) -> list[bool]:
        start, end = (zone_word(self.raw, zone, name) for name in (Z_START_PFN, Z_END_PFN))
        free = [True] * (end - start)
        for pfn, (pages, _) in self.taken.items():
            if start <= pfn < end:
                free[pfn - start : pfn - start + pages] = [False] * pages
        return free

    def blocks(self, zone: int) -> set[tuple[int, int]]:
        start = zone_word(self.raw, zone, Z_START_PFN)
        return cut_into_blocks(self.is_free(zone), start, self.raw.plan.max_order)

    def check(self, zone: int) -> None:
        words, orders = self.raw.words, self.raw.plan.max_order + 1
        blocks = self.blocks(zone)
        counts = Counter(order for order, _ in blocks)
        assert zones.free_blocks(words, zone) == [counts[order] for order in range(orders)]
        free = sum(1 << order for order, _ in blocks)
        if zone == ZONE_NORMAL:
            used = sum(pages for pages, of in self.taken.values() if of == ZONE_NORMAL)
            limit = min(self.raw.plan.limit_pages, len(self.is_free(zone)))
            assert (zones.used_pages(words), zones.limit_pages(words)) == (used, limit)
            free = min(free, limit - used)
        assert zones.zone_free_pages(words, zone) == free
        most = max((1 << order for order, _ in blocks), default=0)
        assert zones.largest_free(words, zone) == min(most, 1 << free.bit_length() - 1 if free else 0) * PAGE
        self.check_types(zone, blocks)

    def check_types(self, zone: int, blocks: set[tuple[int, int]]) -> None:
        words, orders = self.raw.words, self.raw.plan.max_order + 1
        whole = zone_word(self.raw, zone, Z_PAGE_BLOCK_ORDER)
        table = int(words[H_MOBILITY]) + M_BLOCKS
        counts = Counter(order for order, pfn in blocks if order < whole and words[table + (pfn >> whole)] != 0)
        if whole == 0:
            counts = Counter(order for order, _ in blocks)
        assert zones.unmovable_blocks(words, zone) == [counts[order] for order in range(orders)]
        start, frontier, end = (zone_word(self.raw, zone, name) for name in (Z_START_PFN, Z_FRONTIER_PFN, Z_END_PFN))
        unmovable, movable = zones.page_blocks(words, zone)
        if whole:
            reached = {pfn >> whole for pfn in (start, *range(start, frontier))}
            assert unmovable == sum(words[table + block] != 0 for block in reached)
            assert unmovable + movable == len({pfn >> whole for pfn in range(start, end)})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_is_what_the_pages_say(shape: str) -> None:
    raw, rng = make(shape), random.Random(3)
    model = Model(raw)
    every = (ZONE_NORMAL, ZONE_DMA) if "dma" in SHAPES[shape] else (ZONE_NORMAL,)
    unmovable = set()
    for step in range(400):
        if step % 100 < 60 or not model.taken:
            gfp = GFP_KERNEL | (GFP_DMA if len(every) == 2 and rng.random() < 0.3 else 0)
            model.take(rng.choice((0, 0, 0, 1, 2, raw.plan.max_order)), gfp)
            if rng.random() < 0.2:
                model.take_slab(rng.choice((0, 1, 3)))
        else:
            model.free(rng.choice(list(model.taken)))
        for zone in every:
            model.check(zone)
        unmovable.add(zones.page_blocks(raw.words, ZONE_NORMAL)[0])
    assert len(unmovable) > (5 if shape == "grouped" else 0)
    for pfn in list(model.taken):
        model.free(pfn)
    raw.validate()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_zone_that_fills_page_by_page(shape: str) -> None:
    """The frontier at every place that it can have, and every page freed again with what is behind it free or not."""
    raw = make(shape)
    model = Model(raw)
    model.check(ZONE_NORMAL)
    while model.take(0, GFP_KERNEL):
        model.check(ZONE_NORMAL)
    assert zones.zone_free_pages(raw.words, ZONE_NORMAL) == zones.largest_free(raw.words, ZONE_NORMAL) == 0
    for pfn in sorted(model.taken, reverse=True)[::2] + sorted(model.taken)[::3]:
        if pfn in model.taken:
            model.free(pfn)
            model.check(ZONE_NORMAL)


@pytest.mark.parametrize("shape", ["odd", "grouped", "two zones"])
def test_every_set_of_free_pages_before_the_first_frontiers(shape: str) -> None:
    """The first pages of a zone, each taken or not: those that end at the frontier will merge with what is behind."""
    for count in range(1, 7):
        for wanted in itertools.product((0, 1), repeat=count):
            model = Model(make(shape))
            for _ in range(count):
                model.take_slab(0)  # those of a page block at the border of a zone are had for slabs alone
            for pfn, stays in zip(sorted(model.taken), wanted, strict=True):
                if not stays:
                    model.free(pfn)
            model.check(ZONE_NORMAL)


def test_pages_that_may_hold_memory_are_counted_and_bound() -> None:
    raw = make("limited")
    assert zones.zone_pages(raw.words, ZONE_NORMAL) == 90
    assert zones.dirty_pages(raw.words) == 0
    first, second = (int(alloc_pages(raw.words, order, GFP_KERNEL)) for order in (2, 3))
    assert zones.dirty_pages(raw.words) == 0
    assert free_pages(raw.words, first, 2) == 0
    assert zones.dirty_pages(raw.words) == 4
    assert free_pages(raw.words, second, 3) == 0
    assert zones.dirty_pages(raw.words) == 12
    two = make("two zones")
    assert zones.zone_pages(two.words, ZONE_DMA) == 37
    assert zones.zone_pages(two.words, ZONE_NORMAL) == two.pages - 37


def test_blocks_that_threads_keep_are_not_the_users() -> None:
    with ra.Arena("16MiB", decay=None) as arena:
        held = [arena.alloc_pages(order) for order in (0, 0, 1, 3)]
        assert zones.live_blocks(arena.words) == 4
        kept = zones.kept_blocks(arena.words)
        arena.free_pages(held.pop())
        arena.free_pages(held.pop(0))
        after = zones.kept_blocks(arena.words)
        assert [b - a for a, b in zip(kept, after, strict=True)] == [1, 0, 0, 1, *[0] * (len(kept) - 4)]
        assert zones.live_blocks(arena.words) == 2
        arena.trim()
        assert sum(zones.kept_blocks(arena.words)) == 0 and zones.live_blocks(arena.words) == 2
        held.clear()


def test_the_text_names_what_binds() -> None:
    raw = make("small")
    assert zones.shortage(raw.words, GFP_KERNEL | GFP_DMA).startswith("this arena has no locked zone")
    text = zones.shortage(raw.words, GFP_KERNEL)
    assert text.endswith("0 buffers leased to Python; free some, or raise the arena's size")
    free = raw.pages * PAGE // 1024
    assert text.startswith(f"{free} KiB of {free} KiB free in zone Normal, largest block 64 KiB, ")
    assert zones.shortage(make("limited").words, GFP_KERNEL).endswith("raise limit= or set_limit()")
    assert "of 148 KiB free in zone DMA" in zones.shortage(make("two zones").words, GFP_KERNEL | GFP_DMA)
    assert zones.shortage(make("two zones").words, GFP_KERNEL | GFP_DMA).endswith("or raise lock=")


def test_the_text_tells_scattered_pages_from_none() -> None:
    raw = make("small")
    pfns = [int(alloc_pages(raw.words, 0, GFP_KERNEL)) for _ in range(raw.pages)]
    for pfn in pfns[::2]:
        free_pages(raw.words, pfn, 0)
    half = len(pfns[::2])
    assert " but fragmented (extfrag index " in zones.shortage(raw.words, GFP_KERNEL, 2 * PAGE)
    assert f" but no {half} pages adjacent" in zones.shortage(raw.words, GFP_KERNEL, half * PAGE)
    for nbytes in (0, PAGE, (half + 1) * PAGE):  # one fits, or not even the sum would
        assert " but " not in zones.shortage(raw.words, GFP_KERNEL, nbytes)


def test_the_text_says_who_may_use_the_reserve() -> None:
    raw = make("small")
    assert "watermark" not in zones.shortage(raw.words, GFP_KERNEL, raw.pages * PAGE)
    set_marks(raw.words, ZONE_NORMAL, 41, 50, 60)
    inside = zones.shortage(raw.words, GFP_KERNEL, (raw.pages - 41) * PAGE)
    beyond = zones.shortage(raw.words, GFP_KERNEL, (raw.pages - 40) * PAGE)
    assert "watermark" not in inside
    assert "the rest is below the min watermark of 41 pages: GFP_ATOMIC may use some, or lower min_free=" in beyond
    assert "these flags may use 20, " in zones.shortage(raw.words, GFP_KERNEL | GFP_HIGH, (raw.pages - 20) * PAGE)


def test_the_text_of_a_refused_mapping_is_for_who_wanted_one() -> None:
    raw = make("small")
    raw.words[H_VM_REFUSED_PAGES] = 5
    text = zones.shortage(raw.words, GFP_KERNEL, mapped=True)
    assert "but the system refused to map 20 KiB of scattered pages side by side (mremap)" in text
    assert "; raise vm.max_map_count or ulimit -v, let a sandbox allow mremap, or ask for 64 KiB at most" in text
    assert "mremap" not in zones.shortage(raw.words, GFP_KERNEL) + zones.shortage(raw.words, GFP_KERNEL, PAGE)
    raw.words[H_VM_REFUSED_PAGES] = 0
    assert "mremap" not in zones.shortage(raw.words, GFP_KERNEL, mapped=True)
