"""Slabs: where one goes when its objects come back, more maps than one slab has, smaller blocks."""

from __future__ import annotations

import random

from kernels import (
    assert_pristine,
    class_cache,
    field,
    free_blocks,
    give_objects,
    holds,
    make_cache,
    page_info,
    page_kind,
    take_objects,
    trim,
    write,
    zone_pages,
)
from support import MIB, PAGE, RawArena

from realalloc.mm.kmem_cache import cache_destroy, cache_shrink
from realalloc.mm.layout import (
    C_EMPTY,
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
    ENOMEM,
    H_FREEMAP_CACHE,
    KIND_SLAB,
    ORDER_MASK,
    ORDER_SHIFT,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, free_pages


def counts(raw: RawArena, c: int) -> tuple[int, int, int]:
    return field(raw, c, C_NR_SLABS), field(raw, c, C_NR_PARTIAL), field(raw, c, C_NR_EMPTY)


def slabs_of(raw: RawArena, offsets: list[int]) -> set[int]:
    return {next(pfn for pfn in range(at // PAGE, 0, -1) if page_kind(raw, pfn) == KIND_SLAB) for at in offsets}


def test_a_slab_moves_between_active_full_partial_and_empty(raw: RawArena) -> None:
    c = make_cache(raw, 512)
    objects = field(raw, c, C_OBJECTS)
    first, second = take_objects(raw, c, objects), take_objects(raw, c, objects)
    extra = take_objects(raw, c, 1)
    assert counts(raw, c) == (3, 0, 0)  # two full ones on no list, one active
    give_objects(raw, c, [first[3]])
    assert counts(raw, c) == (3, 1, 0)
    assert field(raw, c, C_PARTIAL) >> 32 == first[0] // PAGE
    give_objects(raw, c, [second[0]])
    assert counts(raw, c) == (3, 2, 0)
    give_objects(raw, c, [offset for offset in first if offset != first[3]])
    assert counts(raw, c) == (3, 1, 1)
    assert field(raw, c, C_EMPTY) >> 32 == first[0] // PAGE
    more = take_objects(raw, c, objects - 1)  # the rest of the active slab
    assert counts(raw, c) == (3, 1, 1)
    assert take_objects(raw, c, 1) == [second[0]]  # partial before empty
    assert counts(raw, c) == (3, 0, 1)
    again = take_objects(raw, c, objects)
    assert sorted(again) == sorted(first)  # empty before new
    assert counts(raw, c) == (3, 0, 0)
    give_objects(raw, c, again + second + extra + more)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_only_so_many_empty_slabs_are_kept() -> None:
    raw = RawArena(2 * MIB, 4)
    for nbytes, kept in ((64, 5), (512, 5), (2048, 5), (4096, 6), (9000, 6)):
        c = make_cache(raw, nbytes)
        assert field(raw, c, C_MIN_PARTIAL) == kept
        live = take_objects(raw, c, 11 * field(raw, c, C_OBJECTS))
        give_objects(raw, c, live)
        slabs, partial, empty = counts(raw, c)
        assert (partial, empty) == (0, kept)
        assert slabs in (kept, kept + 1)  # the active one may be empty too
        assert field(raw, c, C_SLAB_ALLOCS) - field(raw, c, C_SLAB_FREES) == slabs
        raw.validate()
        assert cache_shrink(raw.words, c) == slabs << field(raw, c, C_ORDER)
        assert counts(raw, c) == (0, 0, 0)
        assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_many_free_maps_fill_more_than_one_slab_of_maps() -> None:
    raw = RawArena(2 * MIB, 4)
    inner, c = field(raw, 0, H_FREEMAP_CACHE), class_cache(raw, 16)
    objects, maps = field(raw, c, C_OBJECTS), field(raw, field(raw, 0, H_FREEMAP_CACHE), C_OBJECTS)
    live = take_objects(raw, c, objects * (2 * maps + 3))
    assert counts(raw, inner)[0] == 3
    raw.validate()
    for offset in random.Random(3).sample(live, len(live)):
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.validate()
    trim(raw)
    assert counts(raw, inner) == (0, 0, 0)
    assert_pristine(raw)


def test_a_slab_falls_back_to_the_smallest_order_when_blocks_are_short() -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, 2048)
    assert field(raw, c, C_ORDER) == 3
    pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]
    for pfn in pages[::2]:
        assert free_pages(raw.words, pfn, 0) == 0
    assert max(order for order, _ in free_blocks(raw)) == 0
    live = take_objects(raw, c, 2 * len(pages[::2]))  # two to a page
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    assert field(raw, c, C_ORDER_FALLBACK) == field(raw, c, C_NR_SLABS) == len(pages[::2])
    assert all(page_info(raw, offset // PAGE) >> ORDER_SHIFT & ORDER_MASK == 0 for offset in live)
    for k, offset in enumerate(live):
        write(raw, offset, 2048, k)
    raw.validate()
    assert all(holds(raw, offset, 2048, k) for k, offset in enumerate(live))
    for pfn in pages[1::2]:
        free_pages(raw.words, pfn, 0)
    give_objects(raw, c, live[:120])  # whole blocks are free again
    mixed = take_objects(raw, c, 60)
    assert {page_info(raw, pfn) >> ORDER_SHIFT & ORDER_MASK for pfn in slabs_of(raw, mixed)} == {0, 3}
    assert field(raw, c, C_ORDER_FALLBACK) == len(pages[::2])
    raw.validate()
    give_objects(raw, c, live[120:] + mixed)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)
