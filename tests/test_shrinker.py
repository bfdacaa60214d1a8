"""Shrinkers: the kernel's arithmetic, every verb that calls them, who never does, and functions that misbehave."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import Worker, exhaust, quiet_child, unchanged
from support import JIT, MIB, PAGE

import realalloc as ra
from realalloc import shrinker as room
from realalloc.shrinker import Shrinkers

BLOCK = 16 * PAGE  # the largest of the small arena


class Images:
    """A cache of buffers, the oldest first: what shrinkers are for."""

    def __init__(self, arena: ra.Arena, size: int = PAGE) -> None:
        self.arena = arena
        self.size = size
        self.held: list[memoryview] = []
        self.calls: list[int] = []

    def fill(self) -> Images:
        """Take all that is left."""
        self.held += exhaust(lambda: self.arena.kmalloc(self.size, ra.GFP_NOWAIT))
        return self

    def count(self) -> int:
        return len(self.held)

    def scan(self, number: int) -> int:
        self.calls.append(number)
        freed = min(number, len(self.held))
        del self.held[:freed]
        return freed

    def register(self, **options: Any) -> ra.Shrinker:
        return self.arena.register_shrinker(self.count, self.scan, **options)


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What goes to sys.unraisablehook."""
    seen: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: seen.append((args.exc_type, str(args.exc_value), repr(args.object)))
    )
    return seen


# -- the arithmetic: kernel, do_shrink_slab --------------------------------------------------------------------------


def kernels(freeable: int, deferred: int, priority: int, seeks: int, batch: int, say: Callable[[int], int]) -> tuple:
    """do_shrink_slab, line by line, with two divisions rounded up; what was scanned, freed, and is deferred now."""
    if freeable == 0:
        return [], 0, deferred
    delta = ((freeable >> priority) * 4 + seeks - 1) // seeks if seeks else (freeable + 1) // 2
    total_scan = min((deferred >> priority) + delta, 2 * freeable)
    asked, freed, scanned = [], 0, 0
    while total_scan >= batch or total_scan >= freeable:
        nr = min(batch, total_scan)
        asked.append(nr)
        answer = say(nr)
        if answer == ra.SHRINK_STOP:
            break
        freed += answer
        total_scan -= nr
        scanned += nr
        if total_scan == 0:
            break
    return asked, freed, min(max(deferred + delta - scanned, 0), 2 * freeable)


@pytest.mark.parametrize("seeks", [0, 1, 2, 3, 8, 100])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_a_step_is_the_kernels(seeks: int, batch: int) -> None:
    home = Shrinkers()
    asked: list[int] = []
    freeable, stop = 0, False

    def scan(nr: int) -> int:
        asked.append(nr)
        return ra.SHRINK_STOP if stop else nr // 2

    made = home.register(lambda: freeable, scan, seeks, batch, None)
    deferred = 0
    for freeable in (0, 1, 2, 5, 127, 128, 129, 500):
        for stop in (False, True):
            for priority in range(12, -1, -1):
                want = kernels(
                    freeable, deferred, priority, seeks, batch, lambda nr: ra.SHRINK_STOP if stop else nr // 2
                )
                asked.clear()
                step = made.step(priority)
                assert (asked, step.freed, made.stats().deferred) == want
                assert step.scans == len(asked)
                deferred = want[2]


@pytest.mark.parametrize("seeks", [0, 1, 2, 3, 1000])
def test_the_last_object_is_scanned_too(seeks: int) -> None:
    home = Shrinkers()
    asked: list[int] = []
    made = home.register(lambda: 1, lambda nr: asked.append(nr) or 0, seeks, 128, None)
    for priority in range(12, -1, -1):
        made.step(priority)
    assert asked


def test_one_step_of_a_huge_count_ends() -> None:
    home = Shrinkers()
    made = home.register(lambda: sys.maxsize, lambda nr: nr, 2, 1, None)
    step = made.step(0)
    assert step.scans == room.MAX_BATCHES and made.stats().deferred > 1 << 62


# -- every verb asks -------------------------------------------------------------------------------------------------


def struct_of(arena: ra.Arena, made: Any, **options: Any) -> Any:
    return arena.kmem_cache("constructed", 64, ctor=made, **options)


VERBS: dict[str, Callable[[ra.Arena], Any]] = {
    "kmalloc": lambda arena: arena.kmalloc(BLOCK),
    "kmalloc small": lambda arena: arena.kmalloc(24),
    "kzalloc": lambda arena: arena.kzalloc(BLOCK),
    "kcalloc": lambda arena: arena.kcalloc(4, PAGE),
    "kmalloc as vmalloc": lambda arena: arena.kmalloc(2 * BLOCK),
    "krealloc": lambda arena: arena.krealloc(None, BLOCK),
    "alloc_pages": lambda arena: arena.alloc_pages(4),
    "alloc_pages_exact": lambda arena: arena.alloc_pages_exact(5 * PAGE),
    "alloc_pages_bulk": lambda arena: arena.alloc_pages_bulk(3) or pytest.fail("none"),
    "vmalloc": lambda arena: arena.vmalloc(2 * BLOCK),
    "kvmalloc": lambda arena: arena.kvmalloc(BLOCK),
    "kvmalloc small": lambda arena: arena.kvmalloc(100),
    "cache": lambda arena: arena.kmem_cache("plain", 512).alloc(),
    "cache bulk": lambda arena: arena.kmem_cache("bulk", 512).alloc_bulk(20),
    "constructed": lambda arena: struct_of(arena, lambda view: view.cast("Q")).alloc(),
    "constructed bulk": lambda arena: struct_of(arena, lambda view: None).alloc_bulk(20),
    "pool": lambda arena: arena.mempool(4, size=PAGE).alloc(),
    "pool of pages": lambda arena: arena.mempool(2, order=2),
    "pool of constructed": lambda arena: arena.mempool(4, cache=struct_of(arena, lambda view: None)),
    "pool of alloc_fn": lambda arena: arena.mempool(
        2, alloc_fn=lambda data, gfp: arena.kmalloc(PAGE, gfp), free_fn=arena.kfree
    ),
}
if JIT:
    VERBS |= {
        "empty": lambda arena: arena.empty(BLOCK, np.uint8),
        "zeros": lambda arena: arena.zeros((4, PAGE)),
        "ones": lambda arena: arena.ones(PAGE),
        "full": lambda arena: arena.full(PAGE, 7),
        "empty_like": lambda arena: arena.empty_like(np.empty(PAGE)),
        "array": lambda arena: arena.array(range(PAGE)),
    }


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_asks_shrinkers_before_it_fails(verb: str) -> None:
    with ra.Arena(MIB, max_order=4) as arena:
        images = Images(arena).fill()
        eaten = exhaust(lambda: arena.kmalloc(8, ra.GFP_NOWAIT))  # and what is left in slabs
        with images.register():
            full = len(images.held)
            made = VERBS[verb](arena)
            assert 0 < len(images.held) < full or len(images.calls) > 1
            arena.validate()
        del made, eaten
        images.held.clear()
        gc.collect()


def test_a_waiting_pool_asks_before_it_waits_and_a_bounded_one_does_not(small: ra.Arena) -> None:
    images = Images(small)
    pool, bounded = small.mempool(1, size=PAGE), small.mempool(1, size=PAGE, order="reserve-only")
    taken = [pool.alloc(), bounded.alloc()]
    images.fill()
    with images.register():
        full = len(images.held)
        with pytest.raises(TimeoutError):
            bounded.alloc(timeout=0)
        with pytest.raises(ra.OutOfMemory):
            pool.alloc(ra.GFP_NOWAIT)
        assert len(images.held) == full
        taken.append(pool.alloc(timeout=0))
        assert len(images.held) < full
        images.fill()
        taken += pool.alloc_bulk(1)
        images.fill()
        taken.append(asyncio.run(pool.alloc_async()))
        images.fill()
        pool.resize(20)
        assert pool.curr_nr + len(taken) - 1 == 20 and len(images.held) > 0
        taken += pool.alloc_bulk(20)
        images.fill()
        assert pool.refill(10) >= 10
        pool.fail_alloc()
        full = len(images.held)
        with pytest.raises(TimeoutError):
            taken += [pool.alloc(timeout=0) for _ in range(40)]
        assert len(images.held) == full  # what was made to fail is no shortage
        pool.fail_alloc(0)
    taken.clear()
    images.held.clear()
    pool.destroy()
    bounded.destroy()


def test_alloc_fn_is_told_whether_it_may_ask(small: ra.Arena) -> None:
    images = Images(small)
    pool = small.mempool(1, alloc_fn=lambda data, gfp: small.kmalloc(PAGE, gfp), free_fn=lambda view: view.release())
    first = pool.alloc()
    images.fill()
    with images.register():
        full = len(images.held)
        with pytest.raises(ra.OutOfMemory):
            pool.alloc(ra.GFP_ATOMIC)
        assert len(images.held) == full
        second = pool.alloc()
        assert len(images.held) < full
    images.held.clear()
    pool.free(first)
    pool.free(second)
    pool.destroy()


@pytest.mark.parametrize("gfp", [ra.GFP_NOWAIT, ra.GFP_ATOMIC, 0, ra.GFP_KERNEL & ~ra.GFP_DIRECT_RECLAIM])
def test_who_may_not_reclaim_asks_nobody(small: ra.Arena, gfp: int) -> None:
    images = Images(small).fill()
    cache = small.kmem_cache("plain", 512)
    with images.register() as shrinker:
        for verb in (small.kmalloc, small.vmalloc, small.kvmalloc, small.kzalloc, small.alloc_pages_exact):
            with pytest.raises(ra.OutOfMemory):
                verb(BLOCK, gfp)
        with pytest.raises(ra.OutOfMemory):
            cache.alloc(gfp)
        assert shrinker.stats().counts == 0
    images.held.clear()


def test_noretry_is_one_round_and_else_there_are_rounds_while_there_is_progress(small: ra.Arena) -> None:
    images = Images(small).fill()
    asked: list[int] = []

    def grudging(number: int) -> int:  # frees one page a call
        asked.append(number)
        images.held.pop()
        return 1

    with small.register_shrinker(images.count, grudging, seeks=8, batch=1 << 20) as shrinker:
        with pytest.raises(ra.OutOfMemory):
            small.alloc_pages(4, ra.GFP_KERNEL | ra.GFP_NORETRY)
        once = shrinker.stats().counts
        assert once == room.DEF_PRIORITY + 1
        small.free_pages(small.alloc_pages(4))
        assert shrinker.stats().counts > 2 * once
    images.held.clear()


def test_what_cannot_fit_into_an_empty_arena_costs_nobody_anything(small: ra.Arena) -> None:
    images = Images(small).fill()
    with images.register() as shrinker:
        calls = [
            lambda: small.kmalloc(2 * MIB),
            lambda: small.vmalloc(2 * MIB),
            lambda: small.alloc_pages_exact(2 * MIB),
            lambda: small.kcalloc(1 << 40, 1 << 40),
            lambda: small.kmalloc(8, ra.GFP_KERNEL | ra.GFP_DMA),
            lambda: small.mempool(1 << 20, size=PAGE),
        ]
        if JIT:
            calls.append(lambda: small.empty(2 * MIB, np.uint8))
        for call in calls:
            with pytest.raises(MemoryError):
                call()
        assert shrinker.stats().counts == 0
    images.held.clear()


def test_what_is_kept_for_speed_goes_first(small: ra.Arena) -> None:
    small.vfree(small.vmalloc(MIB // 2))  # kept lazily
    with small.kmem_cache("plain", 512).alloc():
        pass  # an empty slab
    images = Images(small)
    with images.register() as shrinker:
        assert small.stats().vmalloc_lazy + small.stats().slab > 0
        free = small.stats().free + small.stats().vmalloc_lazy
        images.held += [small.kmalloc(PAGE) for _ in range(free // PAGE)]
        assert shrinker.stats().counts == 0
    images.held.clear()


def test_only_as_much_is_given_up_as_is_needed(small: ra.Arena) -> None:
    images = Images(small).fill()
    with images.register(batch=4):
        full = len(images.held)
        small.free_pages(small.alloc_pages(0))
        assert len(images.held) > full - full // 10
    images.held.clear()


# -- krealloc --------------------------------------------------------------------------------------------------------


def test_krealloc_grows_with_what_shrinkers_give_up(small: ra.Arena) -> None:
    buf = small.kmalloc(PAGE)
    buf[:5] = b"hello"
    images = Images(small).fill()
    with images.register():
        buf = small.krealloc(buf, BLOCK)
        assert bytes(buf[:5]) == b"hello"
    images.held.clear()
    small.kfree(buf)


def test_a_buffer_that_a_shrinker_frees_while_it_is_reallocated_is_an_invalid_free(small: ra.Arena) -> None:
    images = Images(small).fill()
    with images.register(), pytest.raises(ra.InvalidFree, match="shrinker freed"):
        victims = images.held.copy()  # kfree, not del: the caller has the handle, too
        images.held = []
        room_for = [victims.pop()]

        def scan(number: int) -> int:
            for view in victims:
                small.kfree(view)
            small.kfree(room_for[0])
            freed = len(victims) + 1
            victims.clear()
            return freed

        with small.register_shrinker(lambda: len(victims), scan):
            small.krealloc(room_for[0], BLOCK)
    gc.collect()
    assert small.stats().leases == 0


# -- functions that misbehave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (-3, ValueError),
        (ra.SHRINK_STOP, ValueError),
        (1 << 70, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_a_count_that_means_nothing_is_reported_and_nothing_else(
    small: ra.Arena, ignored: list[Any], count: Any, error: type[Exception]
) -> None:
    held = Images(small).fill().held
    with small.register_shrinker(lambda: count, lambda number: number, name="liar") as shrinker:
        with unchanged(small), pytest.raises(ra.OutOfMemory):
            small.kmalloc(PAGE)
        assert shrinker.stats().errors == shrinker.stats().counts == 13 and shrinker.stats().scans == 0
    assert {kind for kind, _, _ in ignored} == {error} and {name for _, _, name in ignored} == {
        "shrinker 'liar': count"
    }
    held.clear()


@pytest.mark.parametrize("answer", [-7, ra.SHRINK_EMPTY, 1 << 70, 2.0, False, None, "12"])
def test_a_scan_that_means_nothing_is_reported_and_nothing_else(
    small: ra.Arena, ignored: list[Any], answer: Any
) -> None:
    held = Images(small).fill().held
    with small.register_shrinker(lambda: 10, lambda number: answer, name="liar") as shrinker:
        with unchanged(small), pytest.raises(ra.OutOfMemory):
            small.kmalloc(PAGE)
        assert shrinker.stats().errors == shrinker.stats().scans > 0 and shrinker.stats().freed == 0
    assert {name for _, _, name in ignored} == {"shrinker 'liar': scan"}
    held.clear()


@pytest.mark.parametrize("counted", [1, 10, 10_000, sys.maxsize])
@pytest.mark.parametrize("said", [0, 1, sys.maxsize])
def test_whatever_shrinkers_claim_the_allocation_ends(small: ra.Arena, counted: int, said: int) -> None:
    held = Images(small).fill().held
    with small.register_shrinker(lambda: counted, lambda number: said, batch=1 << 50) as shrinker:
        with unchanged(small), pytest.raises(ra.OutOfMemory):
            small.kmalloc(PAGE)
        rounds = shrinker.stats().counts // 13
        assert rounds == (room.MAX_RECLAIM_RETRIES if said else 1)
    held.clear()


def test_stop_ends_a_step_and_empty_means_none(small: ra.Arena) -> None:
    images = Images(small).fill()
    answers = {"count": ra.SHRINK_EMPTY}
    with (
        small.register_shrinker(lambda: answers["count"], lambda number: number) as empty,
        small.register_shrinker(images.count, lambda number: ra.SHRINK_STOP, batch=1) as stopping,
    ):
        with pytest.raises(ra.OutOfMemory):
            small.kmalloc(PAGE)
        assert (empty.stats().counts, empty.stats().scans, empty.stats().errors) == (13, 0, 0)
        stats = stopping.stats()
        assert stats.stops == stats.scans <= 13 and (stats.freed, stats.scanned, stats.errors) == (0, 0, 0)
        assert stats.deferred > 0
    images.held.clear()


def test_what_raises_is_reported_and_others_are_asked_all_the_same(small: ra.Arena, ignored: list[Any]) -> None:
    images = Images(small).fill()

    def fails(*_: int) -> int:
        raise LookupError("no such image")

    with (
        small.register_shrinker(fails, fails, name="bad count"),
        small.register_shrinker(lambda: 200, fails, batch=1, name="bad scan"),
        images.register(),
    ):
        small.free_pages(small.alloc_pages(0))
    assert {name for _, _, name in ignored} == {"shrinker 'bad count': count", "shrinker 'bad scan': scan"}
    assert {(kind, text) for kind, text, _ in ignored} == {(LookupError, "no such image")}
    images.held.clear()


def test_a_shrinker_that_frees_and_raises_has_freed(small: ra.Arena, ignored: list[Any]) -> None:
    images = Images(small).fill()

    def scan(number: int) -> int:
        images.scan(number)
        raise RuntimeError("after the fact")

    with small.register_shrinker(images.count, scan):
        small.free_pages(small.alloc_pages(0))
    assert len(ignored) == 1
    images.held.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_passes_through_and_the_next_allocation_asks_again(
    small: ra.Arena, error: type[BaseException]
) -> None:
    images = Images(small).fill()
    interrupts = [error]

    def scan(number: int) -> int:
        if interrupts:
            raise interrupts.pop()
        return images.scan(number)

    with small.register_shrinker(images.count, scan):
        with unchanged(small), pytest.raises(error):
            small.alloc_pages(0)
        small.free_pages(small.alloc_pages(0))
    images.held.clear()


def test_a_shrinker_that_allocates_and_fails_does_not_come_back(small: ra.Arena) -> None:
    images = Images(small).fill()
    depth: list[int] = []
    refused: list[str] = []

    def scan(number: int) -> int:
        depth.append(1)
        assert len(depth) == 1
        try:
            small.kmalloc(BLOCK)
        except ra.OutOfMemory as error:
            refused.append(str(error))
        finally:
            depth.pop()
        return images.scan(number)

    with small.register_shrinker(images.count, scan):
        small.free_pages(small.alloc_pages(2))
    assert refused
    images.held.clear()


def test_an_arena_of_a_shrinker_has_none_for_it(small: ra.Arena) -> None:
    """As in the kernel, who reclaims does not reclaim: two arenas cannot wait for each other."""
    with ra.Arena(MIB, max_order=4) as other:
        mine, theirs = Images(small).fill(), Images(other).fill()

        def scan(number: int) -> int:
            with pytest.raises(ra.OutOfMemory):
                other.kmalloc(BLOCK)
            return mine.scan(number)

        with small.register_shrinker(mine.count, scan), theirs.register() as shrinker:
            small.free_pages(small.alloc_pages(0))
            assert shrinker.stats().counts == 0
        mine.held.clear()
        theirs.held.clear()


def test_shrinkers_come_and_go_while_they_run(small: ra.Arena) -> None:
    images = Images(small).fill()
    made: list[ra.Shrinker] = []

    def leave(number: int) -> int:
        mine.close()
        other.unregister()
        made.append(small.register_shrinker(images.count, images.scan, name="late"))
        return 0

    mine = small.register_shrinker(lambda: 1000, leave, batch=1)
    other = small.register_shrinker(lambda: 1000, leave, batch=1)
    small.free_pages(small.alloc_pages(0))
    assert mine.closed and other.closed and (mine.stats().scans, other.stats().scans) == (1, 0)
    assert len(made) == 1 and made[0].stats().freed > 0
    made[0].close()
    images.held.clear()


def test_a_shrinker_may_close_the_arena() -> None:
    arena = ra.Arena(MIB, max_order=4)
    images = Images(arena).fill()

    def scan(number: int) -> int:
        images.held.clear()
        arena.close()
        return number

    shrinker = arena.register_shrinker(images.count, scan)
    cache = arena.kmem_cache("plain", 512)
    with pytest.raises(ra.ArenaClosed):
        cache.alloc()
    assert shrinker.closed
    with pytest.raises(ra.ArenaClosed):
        arena.register_shrinker(images.count, scan)


@pytest.mark.parametrize("verb", ["kmalloc", "vmalloc", "mempool", "krealloc", "constructed"])
def test_every_verb_says_so_when_a_shrinker_closes_the_arena(verb: str) -> None:
    arena = ra.Arena(MIB, max_order=4)
    buf = arena.kmalloc(PAGE)
    images = Images(arena).fill()
    arena.register_shrinker(images.count, lambda number: (images.held.clear(), arena.close(), number)[-1])
    calls = {
        "kmalloc": lambda: arena.kmalloc(PAGE),
        "vmalloc": lambda: arena.vmalloc(PAGE),
        "mempool": lambda: arena.mempool(30, size=PAGE),
        "krealloc": lambda: arena.krealloc(buf, BLOCK),
        "constructed": lambda: struct_of(arena, lambda view: None).alloc(),
    }
    with pytest.warns(ResourceWarning, match="live lease"), pytest.raises(ra.ArenaClosed):
        calls[verb]()
    buf.release()


# -- where they never run --------------------------------------------------------------------------------------------


class Finalized:
    """Allocates in its ``__del__``."""

    def __init__(self, arena: ra.Arena, seen: list[str]) -> None:
        self.arena, self.seen = arena, seen
        self.me: Any = None

    def __del__(self) -> None:
        try:
            self.arena.kmalloc(PAGE)
        except ra.OutOfMemory:
            self.seen.append("refused")


def test_never_from_del_nor_inside_a_collection(small: ra.Arena) -> None:
    images = Images(small).fill()
    seen: list[str] = []
    with images.register() as shrinker:
        Finalized(small, seen)
        assert seen == ["refused"]
        cycle = Finalized(small, seen)
        cycle.me = cycle
        del cycle
        gc.collect()
        assert seen == ["refused"] * 2

        class Plain:
            me: Any = None

        def callback(_: object) -> None:
            try:
                small.kmalloc(PAGE)
            except ra.OutOfMemory:
                seen.append("refused")

        plain = Plain()
        plain.me = plain
        kept = weakref.ref(plain, callback)
        del plain
        gc.collect()
        assert seen == ["refused"] * 3 and kept() is None
        assert shrinker.stats().counts == 0
        small.free_pages(small.alloc_pages(0))
        assert shrinker.stats().counts > 0
    images.held.clear()


def test_a_collection_of_another_thread_is_no_hindrance(small: ra.Arena) -> None:
    images = Images(small).fill()
    inside, go = threading.Event(), threading.Event()

    class Slow:
        me: Any = None

        def __del__(self) -> None:
            inside.set()
            go.wait(60)

    def collect() -> None:
        slow = Slow()
        slow.me = slow
        del slow
        gc.collect()

    with images.register():
        worker = Worker(collect)
        try:
            assert inside.wait(60) and next(reversed(room._phases)) == "start"
            small.free_pages(small.alloc_pages(0))
        finally:
            go.set()
            worker.result()
    images.held.clear()


def test_what_watches_collections_runs_no_bytecode(small: ra.Arena) -> None:
    """Else a Ctrl-C that comes during a collection would be handled in it, where exceptions are ignored."""
    with Images(small).register():
        assert set(room._watchers) <= set(gc.callbacks)
        assert not any(hasattr(watcher, "__code__") or hasattr(watcher, "__func__") for watcher in room._watchers)
        Images(small).register().close()
        assert all(gc.callbacks.count(watcher) == 1 for watcher in room._watchers)


@pytest.mark.skipif(not JIT, reason="kernels in Python cannot bear exceptions")
def test_interrupts_at_any_moment_leave_everything_as_it_was() -> None:
    quiet_child(
        """
import gc, random, signal, threading, time
import realalloc as ra
from realalloc import shrinker as room

class Boom(BaseException):
    pass

def boom(*_):
    raise Boom

def free(number):
    freed = min(number, len(held))
    del held[:freed]
    return freed

arena = ra.Arena("1MiB", max_order=4)
held, hits, rounds = [], 0, 0
signal.signal(signal.SIGALRM, boom)
arena.register_shrinker(lambda: len(held), free, batch=4)
end = time.monotonic() + 20
while hits < 50 and time.monotonic() < end:
    try:
        while True:
            held.append(arena.kmalloc(4096, ra.GFP_NOWAIT))
    except ra.OutOfMemory:
        pass
    made = None
    try:
        signal.setitimer(signal.ITIMER_REAL, random.random() * 3e-4 + 1e-6)
        made = arena.alloc_pages(2), arena.kmalloc(9000)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Boom:
        hits += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert not getattr(room._here, "busy", False)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(arena._shrinkers._turn.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert taken == [True]
    arena._shrinkers.after_fork()  # takes the turn from the thread that is gone
assert hits, hits
made = None
held.clear()
gc.collect()
arena.validate()
assert arena.stats().leases == 0
arena.close()
"""
    )


@pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code")
def test_numpys_handler_and_jitted_code_run_none(small: ra.Arena) -> None:
    from realalloc.jit import kmalloc

    images = Images(small).fill()
    with images.register() as shrinker:
        with small.numpy(), pytest.raises(MemoryError):
            np.empty(BLOCK)
        assert kmalloc(small.words, BLOCK) <= 0
        assert shrinker.stats().counts == 0
    images.held.clear()


# -- threads and forks -----------------------------------------------------------------------------------------------


def test_a_shrinker_never_runs_twice_at_once_and_all_threads_are_served(small: ra.Arena) -> None:
    images = Images(small)
    inside: list[int] = []
    worst: list[int] = []

    def scan(number: int) -> int:
        inside.append(1)
        worst.append(len(inside))
        time.sleep(0.0002)
        inside.pop()
        return images.scan(number)

    def work() -> None:
        for _ in range(30):
            images.held.append(small.kmalloc(PAGE))

    images.fill()
    with small.register_shrinker(images.count, scan, batch=8):
        for worker in [Worker(work) for _ in range(4)]:
            worker.result()
    assert max(worst) == 1
    images.held.clear()


def test_who_waits_for_a_thread_that_waits_for_it_gives_up(small: ra.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TURN_SECONDS", 0.05)
    images = Images(small).fill()
    lock = threading.Lock()
    entered = threading.Event()

    def scan(number: int) -> int:
        entered.set()
        with lock:
            return images.scan(number)

    with small.register_shrinker(images.count, scan):
        with lock:
            worker = Worker(lambda: small.free_pages(small.alloc_pages(0)))
            assert entered.wait(60)
            with pytest.raises(ra.OutOfMemory):
                small.kmalloc(PAGE)
        worker.result()
        small.free_pages(small.alloc_pages(0))
    images.held.clear()


def test_a_shrinker_may_work_on_another_thread(small: ra.Arena) -> None:
    images = Images(small).fill()
    with small.register_shrinker(images.count, lambda number: Worker(lambda: images.scan(number)).result()):
        small.free_pages(small.alloc_pages(0))
    images.held.clear()


def test_forks_inside_a_shrinker_and_beside_one() -> None:
    quiet_child(
        """
import os, threading, warnings
import realalloc as ra
warnings.simplefilter("ignore")
arena = ra.Arena("1MiB", max_order=4)
held = []
state = {"pid": 1, "entered": threading.Event(), "go": threading.Event()}

def fill():
    try:
        while True:
            held.append(arena.kmalloc(4096, ra.GFP_NOWAIT))
    except ra.OutOfMemory:
        pass

def free(number):
    freed = min(number, len(held))
    del held[:freed]
    return freed

def forking(number):
    state["pid"] = os.fork()
    return free(number)

def ends(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

fill()
with arena.register_shrinker(lambda: len(held), forking):
    view = arena.kmalloc(4096)
if state["pid"] == 0:  # the child goes on where the shrinker was
    fill()
    with arena.register_shrinker(lambda: len(held), free):
        other = arena.kmalloc(4096)
    arena.validate()
    os._exit(0)
ends(state["pid"])

def slow(number):
    if not state["go"].is_set():
        state["entered"].set()
        state["go"].wait(60)
    return free(number)

fill()
with arena.register_shrinker(lambda: len(held), slow):
    thread = threading.Thread(target=lambda: arena.kmalloc(4096))
    thread.start()
    state["entered"].wait(60)
    pid = os.fork()
    state["go"].set()
    if pid == 0:  # the other thread is not here, nor is its turn
        import time
        begin = time.monotonic()
        other = arena.kmalloc(4096)
        assert time.monotonic() - begin < 0.9
        os._exit(0)
    thread.join()
    ends(pid)
held.clear()
del view
arena.validate()
arena.close()
"""
    )


# -- life ------------------------------------------------------------------------------------------------------------


def test_shrinkers_do_not_keep_an_arena_alive() -> None:
    arena = ra.Arena(MIB)
    images = Images(arena)  # which refers to the arena
    shrinker = images.register()
    gone = weakref.ref(arena)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del arena, images
        gc.collect()
    assert gone() is None and shrinker.closed
    shrinker.close()


def test_close_unregisters_all_and_lets_go_of_the_functions() -> None:
    arena = ra.Arena(MIB)
    images = Images(arena)
    made = [images.register(), images.register(name="second")]
    gone = weakref.ref(images)
    del images
    arena.close()
    assert all(shrinker.closed for shrinker in made) and gone() is None
    assert repr(made[1]) == "<Shrinker 'second' closed>"


def test_a_closed_shrinker_is_not_asked(small: ra.Arena) -> None:
    images = Images(small).fill()
    with images.register() as shrinker:
        assert not shrinker.closed and repr(shrinker) == "<Shrinker 'Images.scan' 0 freed>"
    shrinker.close()
    with unchanged(small), pytest.raises(ra.OutOfMemory):
        small.kmalloc(PAGE)
    assert shrinker.stats().counts == 0
    images.held.clear()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"count": 7}, TypeError, "count must be callable"),
        ({"scan": None}, TypeError, "scan must be callable"),
        ({"seeks": -1}, ValueError, "seeks must be at least 0"),
        ({"seeks": True}, TypeError, "seeks"),
        ({"seeks": 1.5}, TypeError, "seeks"),
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"batch": "x"}, TypeError, "batch"),
        ({"name": b"x"}, TypeError, "name must be a str"),
    ],
)
def test_bad_arguments_register_nothing(small: ra.Arena, options: Any, error: type[Exception], words: str) -> None:
    given = {"count": lambda: 0, "scan": lambda number: number} | options
    with pytest.raises(error, match=words):
        small.register_shrinker(**given)
    assert len(small._shrinkers) == 0


def test_stats_are_a_record(small: ra.Arena) -> None:
    images = Images(small).fill()
    with images.register(seeks=4, batch=7, name="images") as shrinker:
        small.free_pages(small.alloc_pages(0))
        stats = shrinker.stats()
    assert isinstance(stats, ra.ShrinkerStats) and stats.scans > 0
    counts = dict.fromkeys(("scanned", "freed"), 7 * stats.scans)
    assert stats.as_dict() == counts | {
        "name": "images", "seeks": 4, "batch": 7, "counts": stats.counts, "scans": stats.scans,
        "deferred": stats.deferred, "stops": 0, "errors": 0,
    }  # fmt: skip
    with pytest.raises(AttributeError):
        stats.freed = 8  # type: ignore[misc]
    images.held.clear()
