"""Loops of threads that hand objects to each other: nothing is lost, what was written over is CORRUPT, no memory is -1."""

from __future__ import annotations

import numpy as np
import pytest
from cheats import CALLS, OUT, failing, forgetful, how, loops
from checks import some
from numba import njit

from realalloc.lab.crowd import Workers, crowd
from realalloc.lab.loops import crowds
from realalloc.lab.loops.crowds import CORRUPT, COUNT, DEPTH, HAND, STREAM, WAITING
from realalloc.lab.loops.waits import LINE
from realalloc.lab.measure import WorkDiffers
from realalloc.lab.streams import tents
from realalloc.lease.capi import store_at


@pytest.fixture(scope="module")
def made():
    return loops(failing)


def _two(first, second):
    with Workers(2) as workers:
        return workers.run(first, second)


def test_hand_out_and_take_in(made) -> None:
    batches, stack = some(30, 1), np.zeros(WAITING + DEPTH, np.int64)
    sizes, books = np.full(STREAM, 40, np.int32), [how(), how()]
    made.hand_out(books[0], sizes, stack, 0), made.take_in(books[1], stack, 0)
    found = _two(lambda: made.hand_out(books[0], sizes, stack, batches), lambda: made.take_in(books[1], stack, batches))
    count = batches * HAND
    assert found == [0, count * (count - 1) // 2]
    assert books[0][OUT] == count + batches == -books[1][OUT]
    assert stack[COUNT] == stack[0] == 0


def test_a_stack_that_is_full_waits_for_the_other(made) -> None:
    if some(0, 1):
        pytest.skip("as many objects take minutes without jit")
    batches, stack = DEPTH + 5, np.zeros(WAITING + DEPTH, np.int64)
    sizes, books = np.full(STREAM, 8, np.int32), [how(), how()]
    with Workers(2) as workers:
        made.hand_out(books[0], sizes, stack, 0), made.take_in(books[1], stack, 0)
        made.hand_out(books[0], sizes, stack, DEPTH)
        assert stack[COUNT] == DEPTH
        workers.run(lambda: made.hand_out(books[0], sizes, stack, 5), lambda: made.take_in(books[1], stack, batches))
    assert stack[COUNT] == 0 and books[0][OUT] + books[1][OUT] == 0


@pytest.mark.parametrize("most", [0, 1, 50])
def test_a_hand_without_memory_does_not_leave_the_other_waiting(most: int, made) -> None:
    stack, sizes = np.zeros(WAITING + DEPTH, np.int64), np.full(STREAM, 40, np.int32)
    books = [how(most), how()]
    made.hand_out(books[0], sizes, stack, 0), made.take_in(books[1], stack, 0)
    with pytest.raises(MemoryError):
        _two(lambda: made.hand_out(books[0], sizes, stack, 2), lambda: made.take_in(books[1], stack, 2))
    assert books[0][OUT] + books[1][OUT] == 0 and stack[COUNT] == 0


def _stress(made, books, threads: int, young: int, table):
    found = crowd(
        [lambda k=k: made.stress(books[k], 1000 + k, young * (k + 1), young // 2, table) for k in range(threads)]
    )
    return found, [made.clear(books[0], table, 1), made.clear(books[0], table, 0)]


@pytest.mark.parametrize("threads", [1, 2])
def test_stress_frees_everything_and_repeats(threads: int, made) -> None:
    results = []
    made.stress(how(), 1, 0, 0, np.zeros(8, np.int64))
    for _ in range(2):
        books, table = [how() for _ in range(threads)], np.zeros(100, np.int64)
        found, cleared = _stress(made, books, threads, some(3000, 30), table)
        assert cleared == [0, 0] and not table.any()
        assert sum(mine[OUT] for mine in books) == 0
        results.append(found)
    assert results[0] == results[1]
    assert made.stress(how(0), 1, 5, 5, np.zeros(8, np.int64)) == -1
    assert made.stress(how(5), 1, 50, 5, np.zeros(8, np.int64)) == -1


def test_clear_keeps_every_second_if_asked(made) -> None:
    table, books = np.zeros(20, np.int64), how()
    made.stress(books, 7, some(2000, 500), 0, table)
    before = table.copy()
    assert before[::2].any() and before[1::2].any()
    made.clear(books, table, 1)
    assert (table[1::2] == before[1::2]).all() and not table[::2].any()
    assert books[OUT] == np.count_nonzero(before[1::2])
    made.clear(books, table, 0)
    assert books[OUT] == 0


MARKED = 6  # word of ``how``: a block that is written over while it is in use


def _scribbling():
    alloc, free, at = failing.alloc, failing.free, failing.at

    @njit(forceinline=True)
    def scribbled_alloc(books, nbytes):
        if books[MARKED] != 0:
            store_at(at(books, books[MARKED]) + 8, 1 << 60)
        block = alloc(books, nbytes)
        if books[CALLS] % 50 == 0 and 32 <= nbytes <= 512:
            books[MARKED] = block
        return block

    @njit(forceinline=True)
    def marking_free(books, block):
        if block == books[MARKED]:
            books[MARKED] = 0
        free(books, block)
        return 0

    return failing._replace(alloc=scribbled_alloc, free=marking_free)


def test_stress_finds_what_was_written_over() -> None:
    made, table = crowds.make(_scribbling()), np.zeros(50, np.int64)
    books = np.append(how(), 0)
    assert made["stress"](books, 3, some(3000, 400), 200, table) == CORRUPT
    with pytest.raises(WorkDiffers):
        crowd([lambda: made["stress"](books, 3, some(3000, 400), 200, table)])


def _correspond(made, threads: int, turns: int, seed: int, books=None):
    blocks, posts = np.zeros((threads, 200), np.int64), np.zeros(2 * LINE * threads, np.int64)
    sizes = tents(8, 16000, 500, 1)
    books = books or [how() for _ in range(threads)]
    made.correspond(books[0], 0, threads, blocks[0], posts, sizes, seed, 0)
    found = crowd(
        [
            lambda k=k: made.correspond(books[k], k, threads, blocks[k], posts, sizes, seed + k, turns)
            for k in range(threads)
        ]
    )
    for _ in range(2):
        crowd([lambda k=k: made.part(books[k], k, blocks[k], posts) for k in range(threads)])
    return found, sum(mine[OUT] for mine in books), blocks, posts


@pytest.mark.parametrize("threads", [1, 2])
def test_correspond_frees_everything_and_repeats(threads: int, made) -> None:
    turns = some(200, 6)
    found, out, blocks, posts = _correspond(made, threads, turns, 5)
    assert out == 0 and not blocks.any() and not posts.any()
    assert _correspond(made, threads, turns, 5)[0] == found != _correspond(made, threads, turns, 6)[0]
    with pytest.raises(MemoryError):
        _correspond(made, 1, turns, 5, [how(100)])


def test_part_finds_what_was_written_over(made) -> None:
    blocks, posts = np.zeros(50, np.int64), np.zeros(2 * LINE, np.int64)
    made.correspond(how(), 0, 1, blocks, posts, tents(64, 512, 50, 1), 1, 3)
    (first, *_) = blocks[blocks != 0]
    store_at(int(first), 16)  # its size is in its first word and in its last
    assert made.part(how(), 0, blocks, posts) == CORRUPT


def test_leak_leaves_one_and_frees_one(made) -> None:
    table, books = np.zeros(4, np.int64), how()
    assert [made.leak(books, table, k % 4) for k in range(10)] == [1] * 10
    assert books[OUT] == 4
    assert made.leak(how(0), table, 0) == -1
    store_at(int(table[2]), 77)
    assert made.leak(books, table, 2) == CORRUPT
    assert made.drain(books, table) == 0 + 1 + 2 + 3 and books[OUT] == 0


def test_who_checks_words_by_address_does_not_depend_on_store() -> None:
    made = loops(forgetful)  # its ``store`` forgets: these loops write by address, and find everything
    assert made.stress(how(), 3, some(1000, 100), 10, np.zeros(8, np.int64)) > 0
