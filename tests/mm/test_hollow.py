"""Pages of slabs that no live object touches: exhaustive over small slabs, contents kept, books unchanged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernels import assert_pristine, class_cache, field, holds, make_cache, octets, take_objects, write
from support import MIB, PAGE, RawArena

from realalloc.mm.hollow import SLABS, VECTOR_WORDS, hollow
from realalloc.mm.layout import (
    C_FLAGS,
    C_NR_EMPTY,
    C_NR_SLABS,
    C_STRIDE_BYTES,
    CF_CTOR,
    H_COMMITTED_PAGES,
    H_FREEMAP_CACHE,
)
from realalloc.mm.objects import kmem_cache_free


def run(raw: RawArena, c: int) -> int:
    return int(hollow(raw.words, c, np.zeros(VECTOR_WORDS, np.int64)))


def resident(raw: RawArena) -> int:
    return int(raw.memory.resident_pages(raw.plan.meta_pages * PAGE, raw.pages * PAGE))


@pytest.mark.parametrize("size", [1000, 3000, 4096, 5000, 8192])
def test_exactly_the_pages_go_that_nobody_uses(size: int) -> None:
    for pattern in itertools.product((0, 1), repeat=7):
        raw = RawArena(MIB, 4, sheaves=False)
        c = make_cache(raw, size, min_objects=7)
        objects = take_objects(raw, c, 7)
        assert field(raw, c, C_NR_SLABS) <= 2
        for offset in objects:
            write(raw, offset, size, offset)
        live = [offset for offset, used in zip(objects, pattern, strict=True) if used]
        for offset in set(objects) - set(live):
            assert kmem_cache_free(raw.words, c, offset) == 0
        before, committed = resident(raw), int(raw.words[H_COMMITTED_PAGES])
        gone = run(raw, c)
        stride = field(raw, c, C_STRIDE_BYTES)
        needed = {page for offset in live for page in range(offset // PAGE, (offset + stride - 1) // PAGE + 1)}
        assert before - gone == resident(raw)
        if live and field(raw, c, C_NR_EMPTY) == 0:
            assert resident(raw) <= len(needed) + (0 if size >= PAGE else 1)
        assert raw.words[H_COMMITTED_PAGES] == committed
        raw.validate()
        assert all(holds(raw, offset, size, offset) for offset in live)
        assert run(raw, c) == 0
        again = take_objects(raw, c, 7 - len(live))
        for offset in again:
            octets(raw, offset, size)[:] = 3
        assert all(holds(raw, offset, size, offset) for offset in live)
        for offset in (*live, *again):
            kmem_cache_free(raw.words, c, offset)
        assert_pristine(raw)


def test_more_slabs_than_one_step_looks_at() -> None:
    raw = RawArena(8 * MIB, 4, sheaves=False)
    c = class_cache(raw, 4096)
    objects = take_objects(raw, c, 1200)
    for offset in objects:
        write(raw, offset, 4096, offset)
    for offset in objects[::2]:
        kmem_cache_free(raw.words, c, offset)
    assert field(raw, c, C_NR_SLABS) > 3 * SLABS
    assert run(raw, c) == 600
    raw.validate()
    assert all(holds(raw, offset, 4096, offset) for offset in objects[1::2])


def test_constructed_objects_and_metadata_keep_their_memory() -> None:
    raw = RawArena(MIB, 4, sheaves=False)
    assert run(raw, int(raw.words[H_FREEMAP_CACHE])) == 0
    c = make_cache(raw, 4096, flags=0)
    objects = take_objects(raw, c, 4)
    for offset in objects:
        write(raw, offset, 4096, offset)
    kmem_cache_free(raw.words, c, objects[0])
    raw.words[c + C_FLAGS] |= CF_CTOR
    assert run(raw, c) == 0
    assert holds(raw, objects[0], 4096, objects[0])
    raw.words[c + C_FLAGS] &= ~CF_CTOR
    assert run(raw, c) == 1
    for offset in objects[1:]:
        kmem_cache_free(raw.words, c, offset)
    assert_pristine(raw)


def test_objects_smaller_than_a_page_share_its_fate() -> None:
    raw = RawArena(MIB, 4, sheaves=False)
    c = class_cache(raw, 64)
    objects = sorted(take_objects(raw, c, 640))
    for offset in objects:
        write(raw, offset, 64, offset)
    keep = objects[100]
    for offset in objects:
        if offset // PAGE != keep // PAGE or offset == keep:
            continue
        kmem_cache_free(raw.words, c, offset)
    assert run(raw, c) == 0  # one object is enough to hold a page
    assert holds(raw, keep, 64, keep)
