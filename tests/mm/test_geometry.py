"""Tables never overlap, whatever an arena's size and options; a fresh arena is all zero but its header."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from realalloc.mm import layout
from realalloc.mm.geometry import Plan, format_words, plan
from realalloc.mm.layout import (
    GRANULE_BYTES,
    H_END_PFN,
    H_MAGIC,
    H_NR_ZONES,
    HUGE_NEVER,
    HUGE_ORDER,
    INFOS,
    KMALLOC_TABLE,
    MAGIC,
    NULL_RECORD,
    PAGE_BYTES,
    PAGE_WORDS,
    THREADS,
)

SIZES = [256 << 10, (256 << 10) + 4096, 1 << 20, 333 * 4096, 64 << 20, (1 << 30) - 4096, 1 << 30, 1 << 40, 7 << 40]
CASES = [
    (size, order, dma, limit)
    for size, order in itertools.product(SIZES, (0, 4, 9, 10, 18))
    for dma, limit in ((0, None), (8 * 4096, None), (0, 64 << 10), (4096, 0))
]


@pytest.mark.parametrize(("size", "max_order", "dma", "limit"), CASES)
def test_tables_follow_each_other_without_overlap(size: int, max_order: int, dma: int, limit: int | None) -> None:
    made = plan(size, max_order, dma, limit)
    assert made.end_pfn == size // PAGE_BYTES
    starts = [
        0,
        THREADS,
        NULL_RECORD,
        INFOS,
        made.memmap,
        made.caches,
        made.resmap,
        made.vmap,
        made.meta_pages * PAGE_WORDS,
    ]
    assert all(start % PAGE_WORDS == 0 for start in starts)  # each on pages of its own
    ends = [
        layout.SHEAF_OWNERS + layout.SHEAF_INDICES,
        THREADS + layout.THREAD_SLOTS * layout.THREAD_WORDS,
        NULL_RECORD + layout.RECORD_WORDS,
        INFOS + made.end_pfn,
        made.memmap + made.end_pfn * layout.PAGE_STRUCT_WORDS,
        made.caches + made.max_caches * layout.CACHE_WORDS,
        made.resmap + -(-made.end_pfn // 64),
        made.vmap + made.granules * layout.AREA_WORDS,
    ]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=True))
    assert made.resmap + -(-made.end_pfn // 64) <= made.hugemap
    assert made.hugemap + -(-made.end_pfn // 64 >> HUGE_ORDER) <= made.mobility
    blocks = -(-made.end_pfn >> min(HUGE_ORDER, max_order)) if max_order > layout.MAX_SLAB_ORDER else 0
    assert made.mobility + layout.M_BLOCKS + blocks <= made.vmap
    assert made.meta_pages <= made.dma_end_pfn
    assert made.dma_end_pfn - made.meta_pages == -(-dma // PAGE_BYTES)
    assert made.window_start_bytes >= size
    assert made.window_start_bytes % made.align_bytes == 0
    assert made.window_start_bytes - size < made.align_bytes
    assert made.total_bytes == made.window_start_bytes + made.granules * GRANULE_BYTES
    assert made.granules * GRANULE_BYTES >= 2 * size - GRANULE_BYTES  # twice as many addresses as memory
    assert made.align_bytes == PAGE_BYTES << max(max_order, HUGE_ORDER)
    assert made.limit_pages == (made.end_pfn if limit is None else limit // PAGE_BYTES)
    assert made.end_pfn < 1 << 31 or size > 1 << 43  # page numbers fit the halves of a link


@pytest.mark.parametrize("dma", [0, 5 * PAGE_BYTES])
def test_a_fresh_arena_is_its_header_and_nothing_else(dma: int) -> None:
    made: Plan = plan(1 << 20, 4, dma, None)
    words = np.zeros(made.end_pfn * PAGE_WORDS, np.int64)
    format_words(words, made, HUGE_NEVER)
    assert words[H_MAGIC] == MAGIC
    assert words[H_END_PFN] == 256
    assert words[H_NR_ZONES] == (2 if dma else 1)
    locked_out = words[NULL_RECORD:INFOS].reshape(-1, layout.SHEAF_DESC_WORDS)
    assert (locked_out[:, [layout.D_TOP, layout.D_PUT, layout.D_PUT_END]] == layout.H_ZERO).all()
    assert (locked_out[:, [layout.D_BASE, layout.D_PUT_BASE]] == layout.H_ZERO + 1).all()
    assert not locked_out[:, [layout.R_NEXT, layout.D_MAGIC, layout.D_LAST]].any()
    words[NULL_RECORD:INFOS] = 0
    assert not words[KMALLOC_TABLE:].any()
