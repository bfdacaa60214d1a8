"""Slabs: which object goes out, where its slab goes when it comes back, free maps inside and outside the struct page."""

from __future__ import annotations

import random

import pytest
from kernels import (
    ORDERINGS,
    assert_pristine,
    assert_unchanged,
    class_cache,
    field,
    free_blocks,
    holds,
    make_cache,
    metadata,
    page_info,
    page_kind,
    trim,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.kmem_cache import cache_destroy, cache_shrink, validate_cache
from realalloc.mm.layout import (
    C_ALLOCS,
    C_EMPTY,
    C_FLAGS,
    C_FREES,
    C_MIN_PARTIAL,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_NR_SLABS,
    C_OBJECTS,
    C_ORDER,
    C_ORDER_FALLBACK,
    C_PARTIAL,
    C_SLAB_ALLOCS,
    C_SLAB_FREES,
    C_STRIDE_BYTES,
    CF_CTOR,
    CF_EXTERNAL_MAP,
    EAGAIN,
    EINVAL,
    ENOMEM,
    H_CLOSED,
    H_FREEMAP_CACHE,
    KIND_SLAB,
    KIND_TAIL,
    ORDER_MASK,
    ORDER_SHIFT,
    ZONE_NORMAL,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.slab import is_live_object


def counts(raw: RawArena, c: int) -> tuple[int, int, int]:
    return field(raw, c, C_NR_SLABS), field(raw, c, C_NR_PARTIAL), field(raw, c, C_NR_EMPTY)


def take(raw: RawArena, c: int, count: int) -> list[int]:
    taken = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count)]
    assert all(offset > 0 for offset in taken)
    return taken


def give(raw: RawArena, c: int, offsets: list[int]) -> None:
    for offset in offsets:
        assert kmem_cache_free(raw.words, c, offset) == 0


def slabs_of(raw: RawArena, offsets: list[int]) -> set[int]:
    return {next(pfn for pfn in range(at // PAGE, 0, -1) if page_kind(raw, pfn) == KIND_SLAB) for at in offsets}


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
    taken = take(raw, c, 3 * objects)
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
    give(raw, c, taken)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [8, 16, 32, 96, 512, 4000])
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_frees_in_any_order_keep_lists_and_maps_whole(nbytes: int, ordering: str) -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, nbytes)
    live = take(raw, c, 4 * field(raw, c, C_OBJECTS) + 1)
    for k, offset in enumerate(ORDERINGS[ordering](live)):
        assert kmem_cache_free(raw.words, c, offset) == 0
        assert is_live_object(raw.words, c, offset) == 0
        if k % 61 == 0 or len(live) < 100:
            raw.validate()
    assert field(raw, c, C_ALLOCS) == field(raw, c, C_FREES) == len(live)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_freed_object_is_found_by_its_bit_and_not_by_its_bytes(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    live = take(raw, c, 10)
    give(raw, c, live[2:5])
    for offset in live[2:5]:
        write(raw, offset, 64, 255)  # a stray write into freed objects breaks nothing
    raw.validate()
    assert sorted(take(raw, c, 3)) == live[2:5]
    give(raw, c, live)
    assert cache_destroy(raw.words, c) == 0


def test_a_slab_moves_between_active_full_partial_and_empty(raw: RawArena) -> None:
    c = make_cache(raw, 512)
    objects = field(raw, c, C_OBJECTS)
    first, second = take(raw, c, objects), take(raw, c, objects)
    extra = take(raw, c, 1)
    assert counts(raw, c) == (3, 0, 0)  # two full ones on no list, one active
    give(raw, c, [first[3]])
    assert counts(raw, c) == (3, 1, 0)
    assert field(raw, c, C_PARTIAL) >> 32 == first[0] // PAGE
    give(raw, c, [second[0]])
    assert counts(raw, c) == (3, 2, 0)
    give(raw, c, [offset for offset in first if offset != first[3]])
    assert counts(raw, c) == (3, 1, 1)
    assert field(raw, c, C_EMPTY) >> 32 == first[0] // PAGE
    more = take(raw, c, objects - 1)  # the rest of the active slab
    assert counts(raw, c) == (3, 1, 1)
    assert take(raw, c, 1) == [second[0]]  # partial before empty
    assert counts(raw, c) == (3, 0, 1)
    again = take(raw, c, objects)
    assert sorted(again) == sorted(first)  # empty before new
    assert counts(raw, c) == (3, 0, 0)
    give(raw, c, again + second + extra + more)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_only_so_many_empty_slabs_are_kept() -> None:
    raw = RawArena(2 * MIB, 4)
    for nbytes, kept in ((64, 5), (512, 5), (2048, 5), (4096, 6), (9000, 6)):
        c = make_cache(raw, nbytes)
        assert field(raw, c, C_MIN_PARTIAL) == kept
        live = take(raw, c, 11 * field(raw, c, C_OBJECTS))
        give(raw, c, live)
        slabs, partial, empty = counts(raw, c)
        assert (partial, empty) == (0, kept)
        assert slabs in (kept, kept + 1)  # the active one may be empty too
        assert field(raw, c, C_SLAB_ALLOCS) - field(raw, c, C_SLAB_FREES) == slabs
        raw.validate()
        assert cache_shrink(raw.words, c) == slabs << field(raw, c, C_ORDER)
        assert counts(raw, c) == (0, 0, 0)
        assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_tiny_objects_have_a_free_map_of_their_own_and_give_it_back(raw: RawArena) -> None:
    inner = field(raw, 0, H_FREEMAP_CACHE)
    for nbytes in (8, 16):
        c = class_cache(raw, nbytes)
        objects = field(raw, c, C_OBJECTS)
        assert field(raw, c, C_FLAGS) & CF_EXTERNAL_MAP
        before = field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES)
        live = take(raw, c, 2 * objects + 1)
        assert field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES) == before + 3
        give(raw, c, live)
        assert cache_shrink(raw.words, c) == 3
        assert field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES) == before
    assert cache_shrink(raw.words, inner) == 1
    assert_pristine(raw)


def test_many_free_maps_fill_more_than_one_slab_of_maps() -> None:
    raw = RawArena(2 * MIB, 4)
    inner, c = field(raw, 0, H_FREEMAP_CACHE), class_cache(raw, 16)
    objects, maps = field(raw, c, C_OBJECTS), field(raw, field(raw, 0, H_FREEMAP_CACHE), C_OBJECTS)
    live = take(raw, c, objects * (2 * maps + 3))
    assert counts(raw, inner)[0] == 3
    raw.validate()
    for offset in random.Random(3).sample(live, len(live)):
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.validate()
    trim(raw)
    assert counts(raw, inner) == (0, 0, 0)
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [8, 24, 96, 512])
def test_frees_of_anything_but_a_live_object_of_the_cache_are_refused(raw: RawArena, nbytes: int) -> None:
    c, other = make_cache(raw, nbytes), make_cache(raw, nbytes)
    stride, order = field(raw, c, C_STRIDE_BYTES), field(raw, c, C_ORDER)
    live, foreign = take(raw, c, 5), take(raw, other, 5)
    give(raw, c, live[1:2])
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
    give(raw, c, [live[0], *live[2:]])
    give(raw, other, foreign)
    free_pages(raw.words, page_block, 1)
    assert cache_destroy(raw.words, c) == cache_destroy(raw.words, other) == 0
    assert_pristine(raw)


def test_bulk_is_all_or_nothing(raw: RawArena) -> None:
    c = make_cache(raw, 256)
    out = raw.out(4000)
    assert kmem_cache_alloc_bulk(raw.words, c, 100, out) == 0
    live = out[:100].tolist()
    assert len(set(live)) == 100
    assert not out[100:].any()
    assert all(is_live_object(raw.words, c, offset) for offset in live)
    for k, offset in enumerate(live):
        write(raw, offset, 256, k)
    used = field(raw, c, C_ALLOCS) - field(raw, c, C_FREES)
    assert kmem_cache_alloc_bulk(raw.words, c, 4000, out) == ENOMEM  # runs out mid-way
    assert field(raw, c, C_ALLOCS) - field(raw, c, C_FREES) == used == 100
    raw.validate()
    assert all(is_live_object(raw.words, c, offset) for offset in live)
    assert all(holds(raw, offset, 256, k) for k, offset in enumerate(live))
    left = zone_pages(raw) * 16 - 100
    exact = raw.out(left)
    assert kmem_cache_alloc_bulk(raw.words, c, left, exact) == 0
    assert len({*exact.tolist(), *live}) == left + 100
    assert kmem_cache_alloc_bulk(raw.words, c, 1, out) == ENOMEM
    assert kmem_cache_alloc_bulk(raw.words, c, 0, out) == 0
    give(raw, c, exact.tolist() + live)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_slab_falls_back_to_the_smallest_order_when_blocks_are_short() -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, 2048)
    assert field(raw, c, C_ORDER) == 3
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    for pfn in pages[::2]:
        assert free_pages(raw.words, pfn, 0) == 0
    assert max(order for order, _ in free_blocks(raw)) == 0
    live = take(raw, c, 2 * len(pages[::2]))  # two to a page
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    assert field(raw, c, C_ORDER_FALLBACK) == field(raw, c, C_NR_SLABS) == len(pages[::2])
    assert all(page_info(raw, offset // PAGE) >> ORDER_SHIFT & ORDER_MASK == 0 for offset in live)
    for k, offset in enumerate(live):
        write(raw, offset, 2048, k)
    raw.validate()
    assert all(holds(raw, offset, 2048, k) for k, offset in enumerate(live))
    for pfn in pages[1::2]:
        free_pages(raw.words, pfn, 0)
    give(raw, c, live[:120])  # whole blocks are free again
    mixed = take(raw, c, 60)
    assert {page_info(raw, pfn) >> ORDER_SHIFT & ORDER_MASK for pfn in slabs_of(raw, mixed)} == {0, 3}
    assert field(raw, c, C_ORDER_FALLBACK) == len(pages[::2])
    raw.validate()
    give(raw, c, live[120:] + mixed)
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
    give(raw, c, [live[77]])
    assert kmem_cache_alloc(raw.words, c) == live[77]
    give(raw, c, live)
    assert cache_destroy(raw.words, c) == 0


def test_a_cache_with_a_constructor_never_makes_slabs_by_itself(raw: RawArena) -> None:
    c = make_cache(raw, 64, flags=CF_CTOR)
    before = metadata(raw)
    assert kmem_cache_alloc(raw.words, c) == EAGAIN
    assert kmem_cache_alloc_bulk(raw.words, c, 3, raw.out(3)) == EAGAIN
    assert_unchanged(raw, before)
    assert cache_destroy(raw.words, c) == 0


def test_a_closed_arena_hands_out_no_object_and_takes_objects_back(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    live = take(raw, c, 3)
    raw.words[H_CLOSED] = 1
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    assert kmem_cache_alloc_bulk(raw.words, c, 2, raw.out(2)) == ENOMEM
    give(raw, c, live)
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
    give(raw, c, list(live))
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_kmalloc_and_a_cache_of_the_same_size_do_not_share_slabs(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    mine, theirs = take(raw, c, 1)[0], int(kmalloc(raw.words, 64, 0))
    assert mine // PAGE != theirs // PAGE
    assert kmem_cache_free(raw.words, c, theirs) == EINVAL
    assert kmem_cache_free(raw.words, class_cache(raw, 64), theirs) == 0
    give(raw, c, [mine])
    assert zone_word(raw, ZONE_NORMAL, 0) == raw.plan.meta_pages
