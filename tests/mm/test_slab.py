"""Objects of slabs: where they lie, frees in any order, frees that are refused, all or nothing, a random life."""

from __future__ import annotations

import random

import pytest
from kernels import (
    ORDERINGS,
    assert_pristine,
    assert_unchanged,
    class_cache,
    field,
    give_objects,
    holds,
    make_cache,
    metadata,
    page_kind,
    take_objects,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.kmem_cache import cache_destroy, validate_cache
from realalloc.mm.layout import (
    C_ALLOCS,
    C_FLAGS,
    C_FREES,
    C_OBJECTS,
    C_ORDER,
    C_STRIDE_BYTES,
    CF_CTOR,
    CF_EXTERNAL_MAP,
    EAGAIN,
    EINVAL,
    ENOMEM,
    H_CLOSED,
    KIND_SLAB,
    KIND_TAIL,
    ZONE_NORMAL,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.slab import is_live_object

SIZES = [
    (1, 8),
    (8, 8),
    (16, 16),
    (24, 8),
    (31, 8),
    (32, 32),
    (40, 8),
    (100, 64),
    (192, 64),
    (700, 8),
    (3000, 8),
    (9000, 8),
]


@pytest.mark.parametrize(("nbytes", "align"), SIZES)
def test_objects_are_laid_out_by_stride_and_do_not_touch(nbytes: int, align: int) -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, nbytes, align)
    stride, objects, order = field(raw, c, C_STRIDE_BYTES), field(raw, c, C_OBJECTS), field(raw, c, C_ORDER)
    assert stride % align == 0
    assert stride >= nbytes
    assert objects == (PAGE << order) // stride
    assert bool(field(raw, c, C_FLAGS) & CF_EXTERNAL_MAP) == (objects > 128)
    taken = take_objects(raw, c, 3 * objects)
    assert len(set(taken)) == len(taken)
    for slab in range(3):
        part = taken[slab * objects : (slab + 1) * objects]
        first = part[0]
        assert first % (PAGE << order) == 0
        assert part == [first + k * stride for k in range(objects)]
        assert page_kind(raw, first // PAGE) == KIND_SLAB
        assert all(page_kind(raw, first // PAGE + k) == KIND_TAIL for k in range(1, 1 << order))
    assert all(offset % align == 0 for offset in taken)
    for k, offset in enumerate(taken):
        write(raw, offset, nbytes, k)
    assert all(holds(raw, offset, nbytes, k) for k, offset in enumerate(taken))
    give_objects(raw, c, taken)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [8, 16, 32, 96, 512, 4000])
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_frees_in_any_order_keep_lists_and_maps_whole(nbytes: int, ordering: str) -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, nbytes)
    live = take_objects(raw, c, 4 * field(raw, c, C_OBJECTS) + 1)
    for k, offset in enumerate(ORDERINGS[ordering](live)):
        assert kmem_cache_free(raw.words, c, offset) == 0
        assert is_live_object(raw.words, c, offset) == 0
        if k % 61 == 0 or len(live) < 100:
            raw.validate()
    assert field(raw, c, C_ALLOCS) == field(raw, c, C_FREES) == len(live)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [8, 24, 96, 512])
def test_frees_of_anything_but_a_live_object_of_the_cache_are_refused(raw: RawArena, nbytes: int) -> None:
    c, other = make_cache(raw, nbytes), make_cache(raw, nbytes)
    stride, order = field(raw, c, C_STRIDE_BYTES), field(raw, c, C_ORDER)
    live, foreign = take_objects(raw, c, 5), take_objects(raw, other, 5)
    give_objects(raw, c, live[1:2])
    page_block = int(alloc_pages(raw.words, 1, 0))
    before = metadata(raw)
    end_of_slab = live[0] + field(raw, c, C_OBJECTS) * stride
    wrong = [live[1], live[4] + stride, live[0] + 1, live[0] + stride - 1, live[2] + stride // 2, 0, -1, -live[0]]
    wrong += [live[0] + (PAGE << order), live[0] - stride, live[0] - 1, page_block * PAGE, 8, PAGE, 1 << 40, *foreign]
    if end_of_slab < live[0] + (PAGE << order):
        wrong.append(end_of_slab)  # what is left behind the last object
    for offset in wrong:
        assert kmem_cache_free(raw.words, c, offset) == EINVAL
        assert is_live_object(raw.words, c, offset) == 0
    assert_unchanged(raw, before)
    assert [is_live_object(raw.words, 0, offset) for offset in (live[0], foreign[0], live[1])] == [1, 1, 0]
    give_objects(raw, c, [live[0], *live[2:]])
    give_objects(raw, other, foreign)
    free_pages(raw.words, page_block, 1)
    assert cache_destroy(raw.words, c) == cache_destroy(raw.words, other) == 0
    assert_pristine(raw)


def test_bulk_is_all_or_nothing(raw: RawArena) -> None:
    c = make_cache(raw, 256)
    out = raw.out(4000)
    assert kmem_cache_alloc_bulk(raw.words, c, 100, 0, out) == 0
    live = out[:100].tolist()
    assert len(set(live)) == 100
    assert not out[100:].any()
    assert all(is_live_object(raw.words, c, offset) for offset in live)
    for k, offset in enumerate(live):
        write(raw, offset, 256, k)
    used = field(raw, c, C_ALLOCS) - field(raw, c, C_FREES)
    assert kmem_cache_alloc_bulk(raw.words, c, 4000, 0, out) == ENOMEM  # runs out mid-way
    assert field(raw, c, C_ALLOCS) - field(raw, c, C_FREES) == used == 100
    raw.validate()
    assert all(is_live_object(raw.words, c, offset) for offset in live)
    assert all(holds(raw, offset, 256, k) for k, offset in enumerate(live))
    left = zone_pages(raw) * 16 - 100
    exact = raw.out(left)
    assert kmem_cache_alloc_bulk(raw.words, c, left, 0, exact) == 0
    assert len({*exact.tolist(), *live}) == left + 100
    assert kmem_cache_alloc_bulk(raw.words, c, 1, 0, out) == ENOMEM
    assert kmem_cache_alloc_bulk(raw.words, c, 0, 0, out) == 0
    give_objects(raw, c, exact.tolist() + live)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_exhaustion_takes_no_object_and_a_free_makes_room(raw: RawArena) -> None:
    c = make_cache(raw, 128)
    live = []
    while (offset := int(kmem_cache_alloc(raw.words, c))) > 0:
        live.append(offset)
    assert offset == ENOMEM
    assert len(live) == 32 * zone_pages(raw)
    before = metadata(raw)
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    assert_unchanged(raw, before)
    give_objects(raw, c, [live[77]])
    assert kmem_cache_alloc(raw.words, c) == live[77]
    give_objects(raw, c, live)
    assert cache_destroy(raw.words, c) == 0


def test_a_cache_with_a_constructor_never_makes_slabs_by_itself(raw: RawArena) -> None:
    c = make_cache(raw, 64, flags=CF_CTOR)
    before = metadata(raw)
    assert kmem_cache_alloc(raw.words, c) == EAGAIN
    assert kmem_cache_alloc_bulk(raw.words, c, 3, 0, raw.out(3)) == EAGAIN
    assert_unchanged(raw, before)
    assert cache_destroy(raw.words, c) == 0


def test_a_closed_arena_hands_out_no_object_and_takes_objects_back(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    live = take_objects(raw, c, 3)
    raw.words[H_CLOSED] = 1
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    assert kmem_cache_alloc_bulk(raw.words, c, 2, 0, raw.out(2)) == ENOMEM
    give_objects(raw, c, live)
    assert cache_destroy(raw.words, c) == 0


@pytest.mark.parametrize("nbytes", [8, 16, 48, 256, 1024])
def test_a_random_life_of_one_cache(nbytes: int) -> None:
    rng = random.Random(nbytes)
    raw = RawArena(MIB, 4)
    c = make_cache(raw, nbytes)
    live: dict[int, int] = {}
    for step in range(12_000 if JIT else 3_000):
        grow_phase = step // 1500 % 2 == 0
        if rng.random() < (0.7 if grow_phase else 0.3):
            offset = int(kmem_cache_alloc(raw.words, c))
            if offset > 0:
                assert offset not in live
                live[offset] = step
                write(raw, offset, 8, step)
        elif live:
            offset = rng.choice(list(live)[: 1 + len(live) // 2][-20:])
            assert holds(raw, offset, 8, live.pop(offset))
            assert kmem_cache_free(raw.words, c, offset) == 0
        if step % 200 == 0:
            assert validate_cache(raw.words, c) == 0
            assert field(raw, c, C_ALLOCS) - field(raw, c, C_FREES) == len(live)
    raw.validate()
    give_objects(raw, c, list(live))
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_kmalloc_and_a_cache_of_the_same_size_do_not_share_slabs(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    mine, theirs = take_objects(raw, c, 1)[0], int(kmalloc(raw.words, 64, 0))
    assert mine // PAGE != theirs // PAGE
    assert kmem_cache_free(raw.words, c, theirs) == EINVAL
    assert kmem_cache_free(raw.words, class_cache(raw, 64), theirs) == 0
    give_objects(raw, c, [mine])
    assert zone_word(raw, ZONE_NORMAL, 0) == raw.plan.meta_pages
