"""Threads: born and dead at any rate and time, more than there are slots, drained by each other. Nothing is lost."""

from __future__ import annotations

import _thread
import ctypes
import functools
import gc
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
from checks import Worker, eventually, meanwhile, quiet_child, some
from hammers import CHILD, COMPILED, hammer, replace
from numba import carray, cfunc, njit, prange, types
from support import JIT, MIB

import realalloc as ra
from realalloc.mm import layout

hammering_child = functools.partial(quiet_child, first=COMPILED)
FEW_RECORDS = 16  # a thread may be born before the last one has quite ended
jitted = pytest.mark.skipif(not JIT, reason="only machine code runs without the GIL")


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns quickly."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_raw_thread(work: Any) -> None:
    """Run in a thread that nobody joins; return when its work is done."""
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            work()
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    done.acquire()


def empty(arena: ra.Arena) -> None:
    """Check that nothing is in use, and that no thread keeps anything after a trim."""
    arena.validate()
    stats = arena.stats()
    assert (stats.leases, stats.live_objects, stats.live_blocks, stats.live_areas) == (0, 0, 0, 0)
    arena.trim()
    arena.validate()
    assert arena.words[layout.H_NR_RECORDS] == 0 and arena.stats().allocated == 0


# -- many threads ------------------------------------------------------------------------------------------------------


def test_ten_thousand_threads_one_after_another_share_a_few_records(arena: ra.Arena) -> None:
    def work() -> None:
        with arena.kmalloc(64) as small, arena.kmalloc(9000) as block:
            small[0] = block[0] = 1

    for _ in range(100):
        in_raw_thread(work)
    before = psutil.Process().memory_info().rss
    for _ in range(some(10_000, 200)):
        in_raw_thread(work)
    assert arena.words[layout.H_NR_RECORDS] <= FEW_RECORDS
    assert psutil.Process().memory_info().rss - before < 8 * MIB
    empty(arena)


@jitted
def test_threads_of_other_libraries_give_their_records_up_too(arena: ra.Arena) -> None:
    """Threads that Python does not know: started by the C library, running machine code, ended there."""
    total = len(arena.words)

    @cfunc(types.int64(types.CPointer(types.int64)))
    def body(start):
        return replace(carray(start, total), 3, 200, 3000)

    library = ctypes.CDLL(None)
    for _ in range(some(1000, 100)):
        thread, result = ctypes.c_ulong(), ctypes.c_void_p()
        given = ctypes.c_void_p(body.address), ctypes.c_void_p(arena.address)
        assert library.pthread_create(ctypes.byref(thread), None, *given) == 0
        assert library.pthread_join(thread, ctypes.byref(result)) == 0 and not result.value
    assert arena.words[layout.H_NR_RECORDS] <= 2
    empty(arena)


def test_more_threads_at_once_than_there_are_slots_lose_nothing(arena: ra.Arena) -> None:
    count = some(200, 140)
    assert count > layout.THREAD_SLOTS
    together = threading.Barrier(count)

    def work(me: int) -> int:
        together.wait()
        held = [arena.kmalloc(8 + me) for _ in range(10)]
        for k, buf in enumerate(held):
            buf[:2] = bytes((me, k))
        together.wait()
        wrong = sum(bytes(buf[:2]) != bytes((me, k)) for k, buf in enumerate(held))
        held.clear()
        together.wait()
        return wrong

    workers = [Worker(lambda me=me: work(me)) for me in range(count)]
    assert sum(worker.result() for worker in workers) == 0
    assert arena.words[layout.H_NR_RECORDS] <= layout.THREAD_SLOTS
    with arena.kmalloc(100):
        assert arena.stats().live_objects == 1
    empty(arena)


@jitted
def test_a_hundred_and_more_jitted_threads_at_once_lose_nothing(arena: ra.Arena) -> None:
    count = layout.THREAD_SLOTS + 20
    with ThreadPoolExecutor(count) as pool:
        assert sum(pool.map(lambda seed: replace(arena.words, seed, 2000, 9000), range(2 * count))) == 0
    empty(arena)


# -- threads that end ---------------------------------------------------------------------------------------------------


@jitted
def test_threads_end_while_another_trims_validates_and_shrinks(arena: ra.Arena, switching: None) -> None:
    cache = arena.kmem_cache("c", 200)

    def maintain() -> None:
        arena.trim()
        arena.validate()
        cache.shrink()
        cache.validate()
        arena.stats()

    def work() -> None:
        held = cache.alloc_bulk(70)
        assert replace(arena.words, len(held), 500, 9000) == 0

    with meanwhile(maintain):
        for _ in range(400):
            both = [Worker(work), Worker(work)]
            for worker in both:
                worker.result()
    del both, worker
    assert cache.live_objects() == []
    cache.destroy()
    empty(arena)


@jitted
def test_an_arena_is_closed_while_threads_that_use_it_end_and_others_go_on() -> None:
    hammering_child(
        CHILD
        + """
keeper = ra.Arena('1MiB'); ready(keeper)
for turn in range(60):
    arena = ra.Arena('8MiB'); words = arena.words; going = threading.Barrier(4)
    def work(seed):
        going.wait()
        errors.append(replace(words, seed, 200 * seed, 9000))
    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads: thread.start()
    going.wait()
    arena.close()
    for thread in threads: thread.join()
    del words
print(any(errors))
""",
        expect="False",
    )


def test_a_thread_ends_after_its_arena_was_closed_and_unmapped() -> None:
    hammering_child(
        CHILD
        + """
for turn in range(20):
    arenas = [ra.Arena('4MiB') for _ in range(3)]; used = threading.Barrier(3); closed = threading.Event()
    def work():
        for arena in arenas: arena.kmalloc(100).release(); arena.kmalloc(9000).release()
        used.wait(); closed.wait()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    used.wait()
    for arena in arenas[:2]: arena.close()
    gone = arenas[0].address; del arena; del arenas[:2]
    assert f'{gone:x}-' not in open('/proc/self/maps').read()
    closed.set()
    for thread in threads: thread.join()
    arenas[0].kmalloc(100).release(); arenas[0].validate(); arenas[0].close()
print('whole')
""",
        expect="whole",
    )


@jitted
@pytest.mark.parametrize("most", [100, 20_000])
def test_the_interpreter_exits_while_daemon_threads_hammer(most: int) -> None:
    hammering_child(
        CHILD
        + f"""
arena = ra.Arena('16MiB'); ready(arena); start(arena, 3, {most}, daemon=True)
def leave(): arena.kmalloc(50).release()
threading.Thread(target=leave).start(); time.sleep(0.05); print('end')
""",
        expect="end",
        fresh=most == 100,
    )


# -- objects that change hands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 1000, 9000])
def test_what_one_thread_allocates_another_drops(arena: ra.Arena, switching: None, size: int) -> None:
    number = some(20_000, 500)
    ring: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room = threading.Semaphore(200)

    def produce() -> None:
        for k in range(number):
            room.acquire()
            buf = arena.kmalloc(size)
            buf[:8] = buf[-8:] = k.to_bytes(8, "little")
            ring.put(buf)

    def consume() -> int:
        wrong = 0
        for k in range(number):
            buf = ring.get()
            wrong += not (bytes(buf[:8]) == bytes(buf[-8:]) == k.to_bytes(8, "little"))
            del buf
            room.release()
        return wrong

    producer, consumer = Worker(produce), Worker(consume)
    producer.result()
    assert consumer.result() == 0
    assert arena.stats().peak_allocated < 200 * size + 4 * MIB
    empty(arena)


def test_cycles_with_leases_die_on_other_threads(arena: ra.Arena, switching: None) -> None:
    with meanwhile(lambda: gc.collect(0), threads=2):
        for k in range(some(5000, 300)):
            node: list[Any] = [arena.kmalloc(8 + k % 3000), arena.alloc_pages(k % 4)]
            node.append(node)
            if k % 200 == 0:  # what survives the youngest generation would pile up until memory is out
                while arena.stats().leases > 400:
                    gc.collect()  # does nothing while another thread collects
    del node
    gc.collect()
    empty(arena)


@pytest.mark.parametrize("size", [64, 1024])
def test_a_cache_is_destroyed_while_another_thread_keeps_free_objects_of_it(arena: ra.Arena, size: int) -> None:
    cache = arena.kmem_cache("c", size)
    freed, destroyed = threading.Event(), threading.Event()

    def work() -> None:
        cache.alloc_bulk(100)
        freed.set()
        assert destroyed.wait(60)
        arena.kmalloc(size).release()

    worker = Worker(work)
    assert freed.wait(60)
    assert cache.stats().active_objects == 0 and cache.live_objects() == []
    cache.destroy()
    assert "c" not in arena.slabinfo().split()
    destroyed.set()
    worker.result()
    empty(arena)


def test_a_cache_with_live_objects_of_another_thread_is_not_destroyed(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 100)
    held: list[Any] = []

    def work() -> None:
        held.extend(cache.alloc_bulk(100)[::2])

    Worker(work).result()
    with pytest.raises(BufferError, match="50 objects in use") as info:
        cache.destroy()
    del info
    assert len(cache.live_objects()) == cache.stats().active_objects == 50
    cache.validate()
    held.clear()
    cache.destroy()
    empty(arena)


# -- interrupts ---------------------------------------------------------------------------------------------------------


@jitted
def test_a_storm_of_keyboard_interrupts_loses_nothing() -> None:
    hammering_child(
        CHILD
        + """
arena = ra.Arena('16MiB'); cache = arena.kmem_cache('c', 72); pool = arena.mempool(2, size=300)
signal.signal(signal.SIGALRM, signal.default_int_handler)
def work(seed, rounds):
    held = []
    for _ in range(rounds):
        seed = seed * 1103515245 + 12345 & 0x7fffffff
        held += [arena.kmalloc(seed % 3000), cache.alloc(), pool.alloc(), arena.kzalloc(seed % 20000)]
        held += cache.alloc_bulk(seed % 50)
        held.append(arena.alloc_pages(seed % 4)); held.append(arena.vmalloc(1 + seed % 20000))
        if seed % 3 == 0: arena.kfree(held.pop()); cache.free_bulk(cache.alloc_bulk(9)); arena.trim()
        del held[:len(held) // 2]
work(1, 10)  # compiles: numba does not take an interrupt well
seen = 0
for seed in range(1500):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-5 + seed % 40 * 2e-5); work(seed, 10**9)
    except KeyboardInterrupt: seen += 1
    if seed % 100 == 0: arena.validate()
pool.destroy(); cache.destroy(); arena.validate(); arena.trim(); s = arena.stats()
print(seen, s.leases, s.lingering, s.live_objects, s.live_blocks, s.live_areas, s.allocated)
""",
        expect="1500 0 0 0 0 0 0",
    )


# -- other ways to run without the GIL ----------------------------------------------------------------------------------


@jitted
def test_hammering_in_a_parallel_loop_and_by_a_c_callback_loses_nothing(arena: ra.Arena) -> None:
    @njit(parallel=True)
    def side_by_side(words, turns):
        errors = 0
        for k in prange(turns):
            errors += replace(words, k, 300, 20_000)
        return errors

    assert side_by_side(arena.words, 100) == 0
    total = len(arena.words)

    @cfunc(types.int64(types.CPointer(types.int64), types.int64))
    def called(start, seed):
        return replace(carray(start, total), seed, 300, 20_000)

    start = ctypes.cast(arena.address, ctypes.POINTER(ctypes.c_int64))
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda seed: called.ctypes(start, seed), range(100))) == 0
    empty(arena)


@jitted
def test_hammering_under_trims_and_stats_loses_nothing(arena: ra.Arena) -> None:
    stop = np.ones(1, np.int64)
    hammer(arena.words, 1, 100, stop)
    stop[0] = 0
    workers = [Worker(lambda seed=seed: hammer(arena.words, seed, 40_000, stop)) for seed in (1, 2, 3)]
    for _ in range(300):
        arena.trim()
        arena.stats()
        with arena.kmalloc(100):
            pass
    stop[0] = 1
    assert sum(worker.result() for worker in workers) == 0
    eventually(lambda: arena.words[layout.H_NR_RECORDS] <= FEW_RECORDS)
    empty(arena)
