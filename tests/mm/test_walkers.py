"""Walkers that can fail: each kind of damage to slabs, lists and sheaves is reported, and left as it was."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import (
    barn,
    info_index,
    kept_objects,
    main_sheaf,
    make_cache,
    metadata,
    own,
    page_index,
    page_kind,
    spare_sheaf,
    stock,
    stock_room,
)
from support import MIB, PAGE, RawArena

from realalloc.mm.drain import flush_barn_locked
from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.kmem_cache import validate_cache, validate_caches
from realalloc.mm.layout import (
    BAD_CACHE_SUM,
    BAD_SHEAF,
    BAD_SLAB_COUNT,
    BAD_SLAB_LIST,
    BAD_SLAB_MAP,
    C_ALLOCS,
    C_BARN_EMPTY,
    C_EMPTY,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_NR_SLABS,
    C_OBJECTS,
    C_PARTIAL,
    C_SHEAF_CAPACITY,
    C_STATE,
    CACHE_LIVE,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_STOCK,
    D_TOP,
    KIND_SLAB,
    MAX_SHEAF_OBJECTS,
    MIN_SHEAVES_PAGES,
    OBJECTS_SHIFT,
    PAGE_CONSTRUCTING,
    PG_LINK,
    PG_MAP0,
    S_COUNT,
    S_DEPTH,
    S_NEXT,
    SHEAF_WORDS,
    STOCK_SHIFT,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages
from realalloc.mm.slab import is_live_object
from realalloc.mm.walkers import next_slab, set_free_bit, validate_sheaves_locked

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def test_slabs_are_found_block_by_block(raw: RawArena) -> None:
    c = make_cache(raw, 2000)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(50)]
    heads = sorted({offset // (PAGE << 3) * 8 for offset in live})
    alloc_pages(raw.words, 2, 0)
    found, pfn = [], 0
    while (pfn := int(next_slab(raw.words, c, pfn))) != 0:
        found.append(pfn)
        pfn += 8
    assert found == heads


def damaged_cache(nbytes: int) -> tuple[RawArena, int, list[int]]:
    """A cache with a full, a partial, an empty and an active slab."""
    raw = RawArena(MIB, 4)
    c = make_cache(raw, nbytes)
    objects = int(raw.words[c + C_OBJECTS])
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(3 * objects + 1)]
    for offset in [*live[objects : 2 * objects], live[2 * objects]]:
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert (raw.words[c + C_NR_PARTIAL], raw.words[c + C_NR_EMPTY], raw.words[c + C_NR_SLABS]) == (1, 1, 4)
    assert validate_caches(raw.words) == 0
    heads = [live[k * objects] // PAGE for k in range(4)]
    return raw, c, heads  # full, empty, partial, active


def bump(name: int, change: int = 1):
    def damage(raw: RawArena, c: int, _heads: list[int]) -> None:
        raw.words[c + name] += change

    return damage


def flip_info(which: int, bits: int):
    def damage(raw: RawArena, _c: int, heads: list[int]) -> None:
        raw.words[info_index(heads[which])] ^= np.int64(bits)

    return damage


def flip_map(which: int):
    def damage(raw: RawArena, _c: int, heads: list[int]) -> None:
        raw.words[page_index(raw, heads[which]) + PG_MAP0] ^= 2

    return damage


def map_beyond(raw: RawArena, _c: int, heads: list[int]) -> None:
    raw.words[page_index(raw, heads[2]) + PG_MAP0 + 1] |= np.int64(1) << 62


def change_owner(raw: RawArena, _c: int, heads: list[int]) -> None:
    raw.words[info_index(heads[0])] += 1 << 16


def lose(name: int):
    def damage(raw: RawArena, c: int, _heads: list[int]) -> None:
        raw.words[c + name] = 0

    return damage


def break_link(raw: RawArena, _c: int, heads: list[int]) -> None:
    raw.words[page_index(raw, heads[2]) + PG_LINK] |= heads[0]


def link_to_partial(which: int):
    def damage(raw: RawArena, _c: int, heads: list[int]) -> None:
        raw.words[page_index(raw, heads[which]) + PG_LINK] = heads[2]

    return damage


def list_also(which: int):
    """Put a slab in front of the partial one, in sound links and counts."""

    def damage(raw: RawArena, c: int, heads: list[int]) -> None:
        raw.words[page_index(raw, heads[which]) + PG_LINK] = heads[2] << 32
        raw.words[page_index(raw, heads[2]) + PG_LINK] = heads[which]
        raw.words[c + C_PARTIAL] = heads[which] << 32 | heads[2]
        raw.words[c + C_NR_PARTIAL] += 1

    return damage


def unlist_partial(raw: RawArena, c: int, _heads: list[int]) -> None:
    raw.words[c + C_PARTIAL] = 0
    raw.words[c + C_NR_PARTIAL] = 0


def swap_lists(raw: RawArena, c: int, _heads: list[int]) -> None:
    raw.words[c + C_PARTIAL], raw.words[c + C_EMPTY] = int(raw.words[c + C_EMPTY]), int(raw.words[c + C_PARTIAL])


def list_stranger(raw: RawArena, c: int, _heads: list[int]) -> None:
    pfn = int(alloc_pages(raw.words, 0, 0))
    raw.words[c + C_EMPTY] = pfn << 32 | pfn


DAMAGE = {
    "the number of slabs": (BAD_SLAB_COUNT, bump(C_NR_SLABS)),
    "the objects of a slab": (BAD_SLAB_COUNT, flip_info(0, 1 << OBJECTS_SHIFT)),
    "the number of partial slabs": (BAD_SLAB_LIST, bump(C_NR_PARTIAL)),
    "the number of empty slabs": (BAD_SLAB_LIST, bump(C_NR_EMPTY, -1)),
    "a lost partial list": (BAD_SLAB_LIST, lose(C_PARTIAL)),
    "a lost empty list": (BAD_SLAB_LIST, lose(C_EMPTY)),
    "a back link": (BAD_SLAB_LIST, break_link),
    "partial and empty mixed up": (BAD_SLAB_LIST, swap_lists),
    "a stranger on the list": (BAD_SLAB_LIST, list_stranger),
    "a full slab that is linked": (BAD_SLAB_LIST, link_to_partial(0)),
    "an active slab that is linked": (BAD_SLAB_LIST, link_to_partial(3)),
    "a full slab on the list": (BAD_SLAB_LIST, list_also(0)),
    "an active slab on the list": (BAD_SLAB_LIST, list_also(3)),
    "a partial slab on no list": (BAD_SLAB_LIST, unlist_partial),
    "a bit behind the last object": (BAD_SLAB_MAP, map_beyond),
    "a constructing slab with free objects": (BAD_SLAB_MAP, flip_info(2, PAGE_CONSTRUCTING)),
    "allocs": (BAD_CACHE_SUM, bump(C_ALLOCS)),
    "frees": (BAD_CACHE_SUM, bump(C_FREES)),
    "an object that is free and was not freed": (BAD_CACHE_SUM, flip_map(2)),
    "slabs of a cache that is gone": (BAD_CACHE_SUM, lose(C_STATE)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_walker_reports(what: str) -> None:
    code, damage = DAMAGE[what]
    raw, c, heads = damaged_cache(96)
    damage(raw, c, heads)
    assert validate_caches(raw.words) == code
    if raw.words[c + C_STATE] == CACHE_LIVE:
        assert validate_cache(raw.words, c) == code


def test_a_slab_of_another_cache_is_missed_by_its_own() -> None:
    raw, c, heads = damaged_cache(96)
    make_cache(raw, 96)
    change_owner(raw, c, heads)
    assert page_kind(raw, heads[0]) == KIND_SLAB
    assert validate_caches(raw.words) in (BAD_SLAB_COUNT, BAD_CACHE_SUM)
    assert validate_caches(raw.words) != 0


def test_a_damaged_external_map_is_reported() -> None:
    raw, c, heads = damaged_cache(8)
    at = int(raw.words[page_index(raw, heads[2]) + PG_MAP0])
    raw.words[at + 3] ^= np.int64(1) << 17
    assert validate_cache(raw.words, c) == BAD_CACHE_SUM


def kept_cache(count: int = 40) -> tuple[RawArena, int, int]:
    """An arena, a cache of it with objects in all three places, and the descriptor."""
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    raw.words[c + C_SHEAF_CAPACITY] = 8
    count += 8 * stock_room(raw, c)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count + 4)]
    for offset in live[:count]:
        kmem_cache_free(raw.words, c, offset)
    assert flush_barn_locked(raw.words, c, 1) == 1  # and an empty sheaf in the barn
    d = own(raw, c)
    assert main_sheaf(raw, d)
    assert spare_sheaf(raw, d)
    assert barn(raw, c)
    assert len(stock(raw, d)) == stock_room(raw, c) > 1
    assert raw.words[c + C_NR_BARN_EMPTY] > 0
    raw.validate()
    return raw, c, d


def damage_sheaf(what: str, raw: RawArena, c: int, d: int) -> list[tuple[int, int]]:
    """Words to change, with what."""
    w = raw.words
    top, put, spare = (int(w[d + name]) for name in (D_TOP, D_PUT, D_PUT_BASE))
    top_full = (int(w[d + D_STOCK]) >> STOCK_SHIFT) * SHEAF_WORDS
    full, empty = int(w[c + C_NR_BARN_FULL]), int(w[c + C_NR_BARN_EMPTY])
    user = next(offset for offset in range(int(w[top]), 1 << 30, 64) if offset not in kept_objects(raw, c))
    return {
        "twice in the main sheaf": [(top, int(w[top - 1]))],
        "in both sheaves": [(put, int(w[top]))],
        "in the barn and in a sheaf": [(put, barn(raw, c)[0][0])],
        "in stock and in a sheaf": [(put, stock(raw, d)[0][0])],
        "a full sheaf in stock with nothing in it": [(top_full + S_COUNT, 0)],
        "a depth of stock that is wrong": [(top_full + S_DEPTH, 1)],
        "a stock that goes round": [(top_full + S_NEXT, top_full)],
        "a stock that loses its end": [(top_full + S_NEXT, 0)],
        "a full sheaf among the empty ones": [(d + D_STOCK, int(w[d + D_STOCK]) | top_full // SHEAF_WORDS)],
        "no object begins there": [(put, int(w[put]) + 8)],
        "of no cache": [(put, 16)],
        "of another cache": [(put, int(kmalloc(w, 64, 0)))],
        "the main top is behind the end": [(d + D_TOP, int(w[d + D_BASE]) + MAX_SHEAF_OBJECTS)],
        "the main top is before the beginning": [(d + D_TOP, int(w[d + D_BASE]) - 2)],
        "the spare top is behind the end": [(d + D_PUT, int(w[d + D_PUT_END]) + 1)],
        "the spare top is before the beginning": [(d + D_PUT, spare - 2)],
        "no zero below the main sheaf": [(int(w[d + D_BASE]) - 1, user)],
        "no zero below the spare sheaf": [(spare - 1, user)],
        "one sheaf too many in the barn": [(c + C_NR_BARN_FULL, full - 1)],
        "one sheaf too few in the barn": [(c + C_NR_BARN_FULL, full + 1)],
        "one empty sheaf too many in the barn": [(c + C_NR_BARN_EMPTY, empty - 1)],
        "one empty sheaf too few in the barn": [(c + C_NR_BARN_EMPTY, empty + 1)],
        "an empty sheaf with something in it": [(int(w[c + C_BARN_EMPTY]) + S_COUNT, 1)],
    }[what]


SHEAF_DAMAGE = [
    "in stock and in a sheaf", "a full sheaf in stock with nothing in it", "a depth of stock that is wrong",
    "a stock that goes round", "a stock that loses its end", "a full sheaf among the empty ones",
    "twice in the main sheaf", "in both sheaves", "in the barn and in a sheaf", "no object begins there", "of no cache",
    "of another cache", "the main top is behind the end", "the main top is before the beginning",
    "the spare top is behind the end", "the spare top is before the beginning", "no zero below the main sheaf",
    "no zero below the spare sheaf", "one sheaf too many in the barn", "one sheaf too few in the barn",
    "one empty sheaf too many in the barn", "one empty sheaf too few in the barn", "an empty sheaf with something in it",
]  # fmt: skip


@pytest.mark.parametrize("what", SHEAF_DAMAGE)
def test_the_walker_finds_damage_of_sheaves_and_leaves_it_as_it_was(what: str) -> None:
    raw, c, d = kept_cache()
    changes = damage_sheaf(what, raw, c, d)
    saved = [(at, int(raw.words[at])) for at, _ in changes]
    for at, value in changes:
        raw.words[at] = value
    before = metadata(raw)
    for walk in (lambda: validate_cache(raw.words, c), lambda: validate_caches(raw.words)):
        assert walk() == BAD_SHEAF
        assert (metadata(raw) == before).all()
    assert validate_sheaves_locked(raw.words, c) == BAD_SHEAF
    for at, value in saved:
        raw.words[at] = value
    raw.validate()


def test_the_walker_finds_an_object_in_a_sheaf_that_is_free_in_its_map_and_leaves_it_free() -> None:
    raw, c, d = kept_cache()
    victim = main_sheaf(raw, d)[0]
    assert set_free_bit(raw.words, c, victim, 1) == 0
    for _ in range(2):
        assert validate_sheaves_locked(raw.words, c) == BAD_SHEAF
    assert is_live_object(raw.words, c, victim) == 0
    assert set_free_bit(raw.words, c, victim, 0) == 0
    raw.validate()
