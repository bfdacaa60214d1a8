"""Pools: elements that are there before they are needed, guaranteed, whatever else is exhausted."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from checks import NOT_MEMORYVIEWS, Worker, address, eat_everything, eventually, exhaust, refuses, some, unchanged
from support import MIB, PAGE

import realalloc as ra

BACKINGS = ["kmalloc", "large", "vmalloc", "cache", "constructed", "pages"]


def make(arena: ra.Arena, backing: str, min_nr: int, **options: Any) -> Any:
    """Make a pool over any backing; the cache of the last two stays until the arena closes."""
    if backing == "pages":
        return arena.mempool(min_nr, pages=1, **options)
    if backing in ("cache", "constructed"):
        ctor = (lambda view: None) if backing == "constructed" else None
        return arena.mempool(min_nr, cache=arena.kmem_cache("backing", 600, ctor=ctor), **options)
    size = {"kmalloc": 600, "large": 20_000, "vmalloc": 70_000 if arena.size == MIB else 5 << 20}[backing]
    return arena.mempool(min_nr, size=size, **options)


def drain(pool: Any) -> list[memoryview]:
    """Take elements until a call that may not wait fails."""
    return exhaust(lambda: pool.alloc(ra.GFP_NOWAIT))


# -- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("min_nr", [0, 1, 2])
def test_a_pool_is_full_when_it_is_made_and_gives_all_back_when_destroyed(
    arena: ra.Arena, backing: str, min_nr: int
) -> None:
    pool = make(arena, backing, min_nr)
    assert (pool.min_nr, pool.curr_nr, pool.is_saturated) == (min_nr, max(1, min_nr), True)
    buf = pool.alloc()
    assert len(buf) == pool.element_bytes and buf.format == "B" and not buf.readonly
    buf[:] = b"e" * len(buf)
    assert pool.curr_nr == max(1, min_nr) - 1
    pool.free(buf)
    assert pool.curr_nr == max(1, min_nr)
    pool.validate()
    pool.destroy()


@pytest.mark.parametrize("min_nr", [2**21, 2**32, 2**58, 2**60, 2**61 - 1, 2**61, 2**61 + 1, 2**62, 2**63 - 1])
def test_a_reserve_larger_than_the_arena_is_out_of_memory_and_keeps_nothing(arena: ra.Arena, min_nr: int) -> None:
    refuses(arena, ra.OutOfMemory, str(min_nr), lambda: arena.mempool(min_nr, size=8))
    pool = arena.mempool(1, size=8)
    refuses(arena, ra.OutOfMemory, str(min_nr), pool.resize, min_nr)
    assert (pool.min_nr, pool.curr_nr) == (1, 1)
    pool.destroy()


def test_a_reserve_that_cannot_be_filled_keeps_nothing(small: ra.Arena) -> None:
    refuses(small, ra.OutOfMemory, "reserve cannot be filled", lambda: small.mempool(15, size=60_000 + 5000))
    assert small.stats().live_objects == 0


def test_a_pool_over_another_arenas_cache_is_refused(arena: ra.Arena, small: ra.Arena) -> None:
    cache = small.kmem_cache("c", 64)
    refuses(arena, ValueError, "another arena", lambda: arena.mempool(1, cache=cache))
    cache.destroy()
    refuses(small, ValueError, "was destroyed", lambda: small.mempool(1, cache=cache))


def test_elements_of_a_dma_pool_are_in_the_locked_zone() -> None:
    with ra.Arena(4 * MIB, lock=MIB) as arena:
        for backing in ({"size": 3000}, {"order": 1}):
            pool = arena.mempool(2, gfp=ra.GFP_DMA, **backing)
            bufs = [pool.alloc() for _ in range(4)]
            assert all(address(buf) - arena.address - arena.stats().metadata < MIB for buf in bufs)
            bufs.clear()
            pool.destroy()


# -- the guarantee ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
@pytest.mark.parametrize("backing", BACKINGS)
def test_min_nr_elements_can_be_had_although_the_arena_is_exhausted(small: ra.Arena, backing: str, order: str) -> None:
    pool = make(small, backing, 3, order=order)
    held = eat_everything(small) + (exhaust(pool._cache.alloc) if pool._cache else [])
    got = [pool.alloc(ra.GFP_NOWAIT) for _ in range(3)]
    for k, buf in enumerate(got):
        buf[:] = bytes([k]) * len(buf)
    refuses(small, ra.OutOfMemory, "empty, and GFP_NOWAIT may not wait", pool.alloc, ra.GFP_NOWAIT)
    refuses(small, ra.OutOfMemory, "GFP_ATOMIC", pool.alloc, ra.GFP_ATOMIC)
    refuses(small, TimeoutError, "within 0", lambda: pool.alloc(timeout=0))
    assert all(bytes(buf) == bytes([k]) * len(buf) for k, buf in enumerate(got))
    for _ in range(10):
        pool.free(got.pop())
        got.append(pool.alloc(ra.GFP_NOWAIT))
    pool.validate()
    assert pool.stats().outstanding == 3
    del buf, held
    got.clear()
    assert pool.curr_nr == 3
    pool.destroy()


@pytest.mark.parametrize("backing", BACKINGS)
def test_reserve_only_never_has_more_than_min_nr(backing: str) -> None:
    arena = ra.Arena("64MiB")
    pool = make(arena, backing, 3, order="reserve-only")
    assert pool.is_bounded
    held = [pool.alloc() for _ in range(3)]
    refuses(arena, TimeoutError, "no element came back", lambda: pool.alloc(timeout=0))
    refuses(arena, ra.OutOfMemory, "GFP_NOWAIT may not wait", pool.alloc, ra.GFP_NOWAIT)
    assert (pool.refill(), pool.stats().outstanding, pool.stats().gets_alloc) == (0, 3, 0)
    pool.resize(5)
    assert pool.curr_nr == 2
    held += [pool.alloc(), pool.alloc()]
    pool.resize(2)
    for left in (4, 3, 2):  # what is too many goes before the reserve is filled
        held.pop()
        gc.collect()
        assert (pool.stats().outstanding, pool.curr_nr) == (left, 0)
        refuses(arena, TimeoutError, "no element came back", lambda: pool.alloc(timeout=0))
    held.pop()
    gc.collect()
    assert (pool.stats().puts_free, pool.stats().puts_reserve, pool.curr_nr) == (3, 1, 1)
    pool.resize(1)
    assert pool.curr_nr == 0, "one is out, and that is all there may be"
    pool.validate()
    held.clear()
    gc.collect()
    assert pool.is_saturated
    pool.destroy()
    arena.close()


def test_reserve_only_asks_for_what_a_failed_top_up_owes(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=100, order="reserve-only", low=1)
    pool.fail_alloc()
    held = [pool.alloc()]
    pool.resize(4)
    assert pool.curr_nr == 0
    refuses(arena, TimeoutError, "no element came back", lambda: pool.alloc(timeout=0))
    pool.fail_alloc(0)
    held.append(pool.alloc())
    assert (pool.stats().gets_alloc, pool.curr_nr) == (1, 0)
    held += pool.alloc_bulk(2)
    refuses(arena, TimeoutError, "no element came back", lambda: pool.alloc(timeout=0))
    held.clear()
    assert (pool.curr_nr, pool.stats().puts_free) == (4, 0)
    pool.destroy()


def test_reserve_only_is_a_bound_under_threads(arena: ra.Arena) -> None:
    pool = arena.mempool(3, size=100, order="reserve-only")
    most: list[int] = []

    def use() -> None:
        for _ in range(some(200, 50)):
            with pool.alloc():
                time.sleep(1e-5)
                most.append(pool.stats().outstanding)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(use) for _ in range(6)]:
            done.result()
    assert max(most) <= 3 == pool.curr_nr
    assert pool.stats().gets_alloc == 0 < pool.stats().peak_waiters
    pool.destroy()


def test_reserve_first_uses_the_reserve_and_alloc_first_spares_it(arena: ra.Arena) -> None:
    reserve, alloc = arena.mempool(4, size=100), arena.mempool(4, size=100, order="alloc-first")
    held = [reserve.alloc(), alloc.alloc()]
    assert (reserve.curr_nr, alloc.curr_nr) == (3, 4)
    assert (reserve.stats().gets_reserve, alloc.stats().gets_alloc) == (1, 1)
    held += [reserve.alloc() for _ in range(5)]
    assert (reserve.stats().gets_reserve, reserve.stats().gets_alloc, reserve.stats().low) == (4, 2, 0)
    held.clear()
    assert (reserve.stats().puts_reserve, reserve.stats().puts_free) == (4, 2)
    assert (alloc.stats().puts_reserve, alloc.stats().puts_free) == (0, 1)
    reserve.destroy()
    alloc.destroy()


@pytest.mark.parametrize("backing", BACKINGS)
def test_an_element_with_a_slice_alive_is_not_handed_out_again(small: ra.Arena, backing: str) -> None:
    pool = make(small, backing, 2)
    buf = pool.alloc()
    buf[:] = b"p" * len(buf)
    part = np.frombuffer(buf, np.uint8)[7:]
    pool.free(buf)
    assert (pool.curr_nr, pool.stats().outstanding, small.stats().lingering) == (1, 1, 1)
    others = drain(pool)
    for other in others:
        other[:] = bytes(len(other))
    assert bytes(part) == b"p" * len(part)
    del part, other
    assert pool.stats().outstanding == len(others)
    others.clear()
    pool.destroy()


def test_preallocated_takes_from_the_reserve_only(arena: ra.Arena) -> None:
    pool = arena.mempool(2, size=64, order="alloc-first")
    held = [pool.alloc_preallocated(), pool.alloc_preallocated()]
    refuses(arena, ra.OutOfMemory, "the reserve is empty", pool.alloc_preallocated)
    assert len(pool.alloc()) == 64
    held.clear()
    pool.destroy()


def test_gfp_zero_zeroes_the_element(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=3000)
    with pool.alloc() as buf:
        buf[:] = b"\xff" * 3000
    with pool.alloc(ra.GFP_KERNEL | ra.GFP_ZERO) as buf:
        assert bytes(buf) == bytes(3000)
    pool.destroy()


def test_bulk_is_all_or_none_and_never_more_than_the_reserve(small: ra.Arena) -> None:
    pool = small.mempool(4, order=2)
    bufs = pool.alloc_bulk(4)
    refuses(small, ValueError, "could never be certain", pool.alloc_bulk, 5)
    refuses(small, ValueError, "n must be at least 0", pool.alloc_bulk, -1)
    held = drain(pool)
    refuses(small, TimeoutError, "within", lambda: pool.alloc_bulk(2, timeout=0))
    refuses(small, ra.OutOfMemory, "NOWAIT", lambda: pool.alloc_bulk(2, ra.GFP_NOWAIT))
    pool.free(held.pop())
    refuses(small, TimeoutError, "within", lambda: pool.alloc_bulk(2, timeout=0))
    refuses(small, ra.InvalidFree, "named twice", pool.free_bulk, [*bufs, bufs[1]])
    refuses(small, ra.InvalidFree, "foreign", pool.free_bulk, [*bufs, memoryview(b"")])
    pool.free_bulk(bufs)
    refuses(small, ra.InvalidFree, "freed already", pool.free_bulk, bufs)
    held.clear()
    pool.destroy()


def test_free_takes_this_pools_live_elements_only(arena: ra.Arena) -> None:
    pool, other = arena.mempool(1, size=64), arena.mempool(1, size=64)
    buf, foreign = pool.alloc(), other.alloc()
    for thing in NOT_MEMORYVIEWS:
        refuses(arena, TypeError, f"not {type(thing).__name__}", pool.free, thing)
    refuses(arena, ra.InvalidFree, "another pool", pool.free, foreign)
    refuses(arena, ra.InvalidFree, "another pool", pool.free, arena.kmalloc(64))
    refuses(arena, ra.InvalidFree, "another allocator", arena.kfree, buf)
    refuses(arena, ra.InvalidFree, "another allocator", arena.krealloc, buf, 100)
    refuses(arena, ra.InvalidFree, "slice", pool.free, buf[:5])
    pool.free(None)
    pool.free(buf)
    refuses(arena, ra.InvalidFree, "freed already", pool.free, buf)
    other.free(foreign)
    pool.destroy()
    other.destroy()


def test_elements_are_prefaulted_so_taking_one_and_writing_it_faults_nothing() -> None:
    with ra.Arena("64MiB", huge_pages=False) as arena:
        pool = arena.mempool(8, size=1 << 20)
        warm = pool.alloc()
        pool.free(warm)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        bufs = [pool.alloc() for _ in range(8)]
        for buf in bufs:
            np.frombuffer(buf, np.uint8)[::PAGE] = 1
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 64, "of 2048 pages"
        del buf
        bufs.clear()
        pool.destroy()


# -- waiting ---------------------------------------------------------------------------------------------------------


def empty_pool(arena: ra.Arena) -> tuple[Any, list[memoryview]]:
    """Make a pool with everything out."""
    pool = arena.mempool(2, order=2)
    return pool, drain(pool)


@pytest.mark.parametrize("how", ["free", "del", "last slice", "backing"])
def test_a_waiter_gets_the_element_that_another_thread_returns(small: ra.Arena, how: str) -> None:
    pool, held = empty_pool(small)
    extra = held[-1][3:]
    worker = Worker(lambda: len(pool.alloc(timeout=100)))
    eventually(lambda: pool.stats().waiters == 1)
    if how == "free":
        pool.free(held.pop(0))
    elif how == "del":
        del held[0]
    elif how == "last slice":
        pool.free(held.pop())
        assert worker.is_alive()
        del extra
    else:
        held.clear()
    assert worker.result() == 4 * PAGE
    assert pool.stats().waiters == 0
    extra = None
    held.clear()
    pool.destroy()


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.05, np.float64(0.01)])
def test_a_wait_that_runs_out_is_a_timeout_error_and_not_early(small: ra.Arena, timeout: float) -> None:
    pool, held = empty_pool(small)
    begin = time.monotonic()
    refuses(small, TimeoutError, "no element came back within", lambda: pool.alloc(timeout=timeout))
    assert time.monotonic() - begin >= timeout
    assert pool.stats().waiters == 0
    held.clear()
    pool.destroy()


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError), ([], TypeError)],
)
def test_a_bad_timeout_is_refused_even_if_there_are_elements(arena: ra.Arena, timeout: Any, error: Any) -> None:
    pool = arena.mempool(1, size=64)
    refuses(arena, error, "timeout", lambda: pool.alloc(timeout=timeout))
    refuses(arena, error, "timeout", lambda: pool.alloc_bulk(1, timeout=timeout))
    pool.destroy()


def test_a_timeout_of_infinity_waits_for_ever(small: ra.Arena) -> None:
    pool, held = empty_pool(small)
    worker = Worker(lambda: len(pool.alloc(timeout=float("inf"))))
    eventually(lambda: pool.stats().waiters == 1)
    held.clear()
    assert worker.result() == 4 * PAGE
    pool.destroy()


def test_other_threads_make_progress_while_one_waits(small: ra.Arena) -> None:
    pool, held = empty_pool(small)
    worker = Worker(lambda: len(pool.alloc()))
    eventually(lambda: pool.stats().waiters == 1)
    count = 0
    for _ in range(1000):  # with the GIL held by the waiter none of this would happen
        count += 1
        small.validate() if count % 500 == 0 else None
    assert count == 1000 and worker.is_alive()
    held.clear()
    assert worker.result() == 4 * PAGE
    pool.destroy()


def test_every_one_of_many_waiters_is_served(small: ra.Arena) -> None:
    pool, held = empty_pool(small)
    workers = [Worker(lambda: len(pool.alloc())) for _ in range(5)]
    eventually(lambda: pool.stats().waiters == 5)
    pool.free(held.pop())  # each of them drops its element at once: one is enough for all
    assert [worker.result() for worker in workers] == [4 * PAGE] * 5
    held.clear()
    pool.destroy()


def test_closing_the_arena_wakes_waiters_with_arena_closed() -> None:
    arena = ra.Arena(MIB, max_order=4)
    pool, held = empty_pool(arena)
    workers = [Worker(pool.alloc), Worker(lambda: pool.alloc(timeout=100)), Worker(lambda: pool.alloc_bulk(1))]
    eventually(lambda: pool.stats().waiters == 3)
    with pytest.warns(ResourceWarning, match="live leases"):
        arena.close()
    for worker in workers:
        with pytest.raises(ra.ArenaClosed):
            worker.result()
    held[0][:4] = b"safe"


def test_resizing_up_wakes_waiters_when_there_is_room_again(small: ra.Arena) -> None:
    blocks = exhaust(lambda: small.alloc_pages(4))
    pool = small.mempool(1, order=1)
    held = drain(pool)
    worker = Worker(lambda: len(pool.alloc()))
    eventually(lambda: pool.stats().waiters == 1)
    blocks.pop()
    pool.resize(len(held) + 2)
    assert worker.result() == 2 * PAGE
    held.clear()
    blocks.clear()
    pool.destroy()


# -- resizing and destroying -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
def test_resize_up_and_down_keeps_the_guarantee_with_elements_out(arena: ra.Arena, backing: str) -> None:
    pool = make(arena, backing, 1)
    out: list[memoryview] = []
    for min_nr in (2, 0, 2, 1, 2, 2, 0):
        out.append(pool.alloc())
        out[-1][:] = bytes([len(out)]) * len(out[-1])
        pool.resize(min_nr)
        assert pool.min_nr == min_nr
        pool.validate()
        arena.validate()
        assert pool.curr_nr + len(out) >= min_nr
        if len(out) == 2:
            out.pop(0)
    assert all(len(set(bytes(buf))) == 1 for buf in out)
    out.clear()
    assert pool.curr_nr == 1
    pool.destroy()


def test_resize_wants_a_count(arena: ra.Arena) -> None:
    pool = arena.mempool(2, size=64)
    refuses(arena, ValueError, "min_nr must be at least 0", pool.resize, -1)
    refuses(arena, TypeError, "min_nr must be an integer", pool.resize, 1.0)
    assert (pool.min_nr, pool.curr_nr) == (2, 2)
    pool.destroy()


def test_resize_gives_surplus_memory_back_at_once(arena: ra.Arena) -> None:
    pool = arena.mempool(2, order=6)
    arena.trim()
    before = arena.stats()
    pool.resize(20)
    assert arena.stats().allocated - before.allocated >= 18 * 64 * PAGE
    pool.resize(2)
    assert arena.stats().live_blocks == before.live_blocks
    arena.trim()  # the thread keeps two blocks
    assert arena.stats().allocated - before.allocated <= 4 * PAGE
    pool.destroy()


def test_a_resize_that_cannot_fill_the_reserve_is_completed_by_frees(small: ra.Arena) -> None:
    pool = small.mempool(1, order=4)
    held = drain(pool)
    count = len(held)
    pool.resize(count + 1)
    assert (pool.min_nr, pool.curr_nr, pool.is_saturated) == (count + 1, 0, False)
    held.clear()
    assert pool.curr_nr == count
    small.validate()
    pool.destroy()


def test_destroy_is_refused_while_elements_are_out(arena: ra.Arena) -> None:
    pool = arena.mempool(2, size=64)
    buf = pool.alloc()
    part = buf[4:]
    refuses(arena, BufferError, "1 elements out", pool.destroy)
    pool.free(buf)
    refuses(arena, BufferError, "1 elements out", pool.destroy)
    del part
    pool.destroy()
    calls: list[Callable[[], Any]] = [
        pool.alloc, pool.alloc_preallocated, lambda: pool.alloc(timeout=0), lambda: pool.resize(2), pool.stats,
        pool.validate, pool.destroy, lambda: pool.min_nr, lambda: pool.curr_nr, lambda: pool.free(memoryview(b"")),
        lambda: pool.alloc(ra.GFP_NOWAIT),
    ]  # fmt: skip
    for call in calls:
        refuses(arena, ValueError, "the pool was destroyed", call)
    assert repr(pool) == "<MemPool gone>"


def test_a_cache_cannot_be_destroyed_under_its_pool(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 64)
    pool = arena.mempool(3, cache=cache)
    refuses(arena, BufferError, "3 objects in use", cache.destroy)
    pool.destroy()
    cache.destroy()


def test_pools_are_destroyed_in_any_order(arena: ra.Arena) -> None:
    pools = [arena.mempool(k, size=64) for k in range(6)]
    for k in (3, 0, 3, 0, 1, 0):
        pools.pop(k).destroy()
        arena.validate()


def test_a_raising_constructor_below_a_pool_loses_nothing(arena: ra.Arena) -> None:
    fail = [False]

    def construct(view: memoryview) -> None:
        if fail[0]:
            raise OSError("constructor")

    cache = arena.kmem_cache("c", 2048, ctor=construct)
    pool = arena.mempool(2, cache=cache)
    out = [pool.alloc() for _ in range(cache.stats().total_objects)]
    fail[0] = True
    with unchanged(arena), pytest.raises(OSError, match="constructor"):
        pool.alloc()
    fail[0] = False
    out.append(pool.alloc())
    out.clear()
    pool.destroy()
    cache.destroy()


def test_repr_shows_reserve_and_use(arena: ra.Arena) -> None:
    pool = arena.mempool(3, size=64)
    buf = pool.alloc()
    assert repr(pool) == "<MemPool 2/3 of 64 bytes in reserve, 1 out, 0 waiting>"
    assert pool.stats().as_dict()["outstanding"] == 1
    pool.free(buf)
    pool.destroy()


# -- many threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
def test_threads_that_hammer_a_pool_wait_for_each_other_and_never_share_an_element(
    small: ra.Arena, backing: str, order: str
) -> None:
    pool = make(small, backing, 3, order=order)
    blocks = eat_everything(small)
    ready = threading.Barrier(6)

    def work(me: int) -> int:
        ready.wait()
        for k in range(some(300, 15)):
            buf = pool.alloc(timeout=100)
            mark = bytes([me * 40 + k % 40]) * 64
            buf[:64] = buf[-64:] = mark
            part = buf[-64:]
            if k % 2:
                pool.free(buf)
            else:
                del buf
            assert bytes(part) == mark
            del part
        return me

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [Worker(lambda me=me: work(me)) for me in range(6)]
        assert [worker.result() for worker in workers] == list(range(6))
    finally:
        sys.setswitchinterval(interval)
    pool.validate()
    s = pool.stats()
    assert (s.curr_nr, s.outstanding, s.waiters) == (3, 0, 0)
    del blocks
    pool.destroy()


def test_a_constructor_that_raises_while_a_pool_is_made_loses_nothing(arena: ra.Arena) -> None:
    """The half-made pool goes back: its cache can be destroyed, and the arena is whole (fixture)."""

    def refuse(_view: memoryview) -> None:
        raise ZeroDivisionError

    cache = arena.kmem_cache("refusing", 64, ctor=refuse)
    with pytest.raises(ZeroDivisionError):
        arena.mempool(4, cache=cache)
    cache.destroy()
