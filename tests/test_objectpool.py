"""Pools of a user's own objects: the same contract over any ``alloc_fn`` and ``free_fn``."""

from __future__ import annotations

from typing import Any

import pytest
from checks import Worker, eventually, some

import realalloc as ra


class Maker:
    """An allocator of lists that can be told to fail, and counts."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.live: list[Any] = []
        self.flags: list[int] = []
        self.raises: type[BaseException] | None = None

    def alloc(self, data: Any, gfp: int) -> Any:
        self.flags.append(gfp)
        if len(self.live) >= self.room:
            if self.raises is not None:
                raise self.raises("no")
            return None
        made = [data]
        self.live.append(made)
        return made

    def free(self, element: Any) -> None:
        self.live.remove(element)

    def pool(self, arena: ra.Arena, min_nr: int, **options: Any) -> Any:
        return arena.mempool(min_nr, alloc_fn=self.alloc, free_fn=self.free, **options)


@pytest.mark.parametrize("min_nr", [0, 1, 5])
def test_the_reserve_is_made_by_alloc_fn_and_returned_to_free_fn(arena: ra.Arena, min_nr: int) -> None:
    maker = Maker()
    pool = maker.pool(arena, min_nr, pool_data="data")
    assert isinstance(pool, ra.ObjectPool)
    assert maker.live == [["data"]] * max(1, min_nr)
    assert (pool.min_nr, pool.curr_nr, pool.is_saturated) == (min_nr, max(1, min_nr), True)
    element = pool.alloc()
    assert element == ["data"]
    pool.free(element)
    pool.free(None)
    pool.validate()
    pool.destroy()
    assert maker.live == []


@pytest.mark.parametrize("raises", [None, MemoryError, OSError, ra.OutOfMemory])
def test_a_reserve_that_cannot_be_made_is_out_of_memory_and_all_is_given_back(arena: ra.Arena, raises: Any) -> None:
    maker = Maker(room=3)
    maker.raises = raises
    with pytest.raises(ra.OutOfMemory, match=r"mempool\(4\): alloc_fn failed"):
        maker.pool(arena, 4)
    assert maker.live == []


def test_an_interrupt_while_the_reserve_is_made_gives_all_back(arena: ra.Arena) -> None:
    maker = Maker(room=3)
    maker.raises = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        maker.pool(arena, 4)
    assert maker.live == []


@pytest.mark.parametrize("raises", [None, RuntimeError])
@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
def test_min_nr_elements_can_be_had_although_alloc_fn_fails(arena: ra.Arena, order: str, raises: Any) -> None:
    maker = Maker(room=3)
    maker.raises = raises
    pool = maker.pool(arena, 3, order=order)
    out = [pool.alloc(ra.GFP_NOWAIT) for _ in range(3)]
    for gfp in (ra.GFP_NOWAIT, ra.GFP_ATOMIC):
        with pytest.raises(ra.OutOfMemory, match="may not wait"):
            pool.alloc(gfp)
    with pytest.raises(TimeoutError, match="within 0"):
        pool.alloc(timeout=0)
    with pytest.raises(ra.OutOfMemory, match="reserve is empty"):
        pool.alloc_preallocated()
    pool.free(out.pop())
    assert pool.curr_nr == 1
    out.append(pool.alloc_preallocated())
    with pytest.raises(BufferError, match="3 elements out"):
        pool.destroy()
    for element in out:
        pool.free(element)
    pool.destroy()
    assert maker.live == []


def test_order_says_who_is_asked_first_and_alloc_first_asks_without_waiting(arena: ra.Arena) -> None:
    maker = Maker()
    reserve, alloc = maker.pool(arena, 2), maker.pool(arena, 2, order="alloc-first")
    maker.flags.clear()
    out = [reserve.alloc(), alloc.alloc()]
    assert (reserve.curr_nr, alloc.curr_nr) == (1, 2)
    assert maker.flags == [ra.GFP_KERNEL & ~ra.GFP_DIRECT_RECLAIM]
    reserve.free(out[0])
    alloc.free(out[1])
    assert len(maker.live) == 4, "beyond the reserve elements go to free_fn"
    reserve.destroy()
    alloc.destroy()


def test_only_an_element_that_is_out_can_be_freed_and_once(arena: ra.Arena) -> None:
    maker = Maker()
    pool, other = maker.pool(arena, 2), maker.pool(arena, 1)
    element, foreign = pool.alloc(), other.alloc()
    for wrong in (foreign, [None], "text", 5):
        with pytest.raises(ra.InvalidFree, match="not an element of this pool"):
            pool.free(wrong)
    pool.free(element)
    with pytest.raises(ra.InvalidFree):
        pool.free(element)
    other.free(foreign)
    pool.destroy()
    other.destroy()


def test_a_waiter_is_woken_by_a_free_on_another_thread(arena: ra.Arena) -> None:
    maker = Maker(room=1)
    pool = maker.pool(arena, 1)
    out = pool.alloc()
    workers = [Worker(lambda: pool.free(pool.alloc())), Worker(lambda: pool.free(pool.alloc(timeout=100)))]
    eventually(lambda: len(maker.flags) >= 3)
    pool.free(out)
    for worker in workers:
        worker.result()
    assert pool.curr_nr == 1
    pool.destroy()


def test_resize_up_and_down_keeps_the_guarantee(arena: ra.Arena) -> None:
    maker = Maker()
    pool = maker.pool(arena, 2)
    out = pool.alloc()
    pool.resize(6)
    assert (pool.min_nr, pool.curr_nr) == (6, 5)
    pool.resize(1)
    assert (pool.curr_nr, len(maker.live)) == (1, 2)
    pool.free(out)
    assert len(maker.live) == 1
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error):
            pool.resize(bad)
    maker.room = 3
    pool.resize(9)
    assert (pool.min_nr, pool.curr_nr) == (9, 3)
    pool.validate()
    pool.destroy()
    assert maker.live == []


@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
def test_a_destroyed_pool_hands_out_nothing_and_makes_nothing(arena: ra.Arena, order: str) -> None:
    maker = Maker()
    pool = maker.pool(arena, 1, order=order)
    pool.destroy()
    maker.flags.clear()
    for call in (pool.alloc, pool.alloc_preallocated, pool.destroy, lambda: pool.resize(3)):
        with pytest.raises(ValueError, match="destroyed"):
            call()
    assert maker.flags == [] and maker.live == []


def test_arguments_are_checked(arena: ra.Arena) -> None:
    pool = Maker().pool(arena, 1)
    for gfp, timeout, error in (
        (1.0, None, TypeError),
        (1 << 40, None, ValueError),
        (0, -1, ValueError),
        (0, "1", TypeError),
    ):
        with pytest.raises(error):
            pool.alloc(gfp, timeout)
    assert pool.curr_nr == 1 and repr(pool) == "<ObjectPool 1/1 in reserve, 0 out, 0 waiting>"
    pool.destroy()


def test_threads_that_hammer_a_pool_never_share_an_element(arena: ra.Arena) -> None:
    maker = Maker(room=3)
    pool = maker.pool(arena, 3)

    def work(me: int) -> int:
        for k in range(some(500, 200)):
            element = pool.alloc(timeout=100)
            element.append((me, k))
            assert element[-1] == (me, k) and element.pop() == (me, k)
            pool.free(element)
        return me

    assert [w.result() for w in [Worker(lambda me=me: work(me)) for me in range(5)]] == list(range(5))
    assert pool.curr_nr == 3
    pool.validate()
    pool.destroy()
    assert maker.live == []


def test_reserve_only_makes_no_more_objects_than_min_nr(arena: ra.Arena) -> None:
    maker = Maker()
    pool = maker.pool(arena, 2, order="reserve-only", low=2)
    held = [pool.alloc(), pool.alloc()]
    with pytest.raises(TimeoutError):
        pool.alloc(timeout=0)
    with pytest.raises(ra.OutOfMemory):
        pool.alloc(ra.GFP_NOWAIT)
    assert pool.refill() == 0 and len(maker.flags) == 2
    maker.room = 2
    pool.resize(3)
    with pytest.raises(TimeoutError):
        pool.alloc(timeout=0)
    maker.room = 9
    held.append(pool.alloc())
    assert len(maker.live) == 3
    pool.resize(1)
    while held:
        pool.free(held.pop())
    assert len(maker.live) == pool.curr_nr == 1
    pool.validate()
    pool.destroy()
    assert maker.live == []


def test_an_alloc_fn_that_returns_an_object_twice_is_told(arena: ra.Arena) -> None:
    one = ["only"]
    freed: list[Any] = []
    with pytest.raises(ValueError, match="has already"):
        arena.mempool(2, alloc_fn=lambda data, gfp: one, free_fn=freed.append)
    assert freed == [one]
    pool: Any = arena.mempool(1, alloc_fn=lambda data, gfp: one, free_fn=freed.append)
    held = pool.alloc()
    with pytest.raises(ValueError, match="has already"):
        pool.alloc()
    pool.validate()
    pool.free(held)
    pool.destroy()
    assert freed == [one, one]
