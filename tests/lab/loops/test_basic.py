"""Loops of one thread or two: what they return, what they leave, and that a failing allocation ends them without harm."""

from __future__ import annotations

import numpy as np
import pytest
from cheats import CALLS, OUT, failing, how, loops

from realalloc.lab.crowd import Workers
from realalloc.lab.loops.basic import BATCH, FAILED, RING, TABLE
from realalloc.lab.loops.crowds import STREAM
from realalloc.lab.loops.waits import LINE
from realalloc.lab.measure import check

SIZES = np.array([8, 64, 500, 24], np.int32)
SLOTS = np.array([0, 1, 0, 1], np.int32)


@pytest.fixture(scope="module")
def made():
    return loops(failing)


def _blocks(count: int = 4) -> np.ndarray:
    return np.zeros(count, np.int64)


def test_pairs(made) -> None:
    books = how()
    assert made.pairs(books, 24, 10, True) == made.pairs(books, 24, 10, False) == 240
    assert (books[CALLS], books[OUT]) == (20, 0)
    assert made.pairs(how(3), 24, 10, True) == FAILED


def test_batches(made) -> None:
    books, blocks = how(), _blocks()
    order = np.array([2, 0, 3, 1], np.int32)
    assert made.batches(books, 16, order, blocks, 3) == 3 * 4 * 16
    assert (books[CALLS], books[OUT]) == (12, 0) and len(set(blocks.tolist())) == 4
    assert made.batches(how(6), 16, order, blocks, 3) == FAILED


def test_replace_and_drain(made) -> None:
    books, blocks = how(), _blocks()
    assert made.replace(books, blocks, SLOTS, SIZES, 0, 4) == SIZES.sum()
    assert (books[CALLS], books[OUT]) == (4, 2)
    assert made.drain(books, blocks) == 2 + 3  # what the last two hold
    assert books[OUT] == 0 and not blocks.any()
    assert made.drain(books, blocks) == 0


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_replace_fails_and_nothing_is_freed_twice(made, most: int) -> None:
    books, blocks = how(most), _blocks()
    assert made.replace(books, blocks, SLOTS, SIZES, 0, 4) == FAILED
    assert books[OUT] == np.count_nonzero(blocks)
    made.drain(books, blocks)
    assert books[OUT] == 0


def test_replay(made) -> None:
    books, blocks = how(), _blocks()
    slots, sizes = np.array([3, 1, 3, 0], np.int32), np.array([100, 8, -1, 16], np.int32)
    assert made.replay(books, blocks, slots, sizes, 0, 4) == 124
    assert books[OUT] == 2 and blocks[3] == 0
    made.drain(books, blocks)
    assert books[OUT] == 0
    books = how(1)
    assert made.replay(books, blocks, slots, sizes, 0, 4) == FAILED
    made.drain(books, blocks)
    assert books[OUT] == 0


@pytest.mark.parametrize("stride", [0, 64, 4096])
def test_fifo_replaces_the_oldest(made, stride: int) -> None:
    books, blocks = how(), _blocks(3)
    assert made.fifo(books, blocks, 9000, 0, 10, stride) == 90_000
    assert books[OUT] == 3
    assert made.drain(books, blocks) == 7 + 8 + 9
    books = how(4)
    assert made.fifo(books, blocks, 9000, 0, 10, stride) == FAILED
    made.drain(books, blocks)
    assert books[OUT] == 0


def _side_by_side(first, second):
    with Workers(2) as workers:
        return workers.run(first, second)


def test_produce_and_consume(made) -> None:
    number = 3 * RING + 32
    ring, marks, sizes = _blocks(RING), _blocks(2 * LINE), np.full(STREAM, 24, np.int32)
    mine, other = how(), how()  # books of one thread each
    made.produce(mine, sizes, ring, marks, 0), made.consume(other, ring, marks, 0)
    sums = _side_by_side(
        lambda: made.produce(mine, sizes, ring, marks, number), lambda: made.consume(other, ring, marks, number)
    )
    assert sums == [number * (number - 1) // 2] * 2
    assert mine[OUT] == number == -other[OUT]


def test_a_producer_without_memory_does_not_leave_the_consumer_waiting(made) -> None:
    ring, marks, sizes = _blocks(RING), _blocks(2 * LINE), np.full(STREAM, 24, np.int32)
    mine, other = how(100), how()
    made.produce(how(), sizes, ring, marks, 0), made.consume(how(), ring, marks, 0)
    with pytest.raises(MemoryError):
        _side_by_side(
            lambda: made.produce(mine, sizes, ring, marks, 2 * RING), lambda: made.consume(other, ring, marks, 2 * RING)
        )
    assert mine[OUT] == 100 == -other[OUT]


@pytest.mark.parametrize("most", [1 << 60, BATCH + 5])
def test_swap(made, most: int) -> None:
    buffers, marks, sizes = _blocks(4 * BATCH), _blocks(2 * LINE), np.full(STREAM, 24, np.int32)
    books = [how(most), how()]
    made.swap(how(), 0, sizes, buffers, marks, 0)
    jobs = [lambda k=k: made.swap(books[k], k, sizes, buffers, marks, 4) for k in range(2)]
    if most < 4 * BATCH:
        with pytest.raises(MemoryError):
            _side_by_side(*jobs)
    else:
        assert _side_by_side(*jobs) == [4 * BATCH * (BATCH - 1) // 2] * 2
    assert books[0][OUT] + books[1][OUT] == 0


def test_share(made) -> None:
    number, table = 3000, _blocks(TABLE)
    rng = np.random.default_rng(1)
    slots, sizes = rng.integers(0, 50, number).astype(np.int32), rng.integers(8, 99, number).astype(np.int32)
    books = [how(), how()]
    made.share(how(), table, slots, sizes, 0)
    jobs = [lambda k=k: made.share(books[k], table, slots, sizes, number) for k in range(2)]
    assert _side_by_side(*jobs) == [number] * 2
    assert books[0][OUT] + books[1][OUT] == np.count_nonzero(table) == len(set(slots.tolist()))
    made.drain(books[0], table)
    assert books[0][OUT] + books[1][OUT] == 0
    with pytest.raises(MemoryError):
        check(made.share(how(5), table, slots, sizes, number))
