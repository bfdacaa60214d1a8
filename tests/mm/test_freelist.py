"""Lists of numbered nodes against a plain Python list: every operation, every place, and a walker that can fail."""

from __future__ import annotations

import random

import numba
import numpy as np
import pytest

from realalloc.mm.freelist import count_list, first, next_of, push_back, push_front, remove

HEAD, BASE, NODES = 3, 20, 60
COUNT, FIRST, NEXT, FRONT, BACK, REMOVE = range(6)


@numba.njit
def act(words, what, head, stride, node):
    if what == COUNT:
        return count_list(words, head, BASE, stride, NODES, node)
    if what == FIRST:
        return first(words, head)
    if what == NEXT:
        return next_of(words, BASE, stride, node)
    if what == FRONT:
        push_front(words, head, BASE, stride, node)
    if what == BACK:
        push_back(words, head, BASE, stride, node)
    if what == REMOVE:
        remove(words, head, BASE, stride, node)
    return 0


def walk(words, head: int, stride: int) -> list[int]:
    found, node = [], act(words, FIRST, head, stride, 0)
    while node != 0:
        found.append(int(node))
        node = act(words, NEXT, head, stride, node)
    return found


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_a_list_is_what_a_python_list_would_be(stride: int) -> None:
    rng = random.Random(stride)
    words = np.zeros(BASE + NODES * stride, np.int64)
    models: dict[int, list[int]] = {HEAD: [], HEAD + 1: []}
    spare = list(range(1, NODES))
    for _ in range(1500):
        head = rng.choice(list(models))
        model = models[head]
        if spare and rng.random() < 0.52:
            node = spare.pop(rng.randrange(len(spare)))
            if rng.random() < 0.5:
                act(words, FRONT, head, stride, node)
                model.insert(0, node)
            else:
                act(words, BACK, head, stride, node)
                model.append(node)
        elif model:
            node = model.pop(rng.choice((0, -1, rng.randrange(len(model)))))
            act(words, REMOVE, head, stride, node)
            assert words[BASE + node * stride] == 0
            spare.append(node)
        for at, expected in models.items():
            assert walk(words, at, stride) == expected
            assert act(words, COUNT, at, stride, NODES) == len(expected)
            assert words[at] == ((expected[0] << 32 | expected[-1]) if expected else 0)
    untouched = [k for k in range(BASE, len(words)) if (k - BASE) % stride]
    assert not words[untouched].any()
    assert not words[[0, 1, 2, *range(5, BASE)]].any()


def test_large_numbers_keep_to_their_half_of_the_word() -> None:
    big = (1 << 31) - 2
    base = BASE - big  # the links of the two largest numbers are words BASE and BASE + 1
    words = np.zeros(BASE + 2, np.int64)
    act_at(words, base, big, big + 1)
    assert words[HEAD] == big << 32 | (big + 1)
    assert (words[BASE], words[BASE + 1]) == ((big + 1) << 32, big)


@numba.njit
def act_at(words, base, front, back):
    push_front(words, HEAD, base, 1, back)
    push_front(words, HEAD, base, 1, front)
    return 0


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_count_sees_broken_links_and_lists_that_are_too_long(length: int) -> None:
    def fresh():
        words = np.zeros(BASE + 16, np.int64)
        for node in range(1, length + 1):
            act(words, BACK, HEAD, 1, node)
        return words

    assert act(fresh(), COUNT, HEAD, 1, length) == length
    assert act(fresh(), COUNT, HEAD, 1, length - 1) == -1
    for node in range(1, length + 1):
        words = fresh()
        words[BASE + node] ^= 9  # prev
        assert act(words, COUNT, HEAD, 1, length) == -1
    words = fresh()
    words[HEAD] ^= 8  # last
    assert act(words, COUNT, HEAD, 1, length) == -1
    words = fresh()
    words[BASE + length] |= 1 << 32  # a cycle
    assert act(words, COUNT, HEAD, 1, length) == -1
