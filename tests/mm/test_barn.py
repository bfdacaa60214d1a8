"""The barn: lists of sheaves beside plain lists, how many are kept by size, and no sheaf lost when there is no memory."""

from __future__ import annotations

import itertools

import numba
import pytest
from kernels import class_cache, field, used
from support import MIB, PAGE, RawArena

from realalloc.mm.barn import (
    barn_get,
    barn_has_room,
    barn_put,
    free_sheaf_locked,
    get_empty,
    get_room,
    new_sheaf_locked,
    put_empty,
    widen_barn_locked,
)
from realalloc.mm.layout import (
    C_BARN_EMPTY,
    C_BARN_FULL,
    C_FLAGS,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_SHEAF_CAPACITY,
    CF_LEAN,
    H_SHEAF_CACHE,
    S_BOTTOM,
    S_COUNT,
    SHEAF_BYTES,
    WORD_BYTES,
)
from realalloc.mm.page_alloc import alloc_pages

PUT, GET, ROOM, PUT_EMPTY, GET_EMPTY, NEW, FREE, GET_ROOM, WIDEN = range(9)
SIZES = (8, 64, 256, 1024, 4096, 8192)


@numba.njit
def _do(words, what, c, head, count, sheaf):
    if what == PUT:
        barn_put(words, c + head, c + count, sheaf)
        return 0
    if what == GET:
        return barn_get(words, c + head, c + count)
    if what == ROOM:
        room = 0
        while barn_has_room(words, c, room) == 1:
            room += 1
        return room
    if what == PUT_EMPTY:
        put_empty(words, c, sheaf)
        return 0
    if what == GET_EMPTY:
        return get_empty(words, c)
    if what == GET_ROOM:
        return get_room(words, c)
    if what == WIDEN:
        widen_barn_locked(words, c)
        return 0
    if what == NEW:
        return new_sheaf_locked(words)
    free_sheaf_locked(words, sheaf)
    return 0


def do(raw: RawArena, what: int, c: int, sheaf: int = 0, full: bool = False) -> int:
    head, count = (C_BARN_FULL, C_NR_BARN_FULL) if full else (C_BARN_EMPTY, C_NR_BARN_EMPTY)
    return int(_do(raw.words, what, c, head, count, sheaf))


def sheaves_out(raw: RawArena) -> int:
    return used(raw, int(raw.words[H_SHEAF_CACHE]))


@pytest.fixture(scope="module")
def large() -> RawArena:
    return RawArena(64 * MIB, 10)


@pytest.mark.parametrize("turns", range(1, 7))
def test_lists_are_stacks_that_are_counted(large: RawArena, turns: int) -> None:
    """Every sequence of puts and gets on either list, beside a Python list."""
    c = class_cache(large, 64)
    made = [do(large, NEW, c) for _ in range(turns)]
    assert len(set(made)) == turns and 0 not in made
    for plan in itertools.product((PUT, GET), (False, True), repeat=turns):
        steps = list(zip(plan[::2], plan[1::2], strict=True))
        model: dict[bool, list[int]] = {False: [], True: []}
        spare = list(made)
        for what, full in steps:
            if what == PUT:
                sheaf = spare.pop()
                do(large, PUT, c, sheaf, full)
                model[full].append(sheaf)
            else:
                expected = model[full].pop() if model[full] else 0
                assert do(large, GET, c, full=full) == expected
                spare += [expected] if expected else []
            assert field(large, c, C_NR_BARN_FULL) == len(model[True])
            assert field(large, c, C_NR_BARN_EMPTY) == len(model[False])
        for full in (False, True):
            while model[full]:
                assert do(large, GET, c, full=full) == model[full].pop()
            assert do(large, GET, c, full=full) == 0
    for sheaf in made:
        do(large, FREE, c, sheaf)
    assert sheaves_out(large) == 0
    large.validate()


@pytest.mark.parametrize("size", SIZES)
def test_how_many_are_kept_follows_the_bytes_of_their_objects(size: int) -> None:
    rooms = {}
    for pages in (1024, 1 << 14, 1 << 18):
        raw = RawArena(pages * PAGE, 10)
        c = class_cache(raw, size)
        full = field(raw, c, C_SHEAF_CAPACITY) * size
        if full == 0:  # the arena is too small for sheaves of such objects
            continue
        for lean in (0, CF_LEAN):
            raw.words[c + C_FLAGS] = field(raw, c, C_FLAGS) & ~CF_LEAN | lean
            room = rooms[pages, lean] = do(raw, ROOM, c)
            most = min(max(256 << 10, (512 << 20) // size), pages * PAGE // 128)  # a share of the arena, but
            most //= 4 if lean else 1
            least = min(10, (320 << 10) // (4 if lean else 1) // full)  # ten, or fewer where they are large,
            assert room == max(2, least, min(2048, most // full))  # and two of any size; of tiny ones no more than 2048
    assert len(rooms) >= 4
    assert all(rooms[pages, CF_LEAN] <= rooms[pages, 0] for pages, _ in rooms)


@pytest.mark.parametrize("size", SIZES)
def test_empty_sheaves_beyond_the_room_go_back(large: RawArena, size: int) -> None:
    c = class_cache(large, size)
    room = do(large, ROOM, c)
    made = [do(large, GET_EMPTY, c) for _ in range(room + 5)]
    assert sheaves_out(large) == room + 5 and field(large, c, C_NR_BARN_EMPTY) == 0
    for sheaf in made:
        do(large, PUT_EMPTY, c, sheaf)
    assert field(large, c, C_NR_BARN_EMPTY) == room == sheaves_out(large)
    assert [do(large, GET_EMPTY, c) for _ in range(room)] == made[:room][::-1]  # those of the barn, no new ones
    assert sheaves_out(large) == room
    for sheaf in made[:room]:
        do(large, FREE, c, sheaf)
    large.validate()


def counts(raw: RawArena, c: int) -> tuple[int, int]:
    return field(raw, c, C_NR_BARN_FULL), field(raw, c, C_NR_BARN_EMPTY)


@pytest.mark.parametrize("size", SIZES)
def test_a_barn_keeps_ten_for_the_asking_and_more_as_often_as_slabs_are_asked_for_what_went_there(size: int) -> None:
    raw = RawArena(64 * MIB, 10)
    c = class_cache(raw, size)
    room, capacity = do(raw, ROOM, c), field(raw, c, C_SHEAF_CAPACITY)
    do(raw, WIDEN, c)
    assert counts(raw, c) == (0, 0)  # nothing was returned
    while (sheaf := do(raw, GET_ROOM, c)) != 0:
        do(raw, PUT, c, sheaf, full=True)
    least = min(room, 10)
    assert counts(raw, c) == (least, 0)
    went = 7
    raw.words[c + C_FREES] += went * capacity  # seven sheaves full, whichever they were
    for turn in range(1, 12):
        do(raw, WIDEN, c)
        assert counts(raw, c) == (least, min(room - least, went, turn))
    more = counts(raw, c)[1]
    for turn in range(more):
        sheaf = do(raw, GET_ROOM, c)
        assert sheaf != 0
        do(raw, PUT, c, sheaf, full=True)
        assert counts(raw, c) == (least + turn + 1, more - turn - 1)
    assert do(raw, GET_ROOM, c) == 0
    raw.words[c + C_FREES] += 1 << 20
    for _ in range(room + 3):
        do(raw, WIDEN, c)
    assert counts(raw, c) == (least + more, max(0, room - least - more))  # no more than room for all
    raw.words[c + C_FREES] = 0
    for full in (True, False):
        while (sheaf := do(raw, GET, c, full=full)) != 0:
            do(raw, FREE, c, sheaf)
    assert sheaves_out(raw) == 0
    raw.validate()


def test_a_new_sheaf_is_empty_whatever_was_there(large: RawArena) -> None:
    c = class_cache(large, 8)
    sheaf = do(large, NEW, c)
    large.words[sheaf : sheaf + SHEAF_BYTES // WORD_BYTES] = -1
    do(large, FREE, c, sheaf)
    assert do(large, NEW, c) == sheaf
    assert large.words[sheaf + S_COUNT] == large.words[sheaf + S_BOTTOM] == 0
    do(large, FREE, c, sheaf)
    assert sheaves_out(large) == 0


def test_without_memory_there_is_none_and_the_barn_is_as_it_was() -> None:
    raw = RawArena(4 * MIB, 4)
    c = class_cache(raw, 64)
    kept = [do(raw, NEW, c) for _ in range(2)]
    for sheaf in kept:
        do(raw, PUT_EMPTY, c, sheaf)
    while int(alloc_pages(raw.words, 0, 0)) > 0:
        pass
    while (sheaf := do(raw, NEW, c)) != 0:  # what is left of slabs
        kept.append(sheaf)
    before = sheaves_out(raw)
    assert before == len(kept) > 2
    assert do(raw, NEW, c) == 0
    raw.words[c + C_FREES] += 1 << 20
    do(raw, WIDEN, c)
    raw.words[c + C_FREES] -= 1 << 20
    assert [do(raw, GET_EMPTY, c) for _ in range(3)] == [kept[1], kept[0], 0]
    assert do(raw, GET_ROOM, c) == 0
    assert sheaves_out(raw) == before and field(raw, c, C_NR_BARN_EMPTY) == 0
    for sheaf in kept:
        do(raw, FREE, c, sheaf)
    raw.validate()
