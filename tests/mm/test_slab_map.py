"""Free maps: objects are found by their bits, in the struct page or in a map of their own."""

from __future__ import annotations

from kernels import assert_pristine, class_cache, field, give_objects, make_cache, take_objects, write
from support import RawArena

from realalloc.mm.kmem_cache import cache_destroy, cache_shrink
from realalloc.mm.layout import C_ALLOCS, C_FLAGS, C_FREES, C_OBJECTS, CF_EXTERNAL_MAP, H_FREEMAP_CACHE


def test_a_freed_object_is_found_by_its_bit_and_not_by_its_bytes(raw: RawArena) -> None:
    c = make_cache(raw, 64)
    live = take_objects(raw, c, 10)
    give_objects(raw, c, live[2:5])
    for offset in live[2:5]:
        write(raw, offset, 64, 255)  # a stray write into freed objects breaks nothing
    raw.validate()
    assert sorted(take_objects(raw, c, 3)) == live[2:5]
    give_objects(raw, c, live)
    assert cache_destroy(raw.words, c) == 0


def test_tiny_objects_have_a_free_map_of_their_own_and_give_it_back(raw: RawArena) -> None:
    inner = field(raw, 0, H_FREEMAP_CACHE)
    for nbytes in (8, 16):
        c = class_cache(raw, nbytes)
        objects = field(raw, c, C_OBJECTS)
        assert field(raw, c, C_FLAGS) & CF_EXTERNAL_MAP
        before = field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES)
        live = take_objects(raw, c, 2 * objects + 1)
        assert field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES) == before + 3
        give_objects(raw, c, live)
        assert cache_shrink(raw.words, c) == 3
        assert field(raw, inner, C_ALLOCS) - field(raw, inner, C_FREES) == before
    assert cache_shrink(raw.words, inner) == 1
    assert_pristine(raw)
