"""Sheaves: every fill level of main, spare and barn, every capacity and class."""

from __future__ import annotations

import itertools
import random

import pytest
from kernels import (
    assert_pristine,
    cached,
    class_cache,
    field,
    holds,
    kept_objects,
    main_sheaf,
    make_cache,
    own,
    records,
    spare_sheaf,
    stock_room,
    used,
    write,
)
from sheaf_twin import Twin, barn_room
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.bits import is_multiple
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.kmem_cache import cache_destroy, validate_cache
from realalloc.mm.layout import (
    C_ALLOCS,
    C_FREES,
    C_MAGIC,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_ORDER,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CF_CTOR,
    CF_NO_SHEAVES,
    D_LAST,
    D_MAGIC,
    D_PUT_BASE,
    D_PUT_END,
    EAGAIN,
    EBUSY,
    ENOMEM,
    GFP_ZERO_BIT,
    H_BAD_FREES,
    H_NR_RECORDS,
    H_SHEAF_CACHE,
    H_ZERO,
    KMALLOC_SIZES,
    MAX_SHEAF_BYTES,
    MAX_SHEAF_OBJECTS,
    MIN_SHEAF_OBJECTS,
    MIN_SHEAVES_PAGES,
    NULL_RECORD,
    PAGE_BYTES,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_OWNERS,
    SHEAF_SHARE_SHIFT,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_free
from realalloc.mm.reclaim import reclaim

SMALLEST = MIN_SHEAVES_PAGES * PAGE


@pytest.mark.parametrize("capacity", [1, 2, 3, 4])
def test_every_fill_level_of_main_spare_and_barn_and_every_step_from_it(capacity: int) -> None:
    """Of two steps from a level the one taken less often, and a drain now and then: all levels, all steps."""
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, PAGE)
    raw.words[c + C_SHEAF_CAPACITY] = capacity
    twin, rng = Twin(raw, c), random.Random(capacity)
    taken: dict[tuple[tuple[int, int, int], bool], int] = {}
    for step in range((8000 if capacity == 1 else 4000) * capacity * (2 if capacity < 4 else 3)):
        level = twin.level
        pops = taken.get((level, True), 0)
        puts = taken.get((level, False), 0)
        up = step // (40 * capacity) % 2 == 0 if pops == puts else pops < puts
        if rng.random() < 0.25:  # what a level hides is the stock
            up = not up
        if not twin.live or (up and len(twin.live) < 250):
            taken[level, True] = pops + 1
            twin.alloc()
        else:
            taken[level, False] = puts + 1
            twin.free(rng.choice(twin.live))
        if step % 700 == 699:
            assert validate_cache(raw.words, c) == 0
        if step % 5600 == 5599:  # the barn has room for ten again, and grows anew
            twin.drain()
        twin.check()
    raw.validate()
    levels = set(itertools.product(range(capacity + 1), range(capacity + 1), range(twin.room + 1)))
    levels -= {(capacity, 0, full) for full in range(twin.room + 1)}  # who refills pops one, who makes room puts one
    missing = {(level, pops) for level in levels for pops in (True, False)} - set(taken)
    assert missing == set()
    assert len(taken) == 2 * len(levels)
    while twin.live:
        twin.free(twin.live[-1])
    assert cache_destroy(raw.words, c) == 0
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)


def test_few_objects_that_go_round_are_joined_by_half_a_sheaf() -> None:
    """With one object in the spare sheaf, each replacement of the oldest was an exchange, and a call."""
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, 16)
    capacity = 16
    raw.words[c + C_SHEAF_CAPACITY] = capacity
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(capacity)]
    d = own(raw, c)
    while main_sheaf(raw, d):
        live.append(int(kmem_cache_alloc(raw.words, c)))
    assert kmem_cache_free(raw.words, c, live.pop(0)) == 0
    assert (len(main_sheaf(raw, d)), len(spare_sheaf(raw, d))) == (0, 1)
    exchanged = 0
    for _ in range(100):
        before = raw.words[d + D_PUT_BASE]
        live.append(int(kmem_cache_alloc(raw.words, c)))
        assert kmem_cache_free(raw.words, c, live.pop(0)) == 0
        exchanged += int(raw.words[d + D_PUT_BASE] != before)
    assert len(main_sheaf(raw, d)) + len(spare_sheaf(raw, d)) == 1 + capacity // 2
    assert exchanged <= 100 // (capacity // 2)
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.validate()


def test_few_objects_are_taken_where_there_is_no_memory_for_more() -> None:
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, PAGE)
    raw.words[c + C_SHEAF_CAPACITY] = 4
    live = []
    while (offset := int(kmem_cache_alloc(raw.words, c))) > 0:
        live.append(offset)
    assert kmem_cache_free(raw.words, c, live[0]) == 0
    assert spare_sheaf(raw, own(raw, c)) == [live[0]]
    assert kmem_cache_alloc(raw.words, c) == live[0]
    assert kmem_cache_alloc(raw.words, c) == ENOMEM
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.validate()


@pytest.mark.parametrize("capacity", range(1, MAX_SHEAF_OBJECTS + 1))
def test_every_capacity_fills_the_barn_and_comes_back(capacity: int) -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw, 16)
    raw.words[c + C_SHEAF_CAPACITY] = capacity
    twin = Twin(raw, c)
    count = (twin.room + twin.stock_room + 3) * capacity + 1
    for _ in range(2):  # once, and again: from then on there is room for all of it
        while len(twin.live) < count:
            twin.alloc()
        twin.check()
        for offset in list(twin.live):
            twin.free(offset)
        twin.check()
    while len(twin.live) < count:
        twin.alloc()
    live = list(twin.live)
    for k, offset in enumerate(live):
        twin.free(offset)
        if k % capacity in (0, capacity - 1) and (JIT or k % 5 == 0):
            twin.check()
    twin.check()
    assert (len(twin.barn), len(twin.stock)) == (twin.room, twin.stock_room)
    kept = kept_objects(raw, c)
    again = [int(kmem_cache_alloc(raw.words, c)) for _ in range(capacity)]
    assert set(again) <= set(kept)
    assert [kmem_cache_free(raw.words, c, offset) for offset in again] == [0] * capacity
    twin.drain()
    assert kept_objects(raw, c) == []
    assert used(raw, c) == 0
    assert [field(raw, c, name) for name in (C_NR_BARN_FULL, C_NR_BARN_EMPTY)] == [0, 0]
    assert raw.words[H_BAD_FREES] == 0
    raw.validate()
    assert_pristine(raw)


@pytest.mark.parametrize("pages", [MIN_SHEAVES_PAGES, 2 * MIN_SHEAVES_PAGES, 4096, 1 << 15])
def test_a_sheaf_holds_a_share_of_the_arena_and_no_more(pages: int) -> None:
    raw = RawArena(pages * PAGE, 4)
    nbytes = min(MAX_SHEAF_BYTES, pages * PAGE >> SHEAF_SHARE_SHIFT)
    for size in KMALLOC_SIZES:
        c = class_cache(raw, size)
        capacity = min(nbytes // size, MAX_SHEAF_OBJECTS)
        if capacity >= MIN_SHEAF_OBJECTS:
            assert field(raw, c, C_SHEAF_CAPACITY) == capacity
            assert raw.words[SHEAF_OWNERS + field(raw, c, C_SHEAF) // SHEAF_DESC_WORDS] == c
        else:
            assert (field(raw, c, C_SHEAF), field(raw, c, C_SHEAF_CAPACITY)) == (0, 0)


@pytest.mark.parametrize("size", KMALLOC_SIZES)
def test_every_class_keeps_what_is_freed_and_gives_it_back(size: int) -> None:
    raw = RawArena(128 * MIB, 6)
    c = class_cache(raw, size)
    capacity = field(raw, c, C_SHEAF_CAPACITY)
    assert capacity == min(MAX_SHEAF_BYTES // size, MAX_SHEAF_OBJECTS) >= MIN_SHEAF_OBJECTS
    live = [int(kmalloc(raw.words, size, 0)) for _ in range(4 * capacity)]
    for k, offset in enumerate(live):
        write(raw, offset, size, k)
    d = own(raw, c)
    assert field(raw, d, D_MAGIC) == field(raw, c, C_MAGIC) != 0
    slab_bytes = PAGE_BYTES << field(raw, c, C_ORDER)
    ends = [k for k in range(slab_bytes) if is_multiple(k, field(raw, d, D_MAGIC), field(raw, d, D_LAST))]
    assert ends == list(range(0, slab_bytes - size + 1, size))
    assert field(raw, d, D_PUT_END) - field(raw, d, D_PUT_BASE) + 1 == capacity
    for k, offset in random.Random(size).sample(list(enumerate(live)), len(live)):
        assert holds(raw, offset, size, k)
        assert kfree(raw.words, offset) == 0
    raw.validate()
    kept = kept_objects(raw, c)
    assert len(kept) == len(set(kept)) == cached(raw, c) == used(raw, c)
    assert set(live) <= set(kept)  # four sheaves: nothing was flushed
    last = live[-1]
    again = [int(kmalloc(raw.words, size, GFP_ZERO_BIT if k % 2 else 0)) for k in range(len(live))]
    assert set(again) <= set(kept)
    assert last in again
    for k, offset in enumerate(again):
        assert k % 2 == 0 or not raw.words[offset // 8 : (offset + size) // 8].any()
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_what_was_freed_last_is_served_first_and_without_the_slabs() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(field(raw, c, C_SHEAF_CAPACITY))]
    assert main_sheaf(raw, own(raw, c)) == []
    for offset in live:
        kmem_cache_free(raw.words, c, offset)
    before = (field(raw, c, C_ALLOCS), field(raw, c, C_FREES))
    assert [int(kmem_cache_alloc(raw.words, c)) for _ in live] == live[::-1]
    assert (field(raw, c, C_ALLOCS), field(raw, c, C_FREES)) == before
    for offset in live:
        kmem_cache_free(raw.words, c, offset)
    assert_pristine(raw)


def test_the_last_object_that_the_arena_has_is_served_though_no_sheaf_can_be_had() -> None:
    """A small arena used up by one cache: sheaves are a convenience, they never cost an object."""
    counts = []
    for sheaves in (True, False):
        raw = RawArena(SMALLEST, 4, sheaves=sheaves)
        c = make_cache(raw, 1000)
        live = []
        while (offset := int(kmem_cache_alloc(raw.words, c))) > 0:
            live.append(offset)
        assert offset == ENOMEM
        assert len(live) == len(set(live))
        counts.append(len(live))
        raw.validate()
        for offset in random.Random(5).sample(live, len(live)):
            assert kmem_cache_free(raw.words, c, offset) == 0
        raw.validate()
        reclaim(raw.words)  # sheaves in the barn have pages too
        again = [int(kmem_cache_alloc(raw.words, c)) for _ in live]
        assert set(again) == set(live)
        assert kmem_cache_alloc(raw.words, c) == ENOMEM
        for offset in again:
            assert kmem_cache_free(raw.words, c, offset) == 0
        assert cache_destroy(raw.words, c) == 0
        assert_pristine(raw)
    with_sheaves, without = counts
    assert without - 4 * 8 <= with_sheaves <= without  # a record and a page of sheaves


def test_a_cache_with_a_constructor_has_sheaves_and_asks_for_objects_when_they_are_empty() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw, 64, flags=CF_CTOR)
    assert field(raw, c, C_SHEAF) != 0
    assert kmem_cache_alloc(raw.words, c) == EAGAIN
    assert cached(raw, c) == used(raw, c) == 0
    raw.validate()
    assert cache_destroy(raw.words, c) == 0


def test_internal_caches_and_those_that_ask_for_it_have_no_sheaves() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw, 64, flags=CF_NO_SHEAVES)
    assert (field(raw, c, C_SHEAF), field(raw, c, C_SHEAF_CAPACITY)) == (0, 0)
    offset = int(kmem_cache_alloc(raw.words, c))
    assert kmem_cache_free(raw.words, c, offset) == 0
    assert (used(raw, c), raw.words[H_NR_RECORDS]) == (0, 0)
    assert kmem_cache_free(raw.words, c, offset) < 0


def test_sheaf_indices_run_out_and_the_next_cache_does_without_until_one_comes_back() -> None:
    raw = RawArena(2 * SMALLEST, 4)
    made = []
    while field(raw, c := make_cache(raw), C_SHEAF) != 0:
        made.append(c)
    owners = [int(raw.words[SHEAF_OWNERS + k]) for k in range(1, SHEAF_BLOCKS)]
    assert len(set(owners)) == len(owners) == SHEAF_BLOCKS - 1
    assert set(made) <= set(owners)
    poor = c
    offset = int(kmem_cache_alloc(raw.words, poor))
    assert kmem_cache_free(raw.words, poor, offset) == 0
    assert used(raw, poor) == 0
    offset = int(kmem_cache_alloc(raw.words, made[3]))
    assert cache_destroy(raw.words, made[3]) == EBUSY
    assert kmem_cache_free(raw.words, made[3], offset) == 0
    index = field(raw, made[3], C_SHEAF)
    assert cache_destroy(raw.words, made[3]) == 0
    assert raw.words[SHEAF_OWNERS + index // SHEAF_DESC_WORDS] == 0
    heir = make_cache(raw, 24)
    assert (heir, field(raw, heir, C_SHEAF)) == (made[3], index)
    live = [int(kmem_cache_alloc(raw.words, heir)) for _ in range(100)]
    assert {(offset % PAGE) % field(raw, heir, C_STRIDE_BYTES) for offset in live} == {0}
    for offset in live:
        assert kmem_cache_free(raw.words, heir, offset) == 0
    for c in {*made, poor} - {heir} | {heir}:
        assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_bulk_verbs_go_through_the_same_sheaves() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    out = raw.out(1000)
    assert kmem_cache_alloc_bulk(raw.words, c, 500, 0, out) == 0
    live = out[:500].tolist()
    assert len(set(live)) == 500
    assert used(raw, c) == 500 + cached(raw, c)
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    kept = cached(raw, c)
    assert kept <= field(raw, c, C_SHEAF_CAPACITY) * (barn_room(raw, c) + stock_room(raw, c) + 2)
    assert kmem_cache_alloc_bulk(raw.words, c, kept, 0, out) == 0
    assert cached(raw, c) == 0
    for offset in out[:kept].tolist():
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert_pristine(raw)


def test_the_record_of_nobody_is_never_written() -> None:
    raw = RawArena(SMALLEST, 4)
    before = raw.words[NULL_RECORD : NULL_RECORD + PAGE // 8].copy()
    c = make_cache(raw)
    for offset in [int(kmem_cache_alloc(raw.words, c)) for _ in range(200)]:
        kmem_cache_free(raw.words, c, offset)
    reclaim(raw.words)
    assert (raw.words[NULL_RECORD : NULL_RECORD + PAGE // 8] == before).all()
    assert raw.words[H_ZERO] == 0
    assert records(raw) == []
    assert used(raw, int(raw.words[H_SHEAF_CACHE])) == 0
    assert_pristine(raw)
