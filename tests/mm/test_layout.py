"""Where everything lies: tables never overlap, fields never share a word, a fresh arena is all zero but its header."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from realalloc.errors import describe_broken
from realalloc.mm import layout
from realalloc.mm.layout import (
    GRANULE_BYTES,
    H_END_PFN,
    H_MAGIC,
    H_NR_ZONES,
    HUGE_NEVER,
    HUGE_ORDER,
    KMALLOC_TABLE,
    MAGIC,
    MEMMAP,
    NULL_RECORD,
    PAGE_BYTES,
    PAGE_WORDS,
    THREADS,
    Plan,
    format_words,
    plan,
)

SIZES = [256 << 10, (256 << 10) + 4096, 1 << 20, 333 * 4096, 64 << 20, (1 << 30) - 4096, 1 << 30, 1 << 40, 7 << 40]
CASES = [
    (size, order, dma, limit)
    for size, order in itertools.product(SIZES, (0, 4, 9, 10, 18))
    for dma, limit in ((0, None), (8 * 4096, None), (0, 64 << 10), (4096, 0))
]


def names(prefix: str) -> dict[str, int]:
    return {name: value for name, value in vars(layout).items() if re.match(prefix + r"[A-Z]", name)}


@pytest.mark.parametrize(("size", "max_order", "dma", "limit"), CASES)
def test_tables_follow_each_other_without_overlap(size: int, max_order: int, dma: int, limit: int | None) -> None:
    made = plan(size, max_order, dma, limit)
    assert made.end_pfn == size // PAGE_BYTES
    starts = [0, THREADS, NULL_RECORD, MEMMAP, made.caches, made.resmap, made.vmap, made.meta_pages * PAGE_WORDS]
    assert all(start % PAGE_WORDS == 0 for start in starts)  # each on pages of its own
    ends = [
        layout.SHEAF_OWNERS + layout.SHEAF_INDICES,
        THREADS + layout.THREAD_SLOTS * layout.THREAD_WORDS,
        NULL_RECORD + layout.RECORD_WORDS,
        MEMMAP + made.end_pfn * layout.PAGE_STRUCT_WORDS,
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


@pytest.mark.parametrize("prefix", ["H_", "Z_", "M_", "C_", "PG_", "V_", "P_", "B_", "T_", "D_", "S_"])
def test_fields_of_a_record_are_all_different(prefix: str) -> None:
    fields = names(prefix)
    if prefix == "D_":  # the link of a record lies in its first descriptor
        fields["R_NEXT"] = layout.R_NEXT
    assert len(fields) > 3
    assert len(set(fields.values())) == len(fields)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [("H_", layout.ZONES), ("Z_", layout.ZONE_WORDS), ("C_", layout.CACHE_WORDS), ("PG_", layout.PAGE_STRUCT_WORDS),
     ("V_", layout.AREA_WORDS), ("P_", layout.POOL_WORDS), ("B_", layout.BUDGET_WORDS), ("T_", layout.THREAD_WORDS),
     ("D_", layout.SHEAF_DESC_WORDS), ("S_", layout.S_OBJECTS + 1)],
)  # fmt: skip
def test_fields_lie_inside_their_record(prefix: str, words: int) -> None:
    assert 0 <= min(names(prefix).values()) <= max(names(prefix).values()) < words


def test_lists_of_a_zone_have_room_for_every_order() -> None:
    orders = layout.MAX_MAX_ORDER + 1
    heads = set(range(layout.Z_HEADS, layout.Z_HEADS + orders))
    counts = set(range(layout.Z_COUNTS, layout.Z_COUNTS + orders))
    singles = set(names("Z_").values()) - {layout.Z_HEADS, layout.Z_COUNTS}
    assert not heads & counts
    assert not (heads | counts) & singles
    assert max(counts) < layout.ZONE_WORDS


def test_the_parts_of_a_struct_pages_first_word_do_not_overlap() -> None:
    masks = [
        layout.KIND_MASK,
        layout.ORDER_MASK << layout.ORDER_SHIFT,
        layout.ZONE_MASK << layout.ZONE_SHIFT,
        layout.PAGE_LISTED,
        layout.PAGE_CONSTRUCTING,
        layout.PAGE_FAILED,
        layout.CACHE_MASK << layout.CACHE_SHIFT,
        layout.PENDING_MASK << layout.PENDING_SHIFT,
        layout.SHEAF_MASK << layout.SHEAF_SHIFT,
        layout.OBJECTS_MASK << layout.OBJECTS_SHIFT,
        31 << layout.SLAB_BYTES_SHIFT,
    ]
    assert sum(masks) == np.bitwise_or.reduce(np.array(masks, np.int64))
    assert sum(masks) < 1 << 63
    kinds = names("KIND_")
    del kinds["KIND_MASK"]
    assert kinds.pop("KIND_OBJECTS_BIT") == layout.KIND_SLAB & layout.KIND_TAIL
    assert [name for name, kind in kinds.items() if kind & layout.KIND_OBJECTS_BIT] == ["KIND_SLAB", "KIND_TAIL"]
    assert sorted(kinds.values()) == list(range(len(kinds)))
    assert max(kinds.values()) <= layout.KIND_MASK
    assert layout.MAX_OBJECTS <= layout.OBJECTS_MASK
    assert layout.SHEAF_INDICES - 1 <= layout.SHEAF_MASK
    assert layout.PAGE_SHIFT + layout.MAX_MAX_ORDER <= 31  # what SLAB_BYTES_SHIFT has to hold


def test_every_broken_invariant_has_a_code_and_a_text_of_its_own() -> None:
    codes = names("BAD_")
    assert len(set(codes.values())) == len(codes)
    assert all(code < layout.ESHUTDOWN for code in codes.values())  # none is a status code
    texts = {describe_broken(code) for code in codes.values()}
    assert len(texts) == len(codes)


def test_size_classes_are_the_kernels() -> None:
    assert layout.KMALLOC_SIZES == (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
    assert set(layout.KMALLOC_SIZES) < set(layout.KMALLOC_FINE_SIZES)
    assert layout.KMALLOC_TABLE_WORDS == 8192 // 8 + 1


def test_the_reciprocal_divides_every_offset_of_a_slab_exactly() -> None:
    for stride in range(8, 8193, 8):
        reciprocal = ((1 << layout.RECIPROCAL_SHIFT) + stride - 1) // stride
        nbytes = np.arange(0, PAGE_BYTES << layout.MAX_SLAB_ORDER, 1 if stride < 64 else 5, dtype=np.int64)
        assert np.array_equal(nbytes * reciprocal >> layout.RECIPROCAL_SHIFT, nbytes // stride)


@pytest.mark.parametrize("dma", [0, 5 * PAGE_BYTES])
def test_a_fresh_arena_is_its_header_and_nothing_else(dma: int) -> None:
    made: Plan = plan(1 << 20, 4, dma, None)
    words = np.zeros(made.end_pfn * PAGE_WORDS, np.int64)
    format_words(words, made, HUGE_NEVER)
    assert words[H_MAGIC] == MAGIC
    assert words[H_END_PFN] == 256
    assert words[H_NR_ZONES] == (2 if dma else 1)
    locked_out = words[NULL_RECORD:MEMMAP].reshape(-1, layout.SHEAF_DESC_WORDS)
    assert (locked_out[:, [layout.D_TOP, layout.D_PUT, layout.D_PUT_END]] == layout.H_ZERO).all()
    assert (locked_out[:, [layout.D_BASE, layout.D_PUT_BASE]] == layout.H_ZERO + 1).all()
    assert not locked_out[:, [layout.R_NEXT, layout.D_MAGIC, layout.D_LAST_BYTES]].any()
    words[NULL_RECORD:MEMMAP] = 0
    assert not words[KMALLOC_TABLE:].any()
