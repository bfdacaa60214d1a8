"""Elements for one event loop: taken at once or awaited, in order of arrival, and a cancelled wait loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import realalloc as ra
from realalloc.adapters.elements import ElementQueue


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[Any]:
    made = arena.mempool(2, size=100, order="reserve-only")
    yield made
    assert (made.stats().outstanding, made.stats().waiters) == (0, 0)
    made.destroy()


async def until(queue: ElementQueue, waiting: int) -> None:
    while queue.waiting != waiting:  # noqa: ASYNC110  # the pool's queue tells nobody
        await asyncio.sleep(0)


def test_a_pool_that_may_grow_is_refused(arena: ra.Arena) -> None:
    for order in ("reserve-first", "alloc-first"):
        made = arena.mempool(2, size=100, order=order)
        with pytest.raises(ValueError, match='is not bounded: make it with order="reserve-only"'):
            ElementQueue(made)
        made.destroy()


def test_taking_never_waits(pool: Any) -> None:
    queue = ElementQueue(pool)
    held = [queue.take(), queue.take()]
    assert [len(buf) for buf in held if buf is not None] == [100, 100]
    assert queue.take() is None and queue.waiting == 0
    held.clear()
    assert queue.take() is not None


def test_who_waits_is_served_in_order_and_before_who_takes(pool: Any) -> None:
    async def work() -> None:
        queue, served = ElementQueue(pool), []
        held = [queue.take(), queue.take()]

        async def wait(name: str) -> None:
            buf = await queue.element()
            served.append(name)
            buf.release()

        waits = []
        for count, name in enumerate("abc", 1):
            waits.append(asyncio.ensure_future(wait(name)))
            await until(queue, count)
        held.pop().release()
        assert queue.take() is None  # it is promised
        await asyncio.gather(*waits)
        assert served == ["a", "b", "c"] and queue.waiting == 0
        held.clear()

    asyncio.run(work())


def test_a_cancelled_wait_loses_nothing(pool: Any) -> None:
    async def work() -> None:
        queue = ElementQueue(pool)
        for release_first in (False, True):
            held = [queue.take(), queue.take()]
            task = asyncio.ensure_future(queue.element())
            await until(queue, 1)
            if release_first:
                held.pop().release()  # granted, but not yet claimed
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await task).release()
            held.clear()
            assert queue.waiting == 0 and pool.curr_nr == 2

    asyncio.run(work())


def test_waiting_lets_go_of_the_element_at_hand(pool: Any) -> None:
    async def work() -> None:
        queue = ElementQueue(pool)
        other, queue.hand = queue.take(), queue.take()
        buf = await asyncio.wait_for(queue.element(), 60)  # it is that very element
        assert queue.hand is None and len(buf) == 100
        buf.release()
        other.release()

    asyncio.run(work())
