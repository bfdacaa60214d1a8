"""The life of a cache: geometry, descriptors, construction, shrinking, destruction, looking inside."""

from __future__ import annotations

import pytest
from kernels import (
    NR_INTERNAL,
    assert_pristine,
    assert_unchanged,
    class_cache,
    make_cache,
    metadata,
    page_info,
    page_kind,
    zone_pages,
)
from support import MIB, PAGE, RawArena

from realalloc.mm.kmem_cache import (
    cache_destroy,
    cache_geometry,
    cache_shrink,
    calculate_order,
    construct_begin,
    construct_fail,
    construct_put,
    next_live_object,
    validate_cache,
)
from realalloc.mm.layout import (
    C_ALIGN_BYTES,
    C_ALLOCS,
    C_FREES,
    C_NR_CONSTRUCTING,
    C_NR_EMPTY,
    C_NR_SLABS,
    C_OBJECT_BYTES,
    C_OBJECTS,
    C_ORDER,
    C_STATE,
    C_STRIDE_BYTES,
    CACHE_FREE,
    CACHE_LIVE,
    CACHE_WORDS,
    CF_CTOR,
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    GFP_ORDINARY,
    H_CACHES,
    H_MAX_CACHES,
    H_NR_CACHES,
    KIND_FREE,
    KMALLOC_SIZES,
    PAGE_CONSTRUCTING,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, free_pages


def kernels_order(size: int, max_order: int, min_objects: int) -> int:
    """calculate_order and calc_slab_order of mm/slub.c, line by line."""
    slub_max = min(3, max_order)
    max_objects = max((PAGE << slub_max) // size, 1)
    min_objects = min(min_objects, max_objects)
    lowest = 0
    while PAGE << lowest < min_objects * size:
        lowest += 1
    fraction = 16
    while fraction > 1:
        for order in range(lowest, slub_max + 1):
            if (PAGE << order) % size <= (PAGE << order) // fraction:
                return order
        fraction //= 2
    order = 0
    while PAGE << order < size:
        order += 1
    return order if order <= max_order else -1


@pytest.mark.parametrize("max_order", [1, 3, 10])
@pytest.mark.parametrize("min_objects", [8, 12, 20])
def test_slab_orders_are_the_kernels_for_every_stride(max_order: int, min_objects: int) -> None:
    for stride in [*range(8, 9000, 8), *range(9000, 80_000, 1000), 1 << 20, 4 << 20, (4 << 20) + 8]:
        expected = kernels_order(stride, max_order, min_objects)
        assert calculate_order(stride, max_order, min_objects) == expected, stride
        assert expected == -1 or PAGE << expected >= stride


@pytest.mark.parametrize(
    ("nbytes", "align", "stride"),
    [(1, 1, 8), (8, 1, 8), (9, 8, 16), (64, 64, 64), (65, 64, 128), (100, 32, 128), (1, 4096, 4096), (4097, 8, 4104)],
)
def test_stride_is_the_size_rounded_up_to_the_alignment(nbytes: int, align: int, stride: int) -> None:
    assert cache_geometry(nbytes, align, 10, 12)[0] == stride


def test_an_object_larger_than_the_largest_block_has_no_order() -> None:
    assert cache_geometry((PAGE << 4) + 1, 8, 4, 12)[1] == -1
    assert cache_geometry(PAGE << 4, 8, 4, 12)[1] == 4


def test_a_descriptor_says_what_was_asked(raw: RawArena) -> None:
    c = make_cache(raw, 100, 64)
    fields = (C_STATE, C_OBJECT_BYTES, C_STRIDE_BYTES, C_ALIGN_BYTES, C_ORDER, C_OBJECTS)
    assert [int(raw.words[c + name]) for name in fields] == [CACHE_LIVE, 100, 128, 64, 0, 32]
    assert cache_destroy(raw.words, c) == 0
    assert raw.words[c + C_STATE] == CACHE_FREE


def test_the_table_of_descriptors_runs_full_and_its_slots_are_reused(raw: RawArena) -> None:
    limit, used = int(raw.words[H_MAX_CACHES]), int(raw.words[H_NR_CACHES])
    assert used == NR_INTERNAL + len(KMALLOC_SIZES)
    made = [make_cache(raw, 64) for _ in range(limit - used)]
    assert [(c - int(raw.words[H_CACHES])) // CACHE_WORDS for c in made] == list(range(used, limit))
    before = metadata(raw)
    assert make_cache(raw, 64) == ENOMEM
    assert_unchanged(raw, before)
    live = [int(kmem_cache_alloc(raw.words, c)) for c in made]
    assert len({offset // PAGE for offset in live if offset > 0}) == sum(offset > 0 for offset in live)
    raw.validate()
    for c, offset in zip(made, live, strict=True):
        if offset > 0:
            assert kmem_cache_free(raw.words, c, offset) == 0
    assert cache_destroy(raw.words, made[5]) == 0
    assert cache_destroy(raw.words, made[3]) == 0
    assert make_cache(raw, 32) == made[3]
    assert make_cache(raw, 32) == made[5]
    assert raw.words[made[3] + C_ALLOCS] == 0
    for c in made:
        assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_cache_with_live_objects_is_not_destroyed(raw: RawArena) -> None:
    c = make_cache(raw, 200)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(50)]
    while live:
        before = metadata(raw)
        assert cache_destroy(raw.words, c) == EBUSY
        assert_unchanged(raw, before)
        assert kmem_cache_free(raw.words, c, live.pop()) == 0
    assert cache_destroy(raw.words, c) == 0
    assert validate_cache(raw.words, c) == EINVAL
    assert_pristine(raw)


def test_shrinking_gives_back_only_empty_slabs(raw: RawArena) -> None:
    c = make_cache(raw, 512)
    objects, order = int(raw.words[c + C_OBJECTS]), int(raw.words[c + C_ORDER])
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(4 * objects)]
    assert cache_shrink(raw.words, c) == 0
    for offset in live[objects : 3 * objects]:
        kmem_cache_free(raw.words, c, offset)
    assert cache_shrink(raw.words, c) == 2 << order
    assert raw.words[c + C_NR_SLABS] == 2
    raw.validate()
    kept = live[:objects] + live[3 * objects :]
    assert kmem_cache_free(raw.words, c, kept.pop()) == 0
    assert cache_shrink(raw.words, c) == 0
    raw.validate()
    assert kmem_cache_alloc(raw.words, c) == live[-1]  # the slab with one free object still serves
    for offset in [*kept, live[-1]]:
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert cache_shrink(raw.words, c) == 2 << order
    assert cache_shrink(raw.words, c) == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def constructed(raw: RawArena, c: int) -> tuple[int, list[int]]:
    pfn = int(construct_begin(raw.words, c, GFP_ORDINARY))
    assert pfn > 0
    stride, objects = int(raw.words[c + C_STRIDE_BYTES]), int(raw.words[c + C_OBJECTS])
    return pfn, [pfn * PAGE + k * stride for k in range(objects)]


@pytest.mark.parametrize("nbytes", [8, 64, 500, 3000])
def test_a_constructed_slab_serves_when_its_last_object_is_back(raw: RawArena, nbytes: int) -> None:
    c = make_cache(raw, nbytes, flags=CF_CTOR)
    pfn, objects = constructed(raw, c)
    assert page_info(raw, pfn) & PAGE_CONSTRUCTING
    assert raw.words[c + C_NR_CONSTRUCTING] == 1
    for k, offset in enumerate(reversed(objects)):
        assert kmem_cache_alloc(raw.words, c) == EAGAIN
        assert kmem_cache_free(raw.words, c, offset) == EINVAL  # it is the constructor's
        assert cache_destroy(raw.words, c) == EBUSY
        if k % 50 == 0:
            raw.validate()
        assert construct_put(raw.words, offset) == 0
    assert raw.words[c + C_NR_CONSTRUCTING] == 0
    assert (raw.words[c + C_NR_EMPTY], raw.words[c + C_ALLOCS]) == (1, 0)
    raw.validate()
    out = raw.out(len(objects) + 1)
    assert kmem_cache_alloc_bulk(raw.words, c, len(objects), 0, out) == 0
    assert sorted(out[:-1].tolist()) == objects
    assert kmem_cache_alloc(raw.words, c) == EAGAIN
    assert kmem_cache_alloc_bulk(raw.words, c, 1, 0, out) == EAGAIN
    for offset in objects:
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_bulk_from_a_cache_with_a_constructor_is_all_or_nothing(raw: RawArena) -> None:
    c = make_cache(raw, 64, flags=CF_CTOR)
    _, objects = constructed(raw, c)
    for offset in objects:
        construct_put(raw.words, offset)
    assert kmem_cache_alloc_bulk(raw.words, c, len(objects) + 1, 0, raw.out(100)) == EAGAIN
    assert raw.words[c + C_ALLOCS] == raw.words[c + C_FREES]
    raw.validate()
    assert cache_destroy(raw.words, c) == 0


@pytest.mark.parametrize("leased", [0, 1, 3, 64])
def test_a_slab_whose_constructor_failed_goes_back_with_its_last_object(raw: RawArena, leased: int) -> None:
    c = make_cache(raw, 64, flags=CF_CTOR)
    pfn, objects = constructed(raw, c)
    for offset in objects[: leased // 2]:
        assert construct_put(raw.words, offset) == 0
    assert construct_fail(raw.words, pfn, len(objects) - leased) == 0
    for offset in objects[leased // 2 : leased]:
        assert raw.words[c + C_NR_CONSTRUCTING] == 1
        raw.validate()
        assert kmem_cache_alloc(raw.words, c) == EAGAIN
        assert construct_put(raw.words, offset) == 0
    assert raw.words[c + C_NR_CONSTRUCTING] == raw.words[c + C_NR_SLABS] == 0
    assert page_kind(raw, pfn) in (KIND_FREE, 0)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_construction_without_memory_takes_nothing() -> None:
    raw = RawArena(256 << 10, 4)
    c = make_cache(raw, 64, flags=CF_CTOR)
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    before = metadata(raw)
    assert construct_begin(raw.words, c, GFP_ORDINARY) == ENOMEM
    assert_unchanged(raw, before)
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [8, 16, 100, 700, 5000])
def test_every_live_object_is_found_once_and_in_order(nbytes: int) -> None:
    raw = RawArena(MIB, 4)
    c, other = make_cache(raw, nbytes), make_cache(raw, nbytes)
    live = []
    for _ in range(3 * int(raw.words[c + C_OBJECTS]) + 2):
        live.append(int(kmem_cache_alloc(raw.words, c)))
        kmem_cache_alloc(raw.words, other)
    for offset in live[::3]:
        kmem_cache_free(raw.words, c, offset)
    del live[::3]
    live.sort()
    found, offset = [], 0
    while (offset := int(next_live_object(raw.words, c, offset))) != 0:
        found.append(offset)
        offset += 1
    assert found == live
    probes = live[:: max(1, len(live) // 40)]
    for at in probes:
        assert next_live_object(raw.words, c, at) == at
        behind = next((offset for offset in live if offset > at), 0)
        assert next_live_object(raw.words, c, at + 1) == behind
    assert next_live_object(raw.words, c, raw.plan.end_pfn * PAGE) == 0
    assert next_live_object(raw.words, class_cache(raw, 4096), 0) == 0
