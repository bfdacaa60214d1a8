"""Views that are built before they are needed: the same leases, whoever takes elements, and whatever runs meanwhile."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from checks import Worker, address, exhaust, meanwhile, quiet_child, refuses, some
from numba import njit
from support import JIT

import realalloc as ra
from realalloc.jit import mempool_alloc, mempool_free
from realalloc.lease import shelf
from realalloc.lease.capi import immortal
from realalloc.mm import layout

N = 8
jitted = pytest.mark.skipif(not JIT, reason="only machine code has shelves")


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[Any]:
    """A pool with a shelf; at the end all of it must be back."""
    made = arena.mempool(N, size=512, views="ready")
    yield made
    gc.collect()
    made.validate()
    assert (made.curr_nr, made.stats().outstanding) == (N, 0)
    made.destroy()
    assert shelf._shelves == {}


@pytest.fixture
def eager() -> Iterator[None]:
    """Have the collector run at nearly every view that is made."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


@njit(nogil=True)
def shuffle(words, at, held, rounds, seed):
    """Take and return elements in other orders than Python does; return how often there was none."""
    empty = 0
    count = 0
    for _ in range(rounds):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        if count < len(held) and seed & 64:
            offset = mempool_alloc(words, at)
            if offset == 0:
                empty += 1
            else:
                words[offset >> 3] = seed
                held[count] = offset
                count += 1
        elif count > 0:
            k = (seed >> 8) % count
            count -= 1
            mempool_free(words, at, held[k])
            held[k] = held[count]
    for k in range(count):
        mempool_free(words, at, held[k])
    return empty


def waiting(arena: ra.Arena, pool: Any) -> int:
    """Count the views on the shelf of a pool."""
    memory = shelf._shelves[arena.address, pool.at]
    return sum(1 for k in range(memory[0]) if memory[1 + 2 * k] != 0)


def memoryviews() -> int:
    return sum(1 for thing in gc.get_objects() if type(thing) is memoryview)


# -- what is handed out -------------------------------------------------------------------------------------------------


@jitted
def test_each_element_of_the_reserve_has_a_view_that_is_no_lease(arena: ra.Arena, pool: Any) -> None:
    assert waiting(arena, pool) == N
    assert arena.stats().leases == 0
    stats = pool.stats()
    assert (stats.gets_reserve, stats.puts_reserve, stats.low) == (0, 0, N)
    views = memoryviews()
    held = [pool.alloc() for _ in range(N)]
    assert memoryviews() == views  # none was made
    assert (waiting(arena, pool), arena.stats().leases, pool.curr_nr) == (0, N, 0)
    held.append(pool.alloc())  # a fresh one
    assert memoryviews() == views + 1
    held.clear()
    assert (waiting(arena, pool), arena.stats().leases, pool.curr_nr) == (N, 0, N)
    assert memoryviews() == views


@pytest.mark.parametrize("how", ["drop", "release", "free", "free_bulk", "with"])
@pytest.mark.parametrize("backing", ["size", "large", "cache", "pages"])
def test_elements_are_distinct_whole_and_back_exactly_once(arena: ra.Arena, backing: str, how: str) -> None:
    cache = arena.kmem_cache("c", 700)
    options = {"size": {"size": 600}, "large": {"size": 20_000}, "cache": {"cache": cache}, "pages": {"order": 1}}
    pool = arena.mempool(N, **options[backing], views="ready")
    rng = random.Random(5)
    for round_ in range(6):
        held = [pool.alloc() if k % 3 else pool.alloc_preallocated() for k in range(N)]
        assert len({address(view) for view in held}) == N
        for k, view in enumerate(held):
            assert (view.nbytes, view.format, view.readonly) == (pool.element_bytes, "B", False)
            view[:] = bytes([k + round_]) * len(view)
        assert [set(view) for view in held] == [{k + round_} for k in range(N)]
        assert arena.stats().leases == N
        rng.shuffle(held)
        if how == "free_bulk":
            pool.free_bulk(held)
        while held:
            view = held.pop()
            if how == "release":
                view.release()
            elif how == "free":
                pool.free(view)
            elif how == "with":
                with view:
                    assert len(view) == pool.element_bytes
            del view
        assert (pool.curr_nr, arena.stats().leases) == (N, 0)
        pool.validate()
    pool.destroy()
    cache.destroy()


def test_the_last_view_returns_the_element_and_no_other(arena: ra.Arena, pool: Any) -> None:
    view = pool.alloc()
    at = address(view)
    part = view[8:16]
    array = np.frombuffer(view, np.uint8)
    dead = weakref.ref(view)
    del view
    assert dead() is None
    held = [pool.alloc() for _ in range(N - 1)]
    assert at not in {address(other) for other in held}
    part[:] = b"12345678"
    assert bytes(array[8:16]) == b"12345678"
    del part
    assert pool.curr_nr == 0
    del array
    assert pool.curr_nr == 1
    again = pool.alloc()
    assert address(again) == at
    refuses(arena, ra.InvalidFree, "slice", pool.free, again[1:])
    pool.free(again)
    refuses(arena, ra.InvalidFree, "pool.free", pool.free, again)


def test_a_freed_handle_with_slices_lingers(arena: ra.Arena, pool: Any) -> None:
    view = pool.alloc()
    part = view[1:5]
    pool.free(view)
    assert (arena.stats().lingering, pool.curr_nr) == (1, N - 1)
    del part
    assert (arena.stats().lingering, pool.curr_nr) == (0, N)
    with pool.alloc() as again:
        again[0] = 1


# -- who else takes elements --------------------------------------------------------------------------------------------


def test_jitted_code_takes_elements_without_their_views(arena: ra.Arena, pool: Any) -> None:
    held = np.zeros(N, np.int64)
    rng = random.Random(7)
    for seed in range(some(300, 10)):
        mine = [pool.alloc() for _ in range(rng.randrange(N))]
        for view in mine:
            view[:] = b"m" * 512
        assert shuffle(arena.words, pool.at, held, 50, seed) >= 0
        assert all(bytes(view) == b"m" * 512 for view in mine)
        rng.shuffle(mine)
        while mine:
            mine.pop()
    assert pool.curr_nr == N


@jitted
def test_jitted_threads_take_elements_meanwhile(arena: ra.Arena, pool: Any) -> None:
    with meanwhile(lambda: shuffle(arena.words, pool.at, np.zeros(3, np.int64), 1000, 9), threads=2):
        for k in range(20_000):
            view = pool.alloc()
            view[:8] = mark = k.to_bytes(8, "little")
            assert view[:8] == mark
            del view


def test_who_waits_is_served_by_the_release(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=64, order="reserve-only", views="ready")
    for _ in range(20):
        view = pool.alloc()
        worker = Worker(lambda: bytes(pool.alloc(timeout=60)[:1]))
        while pool.stats().waiters == 0:
            pass
        with pytest.raises(ra.OutOfMemory):
            pool.alloc_preallocated()
        view[0] = 7
        del view
        assert worker.result() == b"\x07"
    assert pool.curr_nr == 1
    pool.destroy()


def test_threads_share_a_pool(arena: ra.Arena, pool: Any) -> None:
    def work(me: int) -> int:
        wrong = 0
        for _ in range(some(3000, 30)):
            with pool.alloc() as view:
                view[:] = bytes([me]) * 512
                wrong += bytes(view) != bytes([me]) * 512
        return wrong

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, range(4))) == 0


# -- the pool and the arena go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_resize_keeps_the_views_that_have_a_place(arena: ra.Arena, count: int) -> None:
    pool = arena.mempool(N, size=512, views="ready")
    held = [pool.alloc(), pool.alloc()]
    pool.resize(count)
    held.clear()
    for _ in range(2):
        held = [pool.alloc() for _ in range(count)]
        assert len({address(view) for view in held}) == count
        held.clear()
    assert pool.curr_nr == count
    if JIT:
        assert waiting(arena, pool) == count
    pool.validate()
    pool.destroy()


@jitted
@pytest.mark.parametrize("counts", [(3, 5), (5, 3), (8, 8)])
def test_two_resizes_at_once_leave_one_shelf(
    arena: ra.Arena, pool: Any, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    before = memoryviews()
    made: list[Any] = []
    both = threading.Event()

    def meet(memory: Any) -> Any:
        made.append(memory)
        if len(made) == 2:
            both.set()
        both.wait(0.2)  # the other one may not be in here; if it is, neither has finished
        return immortal(memory)

    monkeypatch.setattr(shelf, "immortal", meet)
    for worker in [Worker(lambda count=count: pool.resize(count)) for count in counts]:
        worker.result()
    assert len(made) == 2
    kept = shelf._shelves[arena.address, pool.at]
    assert arena.words[pool.at + layout.P_SHELF] == ctypes.addressof(kept)
    gc.collect()
    assert memoryviews() - before == waiting(arena, pool) - N, "no view is on a shelf that nobody finds"
    other = next(memory for memory in made if memory is not kept)
    assert sys.getrefcount(other) == 3, "one for made, one for other, one for the call: nobody keeps it for ever"
    pool.resize(N)


def test_views_outlive_their_pool(arena: ra.Arena) -> None:
    pool = arena.mempool(N, size=512, views="ready")
    held = [pool.alloc(), pool.alloc()]
    refuses(arena, BufferError, "2 elements out", pool.destroy)
    with pool.alloc() as view:  # it stays usable, machine code included
        view[0] = 1
    pool.destroy(force=True)
    with pytest.raises(ValueError, match="gone|destroyed"):
        pool.alloc()
    held[0][:] = b"x" * 512
    held.clear()
    assert arena.stats().live_objects == 0


@jitted
def test_a_destroyed_pool_drops_its_views(arena: ra.Arena) -> None:
    before = memoryviews()
    pool = arena.mempool(100, size=512, views="ready")
    assert memoryviews() == before + 100
    pool.destroy()
    assert memoryviews() == before


@jitted
@pytest.mark.parametrize("out", [0, 3])
def test_an_arena_that_closes_drops_the_views(out: int) -> None:
    before = memoryviews()
    arena = ra.Arena("4MiB")
    pool = arena.mempool(N, size=512, views="ready")
    held = [pool.alloc() for _ in range(out)]
    del pool
    if out:
        with pytest.warns(ResourceWarning):
            arena.close()
    else:
        arena.close()
    assert shelf._shelves == {}
    assert memoryviews() == before + out
    for view in held:
        view[:] = b"x" * 512
    held.clear()
    assert out == 0 or memoryviews() == before + 1  # the loop's own


# -- in the middle of a release ---------------------------------------------------------------------------------------


def test_an_exception_on_its_way_is_not_lost(arena: ra.Arena, pool: Any, eager: None) -> None:
    """A frame that is left drops views while the exception is set; the collector must not run in there."""

    def leave(view: memoryview) -> None:
        assert [view[k : k + 1] for k in (0, 1)] and [iter([view]), view][1] is view
        raise KeyError(len(view))

    for _ in range(some(200, 20)):
        with pytest.raises(KeyError, match="512"):
            leave(pool.alloc())
        assert pool.curr_nr == N


class Trouble:
    """Does something when the collector finds it, in a cycle with itself."""

    def __init__(self, act: Any) -> None:
        self.me, self.act = self, act

    def __del__(self) -> None:
        self.act()


@pytest.mark.parametrize("what", ["takes and returns", "destroys the pool", "closes the arena", "resizes"])
def test_the_collector_runs_while_a_view_is_built(what: str, eager: None) -> None:
    for _ in range(some(20, 3)):
        arena = ra.Arena("4MiB")
        pool = arena.mempool(N, size=512, views="ready")
        done: list[str] = []

        def act(arena: ra.Arena = arena, pool: Any = pool, done: list[str] = done) -> None:
            done.append(what)
            if what == "takes and returns":
                assert len([pool.alloc() for _ in range(N + 2)]) == N + 2
            elif what == "destroys the pool":
                pool.destroy(force=True)
            elif what == "resizes":
                pool.resize(3)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    arena.close()

        held = [pool.alloc() for _ in range(5)]
        Trouble(act)
        while held:
            held.pop()
        gc.collect()
        assert done == [what]
        if not arena.closed:
            arena.validate()
            assert arena.stats().leases == 0
            arena.close()
    assert shelf._shelves == {}


@jitted
def test_no_memory_for_a_view_is_no_error() -> None:
    pytest.importorskip("_testcapi")
    quiet_child("""
import _testcapi, realalloc as ra
arena = ra.Arena("4MiB")
pool = arena.mempool(4, size=512, views="ready")
for fail in range(12):
    held = [pool.alloc() for _ in range(4)]
    _testcapi.set_nomemory(fail, fail + 1)
    try:
        held.clear()
    finally:
        _testcapi.remove_mem_hooks()
    assert pool.curr_nr == 4, fail
    pool.validate()
pool.destroy()
arena.close()
""")


@jitted
def test_a_storm_of_keyboard_interrupts_loses_nothing() -> None:
    quiet_child("""
import signal, realalloc as ra
arena = ra.Arena("4MiB")
pool = arena.mempool(4, size=512, views="ready")
budget = [0]
def handler(*_):
    if budget[0]:
        budget[0] -= 1
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
def work(k):  # a function: the jump back of a loop that ends a try is not inside that try, by CPython's tables
    signal.setitimer(signal.ITIMER_REAL, 1e-5 + k % 97 * 5e-7)
    while budget[0]:
        view = pool.alloc(); view[0] = 1; part = view[1:3]
        del view, part
met = 0
for k in range(3000):
    budget[0] = 1
    try:
        work(k)
    except KeyboardInterrupt:
        met += 1
    budget[0] = 0
    assert pool.curr_nr == 4
signal.setitimer(signal.ITIMER_REAL, 0)
assert met > 100, met
pool.validate(); pool.destroy(); arena.validate(); arena.close()
""")


def test_the_child_of_a_fork_has_a_shelf_of_its_own(arena: ra.Arena, pool: Any) -> None:
    mine = pool.alloc()
    mine[:1] = b"p"
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                held = [pool.alloc() for _ in range(N - 1)]
                held[0][:1] = b"c"
                held.clear()
                mine.release()
                pool.validate()
                arena.validate()
                os._exit(0 if pool.curr_nr == N else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert (pool.curr_nr, bytes(mine[:1])) == (N - 1, b"p")


@pytest.mark.parametrize("threads", [False, True])
def test_the_interpreter_exits_with_views_out_and_on_the_shelf(threads: bool) -> None:
    start = "threading.Thread(target=work, daemon=True).start()" if threads else ""
    quiet_child(
        f"""
import threading, time, realalloc as ra
arena = ra.Arena("4MiB")
pool = arena.mempool(8, size=512, views="ready")
def work():
    while True:
        pool.alloc()
{start}
held = [pool.alloc() for _ in range(3)]
time.sleep(0.05)
""",
        "-W",
        "ignore",
        fresh=threads,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 64, "views": "early"}, "fresh"),
        ({"size": 64, "order": "alloc-first"}, "alloc-first"),
        ({"size": 64, "zero": "on_free"}, "zero"),
        ({"size": 64, "poison": "on_alloc"}, "poison"),
        ({"size": 64, "track": True}, "track"),
        ({"struct": np.dtype("i8")}, "struct"),
        ({"alloc_fn": lambda data, gfp: [], "free_fn": lambda thing: None}, "alloc_fn"),
    ],
)
def test_what_it_does_not_go_with(arena: ra.Arena, options: dict[str, Any], match: str) -> None:
    refuses(arena, ValueError, match, lambda: arena.mempool(4, **({"views": "ready"} | options)))


def test_a_pool_of_no_reserve_has_one_place(arena: ra.Arena) -> None:
    pool = arena.mempool(0, size=64, views="ready")
    held = exhaust(lambda: pool.alloc_preallocated())
    assert len(held) == 1
    held.clear()
    pool.destroy()
