"""The verbs of a face that keeps its elements itself: every short sequence of them against a model, and what ``out`` names."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from checks import some
from kernels import assert_pristine
from support import RawArena

from realalloc.mm.layout import (
    BACKING_OBJECT,
    ENOMEM,
    H_CLOSED,
    OK,
    ORDER_RESERVE_FIRST,
    ORDER_RESERVE_ONLY,
    P_CAPACITY,
    P_CURR_NR,
    P_FAIL_BELOW,
    P_FAIL_TIMES,
    P_MISSING,
    SURPLUS,
    TAKE_CLAIM,
    TAKE_NOW,
    TAKE_RESERVED,
    WORD_BYTES,
    ZONE_NORMAL,
)
from realalloc.mm.mempool_face import pool_admit, pool_injects, pool_object, pool_put, pool_take
from realalloc.mm.mempool_life import pool_create, pool_destroy, pool_resize, validate_pool
from realalloc.mm.mempool_wait import pool_wait_begin


def make_pool(raw: RawArena, min_nr: int, order: int) -> int:
    p = int(pool_create(raw.words, min_nr, BACKING_OBJECT, 0, WORD_BYTES, order, ZONE_NORMAL))
    assert p > 0
    return p


def end(raw: RawArena, p: int) -> set[int]:
    """Destroy by force; return the numbers that the reserve had."""
    out = np.zeros(64, np.int64)
    assert pool_destroy(raw.words, p, 1, out) == OK
    return set(out[1 : 1 + int(out[0])].tolist())


class Model:
    """A pool of numbers, by hand."""

    def __init__(self, capacity: int, order: int) -> None:
        self.capacity = self.missing = capacity
        self.order = order
        self.reserve: list[int] = []
        self.out: set[int] = set()

    def take(self) -> bool:
        return bool(self.reserve)

    def room(self) -> bool:
        owed = self.order != ORDER_RESERVE_ONLY or self.missing > 0
        return len(self.reserve) < self.capacity and owed

    def keeps(self) -> bool:
        """Whether an element that comes back stays."""
        too_many = self.order == ORDER_RESERVE_ONLY and len(self.reserve) + len(self.out) > self.capacity
        return len(self.reserve) < self.capacity and not too_many


def play(raw: RawArena, capacity: int, order: int, verbs: tuple[str, ...]) -> None:
    p, model, out = make_pool(raw, capacity, order), Model(capacity, order), np.zeros(64, np.int64)
    numbers = itertools.count(1)
    for verb in verbs:
        out[0] = 0
        if verb == "offer":
            number, room = next(numbers), model.room()
            assert pool_object(raw.words, p, number, out) == (OK if room else SURPLUS)
            assert out[0] == room
            if room:
                model.reserve.append(number)
                model.missing = max(0, model.missing - 1)
        elif verb == "take":
            pool_take(raw.words, p, TAKE_NOW, 0, out)
            assert (out[0] > 0) == model.take()
            if model.take():
                model.out.add(int(out[0]))
                assert model.reserve.pop() == out[0]
        elif verb == "put" and model.out:
            number, keeps = model.out.pop(), False
            model.out.add(number)
            keeps = model.keeps()
            model.out.remove(number)
            pool_put(raw.words, p, number, out)
            assert out[0] == 1 + (OK if keeps else SURPLUS)
            if keeps:
                model.reserve.append(number)
        elif verb == "admit" and order != ORDER_RESERVE_ONLY:
            number = next(numbers)
            pool_admit(raw.words, p, number, out)
            assert out[0] == number
            model.out.add(number)
        elif verb == "shrink":
            before = list(model.reserve)
            assert pool_resize(raw.words, p, 1, out) == OK
            model.capacity = 1
            while len(model.reserve) > 1 or (
                order == ORDER_RESERVE_ONLY and model.reserve and len(model.reserve) + len(model.out) > 1
            ):
                model.reserve.pop()
            assert set(out[1 : 1 + int(out[0])].tolist()) == set(before) - set(model.reserve)
            model.missing = max(0, 1 - len(model.reserve) - len(model.out))
        found = [int(raw.words[p + name]) for name in (P_CURR_NR, P_CAPACITY, P_MISSING)]
        assert found == [len(model.reserve), model.capacity, model.missing], verbs
        assert validate_pool(raw.words, p) == OK, verbs
    assert end(raw, p) == set(model.reserve)
    for number in model.out:
        out[0] = 0
        pool_put(raw.words, p, number, out)
        assert out[0] == 1 + SURPLUS


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("capacity", [1, 2])
def test_every_short_life(raw: RawArena, capacity: int, order: int) -> None:
    for verbs in itertools.product(["offer", "take", "put", "admit", "shrink"], repeat=some(5, 3)):
        play(raw, capacity, order, verbs)
    assert_pristine(raw)


def test_nothing_is_named_where_nothing_was_taken(raw: RawArena) -> None:
    p, out = make_pool(raw, 1, ORDER_RESERVE_FIRST), np.zeros(4, np.int64)
    for how, argument in ((TAKE_NOW, 0), (TAKE_RESERVED, 0), (TAKE_CLAIM, 12345)):
        out[0] = 77
        pool_take(raw.words, p, how, argument, out)
        assert out[0] <= 0
    assert pool_object(raw.words, p, 9, out) == OK
    pool_take(raw.words, p, TAKE_RESERVED, 0, out)
    assert out[0] == 9
    pool_wait_begin(raw.words, p, 1, -1, out)
    request = int(out[0])
    out[0] = 0
    pool_put(raw.words, p, 9, out)
    assert out[0] == 1
    pool_take(raw.words, p, TAKE_NOW, 0, out)
    assert out[0] <= 0, "it is granted"
    pool_take(raw.words, p, TAKE_CLAIM, request, out)
    assert out[0] == 9
    out[0] = 0
    pool_put(raw.words, p, 9, out)
    assert end(raw, p) == {9}
    assert_pristine(raw)


def test_a_pool_or_an_arena_that_is_gone_takes_nothing(raw: RawArena) -> None:
    p, out = make_pool(raw, 2, ORDER_RESERVE_FIRST), np.zeros(4, np.int64)
    pool_admit(raw.words, p, 5, out)
    assert out[0] == 5
    raw.words[H_CLOSED] = 1
    assert pool_object(raw.words, p, 6, out) == ENOMEM and out[0] == 0
    raw.words[H_CLOSED] = 0
    end(raw, p)
    out[0] = 9
    pool_admit(raw.words, p, 7, out)
    assert out[0] == 0
    assert pool_object(raw.words, p, 7, out) == ENOMEM and out[0] == 0
    pool_put(raw.words, p, 5, out)  # the last one: the descriptor goes
    assert_pristine(raw)


def test_injected_failures_are_told_to_the_face(raw: RawArena) -> None:
    p = make_pool(raw, 1, ORDER_RESERVE_FIRST)
    assert pool_injects(raw.words, p) == 0
    raw.words[p + P_FAIL_BELOW], raw.words[p + P_FAIL_TIMES] = 1 << 24, 2
    assert [pool_injects(raw.words, p) for _ in range(3)] == [1, 1, 0]
    end(raw, p)
    assert_pristine(raw)
