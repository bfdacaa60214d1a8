"""Blocks in buffers of a pool, beside plain bytes; requests within a budget, and the first error of any of them."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from checks import eventually

import realalloc as ra
from realalloc.adapters.requests import Block, Requests

PAGE = 4096


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[Any]:
    made = arena.mempool(4, order=0)
    yield made
    assert made.stats().outstanding == 0 and made.curr_nr == 4
    made.destroy()


@pytest.fixture
def requests(pool: Any) -> Iterator[Requests]:
    made = Requests(pool, 2, 2, 10, "test")
    yield made
    made.stop()
    assert made._budget.free == 2


def block_of(pool: Any, count: int, on_release: Callable[[], None] = lambda: None) -> Block:
    return Block(pool.alloc_bulk(count), 0, on_release)


# -- blocks ----------------------------------------------------------------------------------------------------------

CUTS = (0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 1, 3 * PAGE)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(CUTS, repeat=2)))
def test_a_block_is_the_bytes_that_were_appended(pool: Any, first: int, second: int) -> None:
    source = memoryview(bytes(k * 31 % 251 for k in range(first + second)))
    with block_of(pool, 3) as block:
        assert block.capacity_bytes == 3 * PAGE
        assert block._append(source, 0) == min(first + second, 3 * PAGE)
        block.nbytes = 0
        assert block._append(source[:first], 0) == first
        assert block._append(source, first) == min(second, 3 * PAGE - first)
        held = bytes(source[: 3 * PAGE])
        assert b"".join(block.views) == held and block.nbytes == len(held)
        assert [len(view) for view in block.views if len(view) < PAGE] in ([], [len(held) % PAGE])
        padded = b"".join(block._padded())
        assert padded == held + bytes(-len(held) % PAGE)


def test_it_is_released_once_and_then_has_nothing(pool: Any) -> None:
    calls: list[int] = []
    block = block_of(pool, 2, lambda: calls.append(1))
    block.nbytes = PAGE + 5
    view = block.views[1]
    block.release()
    block.release()
    block._drop()
    assert calls == [1] and block.capacity_bytes == 0
    for use in (lambda: block.views, lambda: view[0], lambda: block._hand_over(lambda: None)):
        with pytest.raises(ValueError):
            use()


def test_what_is_handed_over_is_the_heirs_and_both_hear_of_its_end(pool: Any) -> None:
    heard: list[str] = []
    block = block_of(pool, 1, lambda: heard.append("first"))
    block.nbytes = 10
    block.views[0][:] = b"0123456789"
    heir = block._hand_over(lambda: heard.append("second"))
    block.release()
    assert heard == [] and bytes(heir.views[0]) == b"0123456789"
    heir.release()
    assert heard == ["first", "second"]


def test_an_exported_view_is_told_of_and_dropping_leaves_it_alone(pool: Any) -> None:
    calls: list[int] = []
    block = block_of(pool, 2, lambda: calls.append(1))
    block.nbytes = 2 * PAGE
    array = np.frombuffer(block.views[0], np.uint8)  # has a view of its own: not in the way
    raw = pickle.PickleBuffer(block.views[1])  # exports that very view
    with pytest.raises(BufferError):
        block.release()
    assert calls == []
    block._drop()
    assert calls == [1] and pool.stats().outstanding > 0
    del raw, array


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "segments", "says"),
    [
        (0, 1, "depth must be at least 1"),
        (5, 1, "depth must be at most 4"),
        (3, 2, "depth must be at most 2"),
        (1, 0, "segments must be at least 1"),
        (1, 5, "segments must be at most min_nr=4"),
    ],
)
def test_numbers_that_the_pool_cannot_serve(pool: Any, depth: int, segments: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Requests(pool, depth, segments, 1, "test")


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_the_depth_is_what_the_reserve_has(pool: Any, segments: int) -> None:
    made = Requests(pool, None, segments, 1, "test")
    assert (made.depth, made.request_bytes) == (4 // segments, segments * PAGE)
    made.stop()


def test_no_more_blocks_are_out_than_the_depth(requests: Requests) -> None:
    blocks = [requests.block(k, 1) for k in range(2)]
    with pytest.raises(TimeoutError):
        requests.block(2, 0)
    blocks.pop().release()
    blocks.append(requests.block(3, 0))
    for block in blocks:
        block.release()


def test_a_pool_that_somebody_emptied_takes_nothing_of_the_budget(arena: ra.Arena) -> None:
    pool = arena.mempool(4, order=0)
    made = Requests(pool, 2, 2, 0, "test")
    pool.fail_alloc()
    others = pool.alloc_bulk(3)
    with pytest.raises((TimeoutError, ra.OutOfMemory)):
        made.block(0, 0)
    assert made._budget.free == 2
    pool.free_bulk(others)
    made.stop()
    pool.destroy()


def test_an_error_drops_its_block_and_stops_what_lies_beyond(requests: Requests) -> None:
    ran: list[int] = []

    def fail(block: Block) -> None:
        views = block.views  # a traceback would keep them
        raise OSError(5, f"bad block of {len(views)}")

    with pytest.raises(OSError, match="bad block"):
        requests.start(fail, requests.block(100, 1)).result()
    assert isinstance(requests.error, OSError)
    with pytest.raises(CancelledError):
        requests.start(lambda block: ran.append(block.offset), requests.block(101, 1)).result()
    block = requests.block(99, 1)
    requests.start(lambda block: ran.append(block.offset), block).result()
    block.release()
    with pytest.raises(ZeroDivisionError):
        requests.start(lambda _block: 1 // 0, requests.block(1, 1)).result()
    assert ran == [99] and isinstance(requests.error, OSError)  # the first one
    eventually(lambda: requests._budget.free == 2)


def test_a_block_that_was_released_meanwhile_is_not_worked_on(requests: Requests) -> None:
    block = requests.block(0, 1)
    block.release()
    with pytest.raises(CancelledError):
        requests.start(lambda _block: None, block).result()
    assert requests.error is None


def test_who_cannot_be_started_is_dropped(requests: Requests) -> None:
    requests.stop()
    with pytest.raises(RuntimeError):
        requests.start(lambda _block: None, requests.block(0, 1))


def test_stopping_waits_for_what_has_started(requests: Requests) -> None:
    go, ended = threading.Event(), []

    def work(block: Block) -> None:
        go.wait()
        block.release()
        ended.append(True)

    future = requests.start(work, requests.block(0, 1))
    threading.Timer(0.05, go.set).start()
    requests.stop()
    assert ended == [True] and future.done()
