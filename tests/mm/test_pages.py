"""Struct pages and the resident map: which pages hold memory, which only might."""

from __future__ import annotations

import random

import numba
import numpy as np
import pytest
from kernels import info_index, page_index
from support import MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.layout import (
    H_COMMITTED_PAGES,
    H_PEAK_COMMITTED_PAGES,
    H_RESMAP,
    KIND_LARGE,
    KIND_NONE,
    KIND_PAGES,
    KIND_RUN,
    ORDER_SHIFT,
    PG_MAP0,
    ZONE_DMA,
    ZONE_SHIFT,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_run
from realalloc.mm.pages import (
    clear_resident_locked,
    count_resident,
    is_resident,
    kind_of,
    order_at,
    pages_at,
    set_resident_locked,
    zero_range,
    zone_of,
)


@numba.njit
def resident(words, what, pfn, pages):
    if what == 0:
        return set_resident_locked(words, pfn, pages)
    if what == 1:
        return clear_resident_locked(words, pfn, pages)
    if what == 2:
        return count_resident(words, pfn, pages)
    return is_resident(words, pfn)


@numba.njit
def ask(words, what, pfn):
    if what == 0:
        return kind_of(words, pfn)
    if what == 1:
        return order_at(words, pfn)
    if what == 2:
        return pages_at(words, pfn)
    return zone_of(words, pfn)


@numba.njit
def clear(words, at, count):
    zero_range(words, at, count)
    return 0


def test_the_resident_map_is_a_set_of_pages() -> None:
    raw = RawArena(2 * MIB, 4)
    rng = random.Random(4)
    model: set[int] = set()
    peak = 0
    for _ in range(400):
        pfn = np.int64(rng.randrange(raw.plan.end_pfn))  # as words hold it
        pages = rng.choice([0, 1, 2, 63, 64, 65, 128, rng.randrange(200)])
        pages = min(pages, raw.plan.end_pfn - int(pfn))
        span = set(range(pfn, pfn + pages))
        if rng.random() < 0.5:
            assert resident(raw.words, 0, pfn, pages) == len(span - model)
            model |= span
        else:
            assert resident(raw.words, 1, pfn, pages) == len(span & model)
            model -= span
        peak = max(peak, len(model))
        assert raw.words[H_COMMITTED_PAGES] == len(model)
        assert raw.words[H_PEAK_COMMITTED_PAGES] == peak
        low, high = sorted(np.int64(rng.randrange(raw.plan.end_pfn)) for _ in range(2))
        assert resident(raw.words, 2, low, high) == len(model & set(range(low, high)))
        assert resident(raw.words, 3, pfn, 0) == (pfn in model)
    at = int(raw.words[H_RESMAP])
    bits = {64 * k + j for k in range(8) for j in range(64) if int(raw.words[at + k]) >> j & 1}
    assert bits == model


def test_any_page_can_be_asked_what_it_is(raw: RawArena) -> None:
    block, run, large = (
        int(alloc_pages(raw.words, 2, 0)),
        int(alloc_run(raw.words, 5, 0)),
        int(kmalloc(raw.words, 9000, 0)),
    )
    assert [ask(raw.words, 0, pfn) for pfn in (block, run, large // PAGE)] == [KIND_PAGES, KIND_RUN, KIND_LARGE]
    assert [ask(raw.words, 2, pfn) for pfn in (block, run, large // PAGE)] == [4, 5, 4]
    assert ask(raw.words, 1, block) == 2
    assert [ask(raw.words, 0, pfn) for pfn in range(block + 1, block + 4)] == [KIND_NONE] * 3
    for nowhere in (0, -1, -(1 << 40), raw.plan.end_pfn, raw.plan.end_pfn + 5, 1 << 50, *range(raw.plan.meta_pages)):
        assert ask(raw.words, 0, nowhere) == KIND_NONE
    info = int(raw.words[info_index(block)])
    assert info == KIND_PAGES | 2 << ORDER_SHIFT
    assert raw.words[page_index(raw, run) + PG_MAP0] == 5


def test_a_page_says_its_zone() -> None:
    raw = RawArena(MIB, 4, dma=20 * PAGE)
    low, high = int(alloc_pages(raw.words, 0, 1)), int(alloc_pages(raw.words, 0, 0))
    assert (ask(raw.words, 3, low), ask(raw.words, 3, high)) == (ZONE_DMA, 0)
    assert int(raw.words[info_index(low)]) >> ZONE_SHIFT & 3 == ZONE_DMA


@pytest.mark.parametrize(("at", "count"), [(700, 0), (700, 1), (701, 3), (704, 512), (699, 1000)])
def test_a_range_of_words_is_zeroed_and_no_other(at: int, count: int) -> None:
    raw = RawArena(MIB, 4)
    words = raw.words[raw.plan.end_pfn * 256 : raw.plan.end_pfn * 256 + 3000]
    words[:] = -1
    clear(words, at, count)
    assert not words[at : at + count].any()
    assert (words[:at] == -1).all()
    assert (words[at + count :] == -1).all()
