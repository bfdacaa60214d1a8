"""What every word means: fields of a record never share a word, and have room."""

from __future__ import annotations

import re

import numpy as np
import pytest

from realalloc.arena import MAX_BYTES
from realalloc.errors import describe_broken
from realalloc.mm import layout
from realalloc.mm.layout import (
    PAGE_BYTES,
)


def names(prefix: str) -> dict[str, int]:
    return {name: value for name, value in vars(layout).items() if re.match(prefix + r"[A-Z]", name)}


@pytest.mark.parametrize("prefix", ["H_", "Z_", "M_", "C_", "PG_", "V_", "P_", "B_", "T_", "D_", "S_"])
def test_fields_of_a_record_are_all_different(prefix: str) -> None:
    fields = names(prefix)
    assert len(fields) >= 3
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
        layout.PAGE_MARKED,
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


def test_the_link_of_a_record_lies_in_a_descriptor_that_has_no_stock() -> None:
    """Index 0 is nobody's: it has no sheaves, and the word of its stock is free."""
    assert layout.R_NEXT == layout.D_STOCK < layout.SHEAF_DESC_WORDS


def test_the_name_of_a_request_has_bits_for_every_word_of_the_largest_arena() -> None:
    assert 1 << layout.TICKET_SHIFT >= MAX_BYTES // layout.WORD_BYTES
    assert layout.TICKETS << layout.TICKET_SHIFT < 1 << 63  # tickets begin with 1, and names are positive
