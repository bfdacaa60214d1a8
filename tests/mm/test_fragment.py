"""The survey of free memory against a plain model of it, and against what the allocators then really do."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from checks import some
from support import MIB, PAGE, RawArena

from realalloc import zones
from realalloc.mm import fragment
from realalloc.mm.fragment import F_BLOCKS, F_EXTFRAG, F_FREE_PAGES, F_RUN_PAGES, F_UNUSABLE, F_WORDS, O_CACHES, O_ZONES
from realalloc.mm.kmalloc import kfree, vmalloc
from realalloc.mm.layout import (
    GFP_DMA_BIT,
    H_MAX_CACHES,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages


def survey(raw: RawArena) -> Any:
    out = np.full(O_CACHES + fragment.W_WORDS * int(raw.words[H_MAX_CACHES]), -9, np.int64)
    assert fragment.survey(raw.words, out) == 0
    return out


def zone_word(raw: RawArena, zone: int, name: int) -> int:
    return int(raw.words[ZONES + zone * ZONE_WORDS + name])


class Model:
    """A zone as a set of free pages."""

    def __init__(self, free: set[int], start: int, limit: int, max_order: int) -> None:
        self.free, self.start, self.limit, self.max_order = free, start, limit, max_order

    def blocks(self) -> list[int]:
        """Count the largest aligned blocks that are free."""
        counts = [0] * (self.max_order + 1)
        left = set(self.free)
        for order in range(self.max_order, -1, -1):
            size = 1 << order
            for pfn in range(0, self.limit, size):
                block = set(range(pfn, pfn + size))
                if block <= left:
                    counts[order] += 1
                    left -= block
        return counts

    def extfrag(self, order: int) -> int:
        """__fragmentation_index, line by line."""
        counts = self.blocks()
        total = sum(counts)
        suitable = sum(count << (k - order) for k, count in enumerate(counts) if k >= order)
        if total == 0:
            return 0
        if suitable:
            return -1000
        return 1000 - (1000 + len(self.free) * 1000 // (1 << order)) // total

    def unusable(self, order: int) -> int:
        """unusable_free_index."""
        usable = sum(count << k for k, count in enumerate(self.blocks()) if k >= order)
        return (len(self.free) - usable) * 1000 // len(self.free) if self.free else 1000

    def run(self) -> int:
        """The longest run: free pages one behind the other."""
        best = length = 0
        for pfn in range(self.start, self.limit):
            length = length + 1 if pfn in self.free else 0
            best = max(best, length)
        return best


def compare(raw: RawArena, zone: int, free: set[int], max_order: int) -> None:
    out = survey(raw)
    row = out[O_ZONES + zone * F_WORDS : O_ZONES + (zone + 1) * F_WORDS].tolist()
    model = Model(free, zone_word(raw, zone, Z_START_PFN), zone_word(raw, zone, Z_END_PFN), max_order)
    orders = range(max_order + 1)
    assert row[F_BLOCKS : F_BLOCKS + max_order + 1] == model.blocks()
    assert zones.free_blocks(raw.words, zone) == model.blocks()
    assert row[F_EXTFRAG : F_EXTFRAG + max_order + 1] == [model.extfrag(order) for order in orders]
    assert row[F_UNUSABLE : F_UNUSABLE + max_order + 1] == [model.unusable(order) for order in orders]
    assert (row[F_FREE_PAGES], row[F_RUN_PAGES]) == (len(free), model.run())


@pytest.mark.parametrize("max_order", [0, 1, 2, 3])
@pytest.mark.parametrize("shift", [1, 2, 3] if some(1, 0) else [1])
def test_every_pattern_of_free_pages_is_as_the_model_says(max_order: int, shift: int) -> None:
    """Each set of free pages, in front of a frontier at each place that it can be, with pages behind it or none."""
    pages = some(8, 5)
    for limit in (pages, pages + 3):
        for reached in range(1, pages + 1, 2):
            raw = RawArena(MIB // 4, max_order, shift * PAGE, sheaves=False)
            raw.words[ZONES + Z_END_PFN] = raw.words[ZONES + Z_START_PFN] + limit
            for _ in range(reached):
                alloc_pages(raw.words, 0, 0)
            start, frontier = (zone_word(raw, ZONE_NORMAL, name) for name in (Z_START_PFN, Z_FRONTIER_PFN))
            for _ in range(frontier - start - reached):
                alloc_pages(raw.words, 0, 0)
            assert zone_word(raw, ZONE_NORMAL, Z_FRONTIER_PFN) == frontier
            behind = set(range(frontier, start + limit))
            for mask in range(1 << (frontier - start)):
                free = {start + k for k in range(frontier - start) if mask >> k & 1}
                for pfn in free:
                    free_pages(raw.words, pfn, 0)
                compare(raw, ZONE_NORMAL, free | behind, max_order)
                for _ in free:
                    alloc_pages(raw.words, 0, 0)
            raw.validate()


@pytest.mark.parametrize("seed", range(some(12, 2)))
def test_the_longest_run_can_be_had_and_no_longer_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(some(30, 4)):
        max_order, zone = rng.choice([0, 1, 2, 3]), rng.choice([ZONE_NORMAL, ZONE_DMA])
        dma = rng.randint(1, 20) * PAGE
        raw = RawArena(MIB // 4, max_order, dma, rng.randint(1, 24) * PAGE, sheaves=False)
        gfp = GFP_DMA_BIT if zone == ZONE_DMA else 0
        held = []
        for _ in range(rng.randint(0, 30)):
            pfn = alloc_run(raw.words, rng.choice([1, 1, 2, 3, 5, 9]), gfp)
            held += [pfn] if pfn > 0 else []
        for pfn in rng.sample(held, rng.randint(0, len(held))):
            free_pages(raw.words, pfn, -1)
        longest = int(survey(raw)[O_ZONES + zone * F_WORDS + F_RUN_PAGES])
        assert alloc_run(raw.words, longest + 1, gfp) < 0
        assert int(survey(raw)[O_ZONES + zone * F_WORDS + F_RUN_PAGES]) == longest  # the frontier alone has moved
        assert longest == 0 or alloc_run(raw.words, longest, gfp) > 0
        raw.validate()


@pytest.mark.parametrize("seed", range(some(10, 2)))
def test_the_longest_area_can_be_had_and_no_longer_one(seed: int) -> None:
    """Short of pages in some arenas, of addresses in others: one-page areas take a granule of 64 each."""
    rng = random.Random(seed)
    for size in (MIB // 2, 6 * MIB):
        raw = RawArena(size, 4, 0, None, sheaves=False)
        held = []
        for _ in range(rng.choice([0, 20, 70])):
            offset = vmalloc(raw.words, rng.choice([1, 1, 1, 15, 16, 40]) * PAGE, 0)
            held += [offset] if offset > 0 else []
        for offset in rng.sample(held, rng.randint(0, len(held))):
            assert kfree(raw.words, offset) == 0  # kept lazily, most of them
        longest = int(survey(raw)[fragment.O_AREA_PAGES])
        assert vmalloc(raw.words, (longest + 1) * PAGE, 0) < 0
        assert int(survey(raw)[fragment.O_AREA_PAGES]) == longest
        assert longest == 0 or vmalloc(raw.words, longest * PAGE, 0) > 0
        raw.validate()


def test_a_survey_changes_nothing(raw: RawArena) -> None:
    held = [alloc_pages(raw.words, order % 4, 0) for order in range(20)]
    for pfn in held[::2]:
        free_pages(raw.words, pfn, -1)
    before = raw.words[: raw.plan.meta_pages * 512].copy()
    survey(raw)
    assert (raw.words[: raw.plan.meta_pages * 512] == before).all()
    for pfn in held[1::2]:
        free_pages(raw.words, pfn, -1)
