"""What goes back from sheaves to slabs: of one cache and no other, of a barn as much as asked for."""

from __future__ import annotations

import itertools

from kernels import assert_pristine, cached, field, main_sheaf, make_cache, own, spare_sheaf, stock, stock_room
from sheaf_twin import barn_room
from support import PAGE, RawArena

from realalloc.mm.drain import flush_barn_locked
from realalloc.mm.kmem_cache import cache_drain, cache_shrink, next_live_object
from realalloc.mm.layout import (
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_NR_SLABS,
    C_SHEAF_CAPACITY,
    D_MAGIC,
    H_NR_RECORDS,
    MIN_SHEAVES_PAGES,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.reclaim import drain_locked

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def test_draining_one_cache_leaves_the_others_their_sheaves() -> None:
    raw = RawArena(SMALLEST, 4)
    made = [make_cache(raw, nbytes) for nbytes in (24, 64, 200)]
    for c in made:
        for offset in [int(kmem_cache_alloc(raw.words, c)) for _ in range(30)]:
            kmem_cache_free(raw.words, c, offset)
    kept = [cached(raw, c) for c in made]
    assert all(count > 0 for count in kept)
    assert cache_drain(raw.words, made[1]) == 0
    assert [cached(raw, c) for c in made] == [kept[0], 0, kept[2]]
    assert field(raw, own(raw, made[1]), D_MAGIC) == 0
    assert next_live_object(raw.words, made[1], 0) == 0
    assert cache_shrink(raw.words, made[0]) > 0
    assert field(raw, made[0], C_NR_SLABS) == cached(raw, made[0]) == 0
    raw.validate()
    assert drain_locked(raw.words) == kept[2] + 1  # and the record
    assert raw.words[H_NR_RECORDS] == 0
    assert drain_locked(raw.words) == 0
    assert_pristine(raw)


def test_a_barn_is_flushed_by_as_many_sheaves_as_asked_for_and_the_door_stays_open() -> None:
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw)
    count = field(raw, c, C_SHEAF_CAPACITY) * (barn_room(raw, c) + stock_room(raw, c) + 2)
    for _ in range(2):  # asked for again: a barn's room grows with use
        taken = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count)]
        for offset in taken:
            kmem_cache_free(raw.words, c, offset)
    full, empty = field(raw, c, C_NR_BARN_FULL), field(raw, c, C_NR_BARN_EMPTY)
    assert full >= barn_room(raw, c) - 1 > 3
    kept = cached(raw, c)
    for asked in (0, 1, 2):
        assert flush_barn_locked(raw.words, c, asked) == asked
        full, empty, kept = full - asked, empty + asked, kept - asked * field(raw, c, C_SHEAF_CAPACITY)
        assert (field(raw, c, C_NR_BARN_FULL), field(raw, c, C_NR_BARN_EMPTY), cached(raw, c)) == (full, empty, kept)
        raw.validate()
    again = [int(kmem_cache_alloc(raw.words, c)) for _ in taken]  # through sheaves that were flushed
    assert len(set(again)) == len(taken)
    for offset in again:
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.validate()
    full = field(raw, c, C_NR_BARN_FULL)
    assert flush_barn_locked(raw.words, c, full + 1) == full
    assert field(raw, c, C_NR_BARN_FULL) == flush_barn_locked(raw.words, c, 9) == 0
    d = own(raw, c)  # what the thread keeps is still its own
    own_kept = len(main_sheaf(raw, d)) + len(spare_sheaf(raw, d)) + len([*itertools.chain(*stock(raw, d))])
    assert cached(raw, c) == own_kept > 0
    assert_pristine(raw)
