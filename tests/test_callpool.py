"""Pools whose elements are made by machine code: the contract of all pools, from Python and from jitted code."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from checks import Worker, eventually, quiet_child, some
from numba import njit, types
from support import JIT

import realalloc as ra
from realalloc import jit

if JIT:
    from numba import carray, cfunc
else:  # what numba's C functions do inside needs jit: the same by ctypes

    def cfunc(signature: Any) -> Any:
        """Make a C function whose first argument is a pointer to words."""
        kinds = [ctypes.POINTER(ctypes.c_int64), *[ctypes.c_int64] * (len(signature.args) - 1)]
        result = None if signature.return_type == types.void else ctypes.c_int64

        def made(function: Any) -> Any:
            called = ctypes.CFUNCTYPE(result, *kinds)(function)
            called.restype, called.argtypes = result, kinds
            return SimpleNamespace(address=ctypes.cast(called, ctypes.c_void_p).value, ctypes=called)

        return made

    def carray(start: Any, _length: int) -> Any:
        """Return the pointer."""
        return start


ALLOC = types.int64(types.CPointer(types.int64), types.int64, types.int64)
FREE = types.void(types.CPointer(types.int64), types.int64)

# ``data`` is the word index of a table: what was made, what was freed, how many may live, flags of the last call, then a bit
# for each element that lives.
MADE, FREED, ROOM, FLAGS, LIVE = range(5)
TABLE_WORDS = 4096
FIRST = 1000  # the smallest element


@cfunc(ALLOC)
def make(start: Any, data: int, gfp: int) -> int:
    """Make the smallest element that does not live; -1 if there may be no more."""
    table = carray(start, data + TABLE_WORDS)
    table[data + FLAGS] = gfp
    if table[data + MADE] - table[data + FREED] >= table[data + ROOM]:
        return -1
    k = 0
    while table[data + LIVE + k] != 0:
        k += 1
    table[data + LIVE + k] = 1
    table[data + MADE] += 1
    return (data << 20) + FIRST + k  # free_fn finds its table in the element


@cfunc(FREE)
def unmake(start: Any, element: int) -> None:
    """Free an element; one that does not live is counted as 10**6 freed."""
    data = element >> 20
    table = carray(start, data + TABLE_WORDS)
    k = (element & 0xFFFFF) - FIRST
    table[data + FREED] += 1 if table[data + LIVE + k] == 1 else 10**6
    table[data + LIVE + k] = 0


class Table:
    """A table in the arena, and pools over it."""

    def __init__(self, arena: ra.Arena, room: int = 1000) -> None:
        self.arena = arena
        self.buf = arena.kmalloc(TABLE_WORDS * 8, ra.GFP_KERNEL | ra.GFP_ZERO)
        self.words = self.buf.cast("q")
        self.at = (ctypes.addressof(ctypes.c_char.from_buffer(self.buf)) - arena.address) // 8
        self.words[ROOM] = room

    def pool(self, min_nr: int, **options: Any) -> Any:
        return self.arena.mempool(min_nr, alloc_fn=make, free_fn=unmake, pool_data=self.at, **options)

    @property
    def live(self) -> int:
        return self.words[MADE] - self.words[FREED]


@pytest.fixture
def table(arena: ra.Arena) -> Iterator[Table]:
    """A table of which nothing may live at the end."""
    made = Table(arena)
    yield made
    assert made.live == 0
    made.words.release()
    made.buf.release()


@pytest.mark.parametrize("min_nr", [0, 1, 5])
def test_the_reserve_is_made_and_freed_by_machine_code(table: Table, min_nr: int) -> None:
    pool = table.pool(min_nr)
    assert isinstance(pool, ra.CallPool)
    assert table.live == pool.curr_nr == max(1, min_nr) and pool.is_saturated
    element = pool.alloc()
    assert element & 0xFFFFF >= FIRST and element >> 20 == table.at
    pool.free(element)
    pool.free(None)
    assert (pool.stats().gets_reserve, pool.stats().puts_reserve) == (1, 1)
    pool.validate()
    assert repr(pool) == f"<CallPool {max(1, min_nr)}/{min_nr} in reserve, 0 out, 0 waiting>"
    pool.destroy()
    assert repr(pool) == "<CallPool gone>"


@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
def test_order_says_who_is_asked(table: Table, order: str) -> None:
    pool = table.pool(3, order=order)
    held = [pool.alloc() for _ in range(3)]
    assert (table.live, pool.curr_nr) == {"reserve-first": (3, 0), "alloc-first": (6, 3), "reserve-only": (3, 0)}[order]
    if order == "alloc-first":
        assert not table.words[FLAGS] & ra.GFP_DIRECT_RECLAIM
        table.words[ROOM] = table.live
        held += [pool.alloc() for _ in range(3)]
    if order != "reserve-first":
        with pytest.raises(TimeoutError, match="3 are out|6 are out"):
            pool.alloc(timeout=0)
        with pytest.raises(ra.OutOfMemory):
            pool.alloc(ra.GFP_NOWAIT)
    else:
        held.append(pool.alloc())
        assert table.words[FLAGS] == ra.GFP_KERNEL and table.live == 4
    with pytest.raises(ra.OutOfMemory, match="the reserve is empty"):
        pool.alloc_preallocated()
    pool.free_bulk(held)
    assert table.live == pool.curr_nr == 3
    pool.destroy()


def test_a_reserve_that_cannot_be_made_is_given_back(table: Table) -> None:
    table.words[ROOM] = 3
    with pytest.raises(ra.OutOfMemory, match=r"mempool\(4\): alloc_fn failed"):
        table.pool(4)
    assert (table.live, table.words[FREED]) == (0, 3)


def test_injected_failures_leave_the_reserve(table: Table) -> None:
    pool = table.pool(2)
    pool.fail_alloc()
    held = [pool.alloc(), pool.alloc()]
    with pytest.raises(TimeoutError):
        pool.alloc(timeout=0.001)
    assert pool.stats().injected_failures > 0 and table.words[MADE] == 2
    pool.fail_alloc(0)
    held.append(pool.alloc())
    pool.free_bulk(held)
    pool.destroy()


def test_resize_refill_and_watermarks_ask_and_free_by_machine_code(table: Table) -> None:
    pool = table.pool(2, low=1, high=2)
    pool.resize(5)
    assert (table.live, pool.curr_nr) == (5, 5)
    pool.resize(1)
    assert (table.live, pool.curr_nr) == (1, 1)
    pool.resize(2)
    held = [pool.alloc() for _ in range(3)]
    assert pool.refill() == 2 and table.live == 5
    taken = [pool.alloc_preallocated() for _ in range(2)]
    pool.fail_alloc(times=1)
    pool.free(held.pop())  # leaves one in the reserve, which is not below the mark
    assert pool.curr_nr == 1
    pool.free_bulk(held + taken)
    assert table.live == pool.curr_nr == 2
    pool.destroy()


def test_what_comes_back_is_checked_as_far_as_it_can_be(table: Table) -> None:
    pool = table.pool(1)
    for wrong in (1, 0, -5, 1 << 62, 1 << 63):
        with pytest.raises((ra.InvalidFree, ValueError)):
            pool.free(wrong)
    with pytest.raises(TypeError):
        pool.free("1")
    element = pool.alloc()
    with pytest.raises(ra.InvalidFree, match="named twice"):
        pool.free_bulk([element, element])
    pool.free(element)
    with pytest.raises(ra.InvalidFree, match="no element of this pool is out"):
        pool.free(element)
    pool.validate()
    pool.destroy()
    with pytest.raises(ValueError, match="destroyed"):
        pool.alloc()


def test_bad_functions_are_told(table: Table) -> None:
    arena = table.arena
    for functions in ((make, id), (id, unmake), (unmake, unmake), (make, make)):
        with pytest.raises(TypeError, match="must be a numba.cfunc of"):
            arena.mempool(1, alloc_fn=functions[0], free_fn=functions[1])
    with pytest.raises(ValueError, match="track"):
        table.pool(1, track=True)
    for data in ("x", 1.5):
        with pytest.raises(TypeError):
            arena.mempool(1, alloc_fn=make, free_fn=unmake, pool_data=data)
    assert table.words[MADE] == 0


def test_who_waits_is_served_by_frees_and_by_alloc_fn_in_order(table: Table) -> None:
    pool = table.pool(1)
    table.words[ROOM] = 1
    held = pool.alloc()
    order: list[int] = []

    def wait(k: int) -> None:
        with pool.lease(timeout=60):
            order.append(k)

    workers = []
    for k in range(4):
        workers.append(Worker(lambda k=k: wait(k)))
        eventually(lambda k=k: pool.stats().waiters == k + 1)
    pool.free(held)
    for worker in workers:
        worker.result()
    assert order == [0, 1, 2, 3]
    assert pool.stats().gets_wait == 4
    both = pool.alloc_bulk(1)
    pool.free_bulk(both)
    pool.destroy()


def test_destroying_by_force_frees_what_comes_back_later(table: Table) -> None:
    pool = table.pool(2)
    held = [pool.alloc() for _ in range(3)]
    with pytest.raises(BufferError, match="3 elements out"):
        pool.destroy()
    waiter = Worker(lambda: pool.alloc_bulk(2))
    table.words[ROOM] = 0
    pool.destroy(force=True)
    with pytest.raises((ValueError, ra.OutOfMemory)):
        held += waiter.result()
        raise ValueError("served before")
    while held:
        pool.free(held.pop())
    assert table.live == 0


@njit(nogil=True)
def churn(words: Any, pool: int, turns: int, seed: int) -> int:
    """Take and return up to three at a time; count what was not handed out."""
    failed = 0
    held = [0, 0, 0]
    for k in range(turns):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        at = seed % 3
        if held[at] != 0:
            failed += jit.mempool_free(words, pool, held[at])
            held[at] = 0
        else:
            held[at] = jit.mempool_alloc(words, pool)
            failed += 1 if held[at] == 0 else 0
        if k % 16 == 0 and held[0] == held[1] == held[2] == 0:
            one = jit.mempool_alloc_wait(words, pool, 10**10)
            failed += 1 if one == 0 else jit.mempool_free(words, pool, one)
    for at in range(3):
        if held[at] != 0:
            failed += jit.mempool_free(words, pool, held[at])
    return failed


@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
def test_jitted_code_takes_and_returns_elements(table: Table, order: str) -> None:
    pool = table.pool(4, order=order)
    assert churn(table.arena.words, pool.at, some(5000, 200), 7) == 0
    pool.validate()
    assert pool.stats().outstanding == 0 and table.live == 4
    pool.destroy()


@njit(nogil=True)
def one_at_a_time(words: Any, pool: int, turns: int) -> int:
    """Take one, waiting for it, and return it."""
    failed = 0
    for _ in range(turns):
        element = jit.mempool_alloc_wait(words, pool, -1)
        failed += 1 if element == 0 else jit.mempool_free(words, pool, element)
    return failed


def test_threads_of_jitted_code_and_python_make_progress_with_one_element_and_no_alloc_fn(table: Table) -> None:
    """The guarantee, with alloc_fn failing always; a table needs no lock, as it is never asked."""
    pool = table.pool(1)
    table.words[ROOM] = 0
    turns = some(3000, 100)

    def slow() -> int:
        for _ in range(turns // 10):
            pool.free(pool.alloc())
        return 0

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(one_at_a_time, table.arena.words, pool.at, turns) for _ in range(3)]
        assert [job.result() for job in [*jobs, threads.submit(slow)]] == [0] * 4
    assert (table.live, pool.curr_nr, pool.stats().outstanding) == (1, 1, 0)
    pool.validate()
    pool.destroy()


def test_an_alloc_fn_may_use_the_verbs_of_the_arena(arena: ra.Arena) -> None:
    if not JIT:
        pytest.skip("the verbs are Python without jit, and a cfunc is machine code")
    total = len(arena.words)

    @cfunc(ALLOC)
    def take(start: Any, data: int, gfp: int) -> int:
        words = carray(start, total)
        offset = jit.kmalloc(words, data)
        if offset != 0:
            words[offset >> 3] = 42  # constructed
        return offset

    @cfunc(FREE)
    def give(start: Any, element: int) -> None:
        jit.kfree(carray(start, total), element)

    pool: Any = arena.mempool(3, alloc_fn=take, free_fn=give, pool_data=300)
    held = [pool.alloc() for _ in range(5)]
    assert all(arena.words[offset >> 3] == 42 for offset in held) and len(set(held)) == 5
    pool.free_bulk(held)
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda k: churn(arena.words, pool.at, some(20_000, 500), k), range(4))) == 0
    pool.validate()
    pool.fail_alloc(0.5, seed=3)
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(some(1000, 50)):
            pool.free(pool.alloc(timeout=60))
            pool.free_bulk(pool.alloc_bulk(1, timeout=60))

    with ThreadPoolExecutor(4) as threads:
        for job in [threads.submit(work) for _ in range(4)]:
            job.result()
    pool.validate()
    assert pool.stats().outstanding == 0
    pool.destroy()


def test_a_random_life_against_a_model(table: Table) -> None:
    pool = table.pool(3)
    dice = random.Random(5)
    held: list[int] = []
    for _ in range(some(3000, 300)):
        table.words[ROOM] = dice.choice([0, 3, 5, 8])
        before = pool.stats()
        if held and dice.random() < 0.5:
            pool.free(held.pop(dice.randrange(len(held))))
            full = before.curr_nr == max(1, before.min_nr)
            assert pool.curr_nr == before.curr_nr + (not full)
        elif dice.random() < 0.1:
            pool.resize(dice.randrange(6))
        else:
            possible = before.curr_nr > 0 or table.live < table.words[ROOM]
            try:
                held.append(pool.alloc(ra.GFP_NOWAIT))
                assert possible
            except ra.OutOfMemory:
                assert not possible
        stats = pool.stats()
        assert table.live == stats.curr_nr + len(held) and stats.outstanding == len(held) == len(set(held))
        pool.validate()
    pool.free_bulk(held)
    pool.destroy()


def test_interpreters_end_with_elements_out_and_arenas_close_under_pools() -> None:
    quiet_child(
        """
import realalloc as ra
from numba import cfunc, types
@cfunc(types.int64(types.CPointer(types.int64), types.int64, types.int64))
def make(words, data, gfp): return data + 1
@cfunc(types.void(types.CPointer(types.int64), types.int64))
def unmake(words, element): pass
arena = ra.Arena('4MiB')
pool = arena.mempool(2, alloc_fn=make, free_fn=unmake, pool_data=5)
held = pool.alloc()
with pool.lease() as other: arena.close()
try: pool.free(held)
except ra.ArenaClosed: pass
else: raise SystemExit('freed')
second = ra.Arena('4MiB')
another = second.mempool(2, alloc_fn=make, free_fn=unmake, pool_data=5)
kept = another.alloc()
""",
        fresh=True,
    )


def test_the_functions_outlive_whoever_made_the_pool() -> None:
    if not JIT:
        pytest.skip("jitted code calls them")
    quiet_child(
        """
import gc
import realalloc as ra
from numba import cfunc, njit, types
from realalloc import jit
def make_pool(arena):
    @cfunc(types.int64(types.CPointer(types.int64), types.int64, types.int64))
    def make(words, data, gfp): return data + 1
    @cfunc(types.void(types.CPointer(types.int64), types.int64))
    def unmake(words, element): pass
    return arena.mempool(1, alloc_fn=make, free_fn=unmake, pool_data=5).at
@njit(nogil=True)
def work(words, pool):
    total = 0
    for _ in range(1000):
        first, second = jit.mempool_alloc(words, pool), jit.mempool_alloc(words, pool)
        total += first + second
        jit.mempool_free(words, pool, first)
        jit.mempool_free(words, pool, second)
    return total
arena = ra.Arena('4MiB')
at = make_pool(arena)
gc.collect()
filler = [cfunc(types.int64(types.int64))(lambda x: x + 1) for _ in range(3)]
assert work(arena.words, at) == 12000
arena.close()
"""
    )
