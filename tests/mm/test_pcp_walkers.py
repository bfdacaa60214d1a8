"""The walker of kept blocks can fail: each kind of damage is reported, and left as it was."""

from __future__ import annotations

import pytest
from kernels import (
    assert_pristine,
    assert_unchanged,
    identity,
    info_index,
    metadata,
    own_record,
    page_info,
    page_kind,
    slots,
)
from support import PAGE, RawArena

from realalloc.mm.layout import (
    BAD_SHEAF,
    D_BASE,
    D_PUT,
    D_PUT_END,
    D_TOP,
    H_LOCK,
    H_NR_RECORDS,
    KIND_CACHED,
    KIND_MASK,
    KIND_NONE,
    KIND_PAGES,
    KIND_RECORD,
    MAX_SHEAF_OBJECTS,
    MIN_SHEAVES_PAGES,
    ORDER_SHIFT,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    T_RECENT_PLACE,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.pcp_walkers import validate_kept_blocks

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def descriptor(raw: RawArena, order: int) -> int:
    return own_record(raw) + (SHEAF_BLOCKS + order) * SHEAF_DESC_WORDS


def damaged(what: str, raw: RawArena, pfn: int) -> list[tuple[int, int]]:
    """Words to change, with what: ``pfn`` is a live block of order 1, as are both kept ones."""
    w = raw.words
    d = descriptor(raw, 1)
    put = int(w[d + D_PUT])
    slot = slots(raw)[int(identity())]
    kept = int(w[put]) // PAGE
    live, spare = info_index(pfn), info_index(kept)
    cached = page_info(raw, pfn) & ~KIND_MASK | KIND_CACHED
    return {
        "a cached block in no sheaf": [(live, cached)],
        "a block in a sheaf that is in use": [(spare, page_info(raw, kept) & ~KIND_MASK | KIND_PAGES)],
        "a block in a sheaf that is none": [(put, (kept + 1) * PAGE)],
        "the same block twice": [(put, int(w[put - 1]))],
        "the same block twice, and another cached": [(put, int(w[put - 1])), (live, cached)],
        "a block of another order": [(spare, page_info(raw, kept) ^ 1 << ORDER_SHIFT)],
        "a top that is too high": [(d + D_PUT, int(w[d + D_PUT_END]) + 1)],
        "a top that is too low": [(d + D_TOP, int(w[d + D_BASE]) - 2)],
        "a main top that is far too high": [(d + D_TOP, int(w[d + D_BASE]) + MAX_SHEAF_OBJECTS)],
        "a block that fell out": [(d + D_PUT, put - 1)],
        "a record too many": [(H_NR_RECORDS, int(w[H_NR_RECORDS]) + 1)],
        "a record too few": [(H_NR_RECORDS, int(w[H_NR_RECORDS]) - 1)],
        "a hint at another order's sheaf": [(slot + T_RECENT_PLACE, int(w[slot + T_RECENT_PLACE]) + SHEAF_DESC_WORDS)],
        "a record of nobody": [(live, page_info(raw, pfn) & ~KIND_MASK | KIND_RECORD)],
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "a cached block in no sheaf", "a block in a sheaf that is in use", "a block in a sheaf that is none",
        "the same block twice", "a block of another order", "a top that is too high", "a top that is too low",
        "a main top that is far too high", "a block that fell out", "a record too many", "a record too few",
        "a record of nobody", "a hint at another order's sheaf",
        "the same block twice, and another cached",
    ],
)  # fmt: skip
def test_a_walker_finds_damage_and_lets_the_lock_go(what: str) -> None:
    raw = RawArena(SMALLEST, 5)
    pfns = [int(alloc_pages(raw.words, 1, 0)) for _ in range(4)]
    for pfn in pfns[1:]:
        assert free_pages(raw.words, pfn, 1) == 0
    changes = damaged(what, raw, pfns[0])
    saved = [(at, int(raw.words[at])) for at, _ in changes]
    for at, value in changes:
        raw.words[at] = value
    try:
        before = metadata(raw)
        assert validate_kept_blocks(raw.words) == BAD_SHEAF
        assert_unchanged(raw, before)
        assert raw.words[H_LOCK] == 0
    finally:
        for at, value in saved:
            raw.words[at] = value
    assert page_kind(raw, pfns[0] + 1) == KIND_NONE
    raw.validate()
    assert free_pages(raw.words, pfns[0], 1) == 0
    assert_pristine(raw)
