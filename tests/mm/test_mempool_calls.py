"""Pools over machine code: every short life against a model of what lives, with functions that know what they made."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
from checks import some
from kernels import assert_pristine
from support import RawArena

from realalloc.mm.layout import (
    BACKING_CALLS,
    EINVAL,
    ENOMEM,
    GFP_WAIT_BIT,
    GFP_ZERO_BIT,
    OK,
    ORDER_ALLOC_FIRST,
    ORDER_RESERVE_FIRST,
    ORDER_RESERVE_ONLY,
    P_ALLOC_FN,
    P_CURR_NR,
    P_FREE_FN,
    WORD_BYTES,
    ZONE_NORMAL,
)
from realalloc.mm.mempool_calls import (
    MAX_ELEMENT,
    calls_alloc,
    calls_alloc_wait,
    calls_fill,
    calls_free,
    calls_serve,
)
from realalloc.mm.mempool_life import pool_create, pool_destroy, pool_resize, validate_pool
from realalloc.mm.mempool_wait import pool_claim, pool_wait_begin
from realalloc.mm.prim import call_free_fn

ALLOC = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class Functions:
    """An alloc_fn and a free_fn that keep the books."""

    def __init__(self, raw: RawArena, room: int) -> None:
        self.raw, self.room = raw, room
        self.live: set[int] = set()
        self.numbers = itertools.count(1)
        self.calls: list[tuple[int, int]] = []
        self.strange: int | None = None
        self.alloc, self.free = ALLOC(self._alloc), FREE(self._free)

    def _alloc(self, start: int, data: int, gfp: int) -> int:
        self.calls.append((data, gfp))
        assert start == self.raw.words.ctypes.data
        if self.strange is not None or len(self.live) >= self.room:
            return self.strange or 0
        number = next(self.numbers)
        self.live.add(number)
        return number

    def _free(self, start: int, element: int) -> None:
        assert start == self.raw.words.ctypes.data
        self.live.remove(element)


def address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Life:
    """A pool over machine code."""

    def __init__(self, raw: RawArena, min_nr: int, order: int, room: int = 100) -> None:
        self.raw, self.functions = raw, Functions(raw, room)
        self.p = int(pool_create(raw.words, min_nr, BACKING_CALLS, 17, WORD_BYTES, order, ZONE_NORMAL))
        raw.words[self.p + P_ALLOC_FN] = address(self.functions.alloc)
        raw.words[self.p + P_FREE_FN] = address(self.functions.free)
        self.held: list[int] = []
        self.order, self.capacity = order, max(1, min_nr)

    @property
    def curr(self) -> int:
        return int(self.raw.words[self.p + P_CURR_NR])

    def check(self) -> None:
        assert len(self.functions.live) == self.curr + len(self.held)
        assert set(self.held) <= self.functions.live
        assert validate_pool(self.raw.words, self.p) == OK
        assert self.order != ORDER_RESERVE_ONLY or len(self.functions.live) <= self.capacity

    def alloc(self) -> None:
        possible = self.curr > 0
        if self.order != ORDER_RESERVE_ONLY or len(self.functions.live) < self.capacity:
            possible |= len(self.functions.live) < self.functions.room
        element = int(calls_alloc(self.raw.words, self.p, 0))
        assert (element > 0) == possible and (element > 0 or element == ENOMEM)
        if element > 0:
            self.held.append(element)

    def free(self) -> None:
        if self.held:
            assert calls_free(self.raw.words, self.p, self.held.pop(0)) == OK
        else:
            assert calls_free(self.raw.words, self.p, 1) == EINVAL

    def fill(self) -> None:
        status = calls_fill(self.raw.words, self.p, self.capacity, 0)
        assert status == OK or len(self.functions.live) >= self.functions.room

    def fails(self) -> None:
        self.functions.room = 0 if self.functions.room else 100

    def end(self) -> None:
        out = np.zeros(64, np.int64)
        assert pool_destroy(self.raw.words, self.p, 1, out) == OK
        for element in out[1 : 1 + int(out[0])].tolist():
            call_free_fn(address(self.functions.free), self.raw.words.ctypes.data, element)
        while self.held:
            self.free()
        assert not self.functions.live


@pytest.mark.parametrize("order", [ORDER_RESERVE_FIRST, ORDER_ALLOC_FIRST, ORDER_RESERVE_ONLY])
@pytest.mark.parametrize("min_nr", [0, 2])
def test_every_short_life(raw: RawArena, min_nr: int, order: int) -> None:
    for verbs in itertools.product(["alloc", "free", "fill", "fails"], repeat=some(5, 3)):
        life = Life(raw, min_nr, order)
        for verb in verbs:
            getattr(life, verb)()
            life.check()
        life.end()
    assert_pristine(raw)


@pytest.mark.parametrize("strange", [0, -1, -(1 << 62), 1 << 62, (1 << 63) - 1])
def test_what_is_no_element_is_a_failure(raw: RawArena, strange: int) -> None:
    life = Life(raw, 1, ORDER_RESERVE_FIRST)
    life.functions.strange = strange
    assert calls_fill(raw.words, life.p, 1, 0) == ENOMEM
    assert calls_alloc(raw.words, life.p, 0) == ENOMEM
    assert calls_alloc_wait(raw.words, life.p, 1000) == ENOMEM
    life.functions.strange = None
    life.alloc()
    for wrong in (0, -1, MAX_ELEMENT + 1):
        assert calls_free(raw.words, life.p, wrong) == EINVAL
    life.check()
    life.end()
    assert_pristine(raw)


def test_flags_and_data_reach_alloc_fn_and_zeroing_does_not_touch_numbers(raw: RawArena) -> None:
    life = Life(raw, 1, ORDER_ALLOC_FIRST)
    life.held.append(int(calls_alloc(raw.words, life.p, GFP_WAIT_BIT | GFP_ZERO_BIT)))
    assert life.functions.calls == [(17, GFP_ZERO_BIT)]  # alloc-first asks without waiting
    assert calls_fill(raw.words, life.p, 1, 8) == OK and life.functions.calls[-1] == (17, 8)
    life.functions.room = 0
    life.held.append(int(calls_alloc(raw.words, life.p, GFP_ZERO_BIT)))
    assert life.held[-1] == 2
    life.end()
    assert_pristine(raw)


def test_the_head_of_the_queue_is_served_with_what_it_needs(raw: RawArena) -> None:
    life, out = Life(raw, 3, ORDER_RESERVE_FIRST, room=0), np.zeros(1, np.int64)
    pool_wait_begin(raw.words, life.p, 2, -1, out)
    request = int(out[0])
    assert calls_serve(raw.words, life.p, 0) == ENOMEM
    life.functions.room = 100
    assert calls_serve(raw.words, life.p, 0) == OK
    assert len(life.functions.live) == 2
    life.held += [int(pool_claim(raw.words, life.p, request)) for _ in range(2)]
    assert sorted(life.held) == [1, 2]
    assert calls_serve(raw.words, life.p, 0) == OK and len(life.functions.live) == 2, "nobody waits"
    pool_resize(raw.words, life.p, 1, np.zeros(8, np.int64))
    life.capacity = 1
    life.free()
    life.check()
    life.end()
    assert_pristine(raw)


def test_a_wait_is_served_by_alloc_fn_and_ends_in_time(raw: RawArena) -> None:
    life = Life(raw, 1, ORDER_RESERVE_FIRST, room=1)
    life.held.append(int(calls_alloc_wait(raw.words, life.p, -1)))
    assert calls_alloc_wait(raw.words, life.p, 0) == ENOMEM
    assert calls_alloc_wait(raw.words, life.p, 2_000_000) == ENOMEM
    life.functions.room = 2
    life.held.append(int(calls_alloc_wait(raw.words, life.p, 10**10)))
    assert sorted(life.held) == [1, 2]
    life.check()
    life.end()
    assert_pristine(raw)
