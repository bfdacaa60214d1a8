"""Waiting for elements: threads queue in order of arrival, whatever they want and however they give up; both kinds of pool."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from checks import Worker, bare, eat_everything, eventually, meanwhile, quiet_child, some
from support import JIT, MIB

import realalloc as ra
from realalloc.mm.layout import FIRST_NODES

KINDS = ["memory", "objects"]
both = pytest.mark.parametrize("kind", KINDS)
jitted = pytest.mark.skipif(not JIT, reason="kernels that are Python can be interrupted while they hold the lock")

START = """
import gc, os, signal, sys, threading, time
import realalloc as ra
def make(kind, min_nr, size='4MiB'):
    arena = ra.Arena(size)
    options = dict(size=200) if kind == 'memory' else dict(alloc_fn=lambda d, g: [], free_fn=id)
    pool = arena.mempool(min_nr, **options); pool.fail_alloc()
    return arena, pool
def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, 'never happened'
        time.sleep(0.001)
"""


def in_turn(pool: Any, calls: list[Callable[[], Any]]) -> list[Worker]:
    """Start threads that will wait, each when the one before it does."""
    first = pool.stats().waiters
    workers = []
    for k, call in enumerate(calls):
        workers.append(Worker(call))
        eventually(lambda k=k: pool.stats().waiters == first + k + 1)
    return workers


def finish(pool: Any) -> None:
    """Check that nothing is out and nobody waits, the counters too, and end the pool."""
    gc.collect()
    pool.validate()
    s = pool.stats()
    assert (s.outstanding, s.waiters, s.curr_nr) == (0, 0, max(1, s.min_nr))
    assert s.gets_reserve + s.gets_alloc == s.puts_reserve + s.puts_free
    pool.destroy()


@contextlib.contextmanager
def fast_switches() -> Iterator[None]:
    """Let threads take turns much more often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def use(pool: Any, mark: int, *, bulk: int = 1) -> None:
    """Take elements, write into them, let others run, and look."""
    held = pool.alloc_bulk(bulk, timeout=100) if bulk > 1 else [pool.alloc(timeout=100)]
    wanted = bytes([mark % 251]) * 16
    for element in held:
        element[:16] = wanted
    time.sleep(0)
    assert all(bytes(element[:16]) == wanted for element in held)
    while held:
        pool.free(held.pop())


# -- in order of arrival ---------------------------------------------------------------------------------------------


@both
def test_threads_are_served_in_order_of_arrival_more_of_them_than_the_descriptor_has_nodes(
    arena: ra.Arena, kind: str
) -> None:
    pool = bare(arena, kind, 1)
    held = pool.alloc()
    order: list[int] = []

    def work(me: int) -> None:
        element = pool.alloc(timeout=100)
        order.append(me)  # with the only element in hand
        pool.free(element)

    count = FIRST_NODES + 12
    workers = in_turn(pool, [lambda me=me: work(me) for me in range(count)])
    pool.validate()
    pool.free(held)
    for worker in workers:
        worker.result()
    assert order == list(range(count))
    s = pool.stats()
    assert (s.gets_wait, s.peak_waiters, s.gets_reserve, s.gets_alloc) == (count, count, count + 1, 0)
    assert 0 < s.wait_p50_ns <= s.wait_p99_ns <= s.wait_max_ns and s.stall_some > 0
    finish(pool)


@both
def test_one_element_wakes_one_waiter(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 3)
    held = pool.alloc_bulk(3)
    workers = in_turn(pool, [pool.alloc] * 5)
    for done in range(3):
        pool.free(held.pop(0))
        held.append(workers[done].result())
        assert pool.stats().waiters == 4 - done and all(worker.is_alive() for worker in workers[done + 1 :])
        pool.validate()
    for element in held:
        pool.free(element)
    for worker in workers[3:]:
        pool.free(worker.result())
    del held, element
    finish(pool)


@both
def test_nobody_who_may_wait_or_not_takes_what_the_queue_is_owed(arena: ra.Arena, kind: str) -> None:
    """A bulk request at the head is served before all that came later, although these want less."""
    pool = bare(arena, kind, 3)
    held = pool.alloc_bulk(3)
    order: list[str] = []

    def one(name: str) -> None:
        element = pool.alloc(timeout=100)
        order.append(name)
        pool.free(element)

    def many() -> None:
        got = pool.alloc_bulk(3)
        order.append("many")
        while got:
            pool.free(got.pop())

    workers = in_turn(pool, [many, lambda: one("first"), lambda: one("second")])
    pool.free(held.pop())
    pool.free(held.pop())
    assert (pool.curr_nr, pool.stats().waiters, order) == (2, 3, [])
    for call in (lambda: pool.alloc(ra.GFP_NOWAIT), lambda: pool.alloc_bulk(1, ra.GFP_NOWAIT), pool.alloc_preallocated):
        with pytest.raises(ra.OutOfMemory):
            call()
    for hasty in (lambda: pool.alloc(timeout=0.01), lambda: pool.alloc_bulk(1, timeout=0.01)):
        with pytest.raises(TimeoutError):
            hasty()
    pool.validate()
    assert (pool.curr_nr, pool.stats().waiters, order) == (2, 3, [])
    pool.free(held.pop())
    for worker in workers:
        worker.result()
    assert order[0] == "many" and set(order[1:]) == {"first", "second"}
    finish(pool)


@both
def test_a_bulk_request_that_gives_up_lets_those_behind_it_pass(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 2)
    held = pool.alloc_bulk(2)
    workers = in_turn(pool, [lambda: pool.alloc_bulk(2, timeout=0.5), lambda: pool.alloc(timeout=100)])
    pool.free(held.pop())
    with pytest.raises(TimeoutError, match="no element came back within 0.5 s"):
        workers[0].result()
    pool.free(workers[1].result())
    pool.free(held.pop())
    finish(pool)


# -- many at once ----------------------------------------------------------------------------------------------------


@both
def test_a_bulk_request_gives_all_or_nothing(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 4)
    held = pool.alloc_bulk(2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            pool.alloc_bulk(3, timeout=0.01)
        with pytest.raises(ra.OutOfMemory, match="may not wait"):
            pool.alloc_bulk(3, ra.GFP_NOWAIT)
        s = pool.stats()
        assert (s.curr_nr, s.outstanding, s.waiters, s.gets_reserve) == (2, 2, 0, 2)
        pool.validate()
    assert pool.alloc_bulk(0) == []
    held += pool.alloc_bulk(2, ra.GFP_NOWAIT)
    pool.free_bulk(held)
    held.clear()
    finish(pool)


@both
def test_callers_that_each_want_more_than_half_never_lock_each_other_out(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 5)

    def work(bulk: int) -> None:
        for k in range(some(150, 15)):
            use(pool, k, bulk=bulk)

    with fast_switches():
        for worker in [Worker(lambda bulk=bulk: work(bulk)) for bulk in (3, 3, 5, 1, 2)]:
            worker.result()
    finish(pool)


def test_a_bulk_request_whose_alloc_fn_is_interrupted_gives_all_back(arena: ra.Arena) -> None:
    fail = [False]

    def alloc_fn(_data: Any, _gfp: int) -> Any:
        if fail[0]:
            raise KeyboardInterrupt
        return []

    pool = arena.mempool(3, alloc_fn=alloc_fn, free_fn=id)
    held = pool.alloc_bulk(2)
    fail[0] = True
    with pytest.raises(KeyboardInterrupt):
        pool.alloc_bulk(2)
    assert (pool.curr_nr, pool.stats().waiters) == (1, 0)
    pool.validate()
    pool.free_bulk(held)
    finish(pool)


def test_alloc_fn_is_not_told_that_it_may_wait_when_the_caller_may_not(arena: ra.Arena) -> None:
    told: list[int] = []
    pool = arena.mempool(2, alloc_fn=lambda _data, gfp: [told.append(gfp)], free_fn=id)
    held = pool.alloc_bulk(2)
    told.clear()
    held += pool.alloc_bulk(2, ra.GFP_NOWAIT)
    assert told and not any(gfp & ra.GFP_DIRECT_RECLAIM for gfp in told)
    pool.free_bulk(held)
    pool.destroy()


# -- the guarantee ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("min_nr", [0, 1, 2])
def test_threads_that_hold_one_element_each_make_progress_although_the_backing_always_fails(
    arena: ra.Arena, kind: str, min_nr: int
) -> None:
    pool = bare(arena, kind, min_nr)
    turns = some(150, 20)

    def work(me: int) -> None:
        for k in range(turns):
            use(pool, me * turns + k)

    with fast_switches():
        for worker in [Worker(lambda me=me: work(me)) for me in range(6)]:
            worker.result()
    s = pool.stats()
    assert (s.gets_reserve, s.gets_alloc, s.puts_reserve, s.puts_free) == (6 * turns, 0, 6 * turns, 0)
    assert s.gets_wait <= s.gets_reserve and s.peak_waiters <= 6
    finish(pool)


@both
@pytest.mark.parametrize("order", ["reserve-first", "alloc-first", "reserve-only"])
@pytest.mark.parametrize("low", [0, 1])
def test_resizes_and_refills_while_others_take_and_wait_lose_nothing(
    arena: ra.Arena, kind: str, order: str, low: int
) -> None:
    pool = bare(arena, kind, 1, order=order, low=low)
    pool.fail_alloc(0.7, seed=5)
    marks = itertools.count()
    with fast_switches(), meanwhile(lambda: use(pool, next(marks)), threads=4):
        for k in range(some(150, 15)):
            with contextlib.suppress(BufferError):  # more than that was granted just now
                pool.resize((3, 1, 6, 2, 0)[k % 5])
            assert 0 <= pool.refill() <= max(1, pool.min_nr)
            pool.validate()
    pool.fail_alloc(0)
    pool.refill()
    finish(pool)


@both
def test_a_pool_is_not_made_smaller_than_what_somebody_waits_for(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 4)
    held = pool.alloc_bulk(4)
    (worker,) = in_turn(pool, [lambda: pool.alloc_bulk(3)])
    with pytest.raises(BufferError, match="waits for more than 2"):
        pool.resize(2)
    pool.resize(3)
    while held:
        pool.free(held.pop())
    held = worker.result()
    pool.free_bulk(held)
    held.clear()
    finish(pool)


@both
def test_a_resize_that_finds_elements_serves_who_waits(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 1)
    held = [pool.alloc()]
    workers = in_turn(pool, [pool.alloc, pool.alloc])
    pool.fail_alloc(0)
    pool.resize(3)
    held += [worker.result() for worker in workers]
    pool.free_bulk(held)
    held.clear()
    finish(pool)


# -- the pool or the arena goes, or has no memory --------------------------------------------------------------------


@both
def test_a_destruction_by_force_ends_all_waits_with_a_value_error(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 2)
    held = pool.alloc_bulk(2)
    workers = in_turn(pool, [pool.alloc, lambda: pool.alloc(timeout=100), lambda: pool.alloc_bulk(2)])
    with pytest.raises(BufferError, match="2 elements out and 3 waiters"):
        pool.destroy()
    assert pool.stats().waiters == 3 and all(worker.is_alive() for worker in workers)
    pool.destroy(force=True)
    for worker in workers:
        with pytest.raises(ValueError, match="destroyed"):
            worker.result()
    held[0][:4] = b"mine"
    assert bytes(held[0][:4]) == b"mine"
    if kind == "objects":
        for element in held:
            pool.free(element)
        del element
    held.clear()


@both
def test_destruction_by_force_while_threads_take_and_wait_loses_nothing(
    arena: ra.Arena, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realalloc.waiting.SLICE_SECONDS", 1e6)  # a wake-up that is missed shall not be a mere delay

    def work(pool: Any) -> None:
        try:
            while True:
                element = pool.alloc(timeout=100)
                try:
                    time.sleep(0)
                finally:
                    pool.free(element) if kind == "objects" else element.release()
        except ValueError as error:
            assert "destroyed" in str(error)

    with fast_switches():
        for turn in range(some(20, 4)):
            pool = bare(arena, kind, 2)
            workers = [Worker(lambda pool=pool: work(pool)) for _ in range(4)]
            eventually(lambda pool=pool: pool.stats().gets_wait > turn)
            pool.destroy(force=True)
            for worker in workers:
                worker.result()
    del pool, workers, worker
    gc.collect()
    arena.validate()


@pytest.mark.parametrize("order", ["reserve-first", "alloc-first"])
def test_what_alloc_fn_makes_for_a_pool_that_was_destroyed_meanwhile_goes_to_free_fn(
    arena: ra.Arena, order: str
) -> None:
    live: list[Any] = []
    destroy = [False]

    def alloc_fn(_data: Any, _gfp: int) -> Any:
        live.append([])
        if destroy[0]:
            pool.destroy(force=True)
        return live[-1]

    def free_fn(element: Any) -> None:
        live[:] = [other for other in live if other is not element]

    pool = arena.mempool(1, alloc_fn=alloc_fn, free_fn=free_fn, order=order)
    held = pool.alloc_preallocated()
    destroy[0] = True
    with pytest.raises(ValueError, match="destroyed"):
        pool.alloc()
    assert len(live) == 1 and live[0] is held
    pool.free(held)
    assert live == []


@both
def test_closing_the_arena_ends_all_waits(kind: str) -> None:
    arena = ra.Arena(4 * MIB)
    pool = bare(arena, kind, 2)
    held = pool.alloc_bulk(2)
    workers = in_turn(pool, [pool.alloc, lambda: pool.alloc(timeout=100), lambda: pool.alloc_bulk(2)])
    if kind == "memory":
        with pytest.warns(ResourceWarning, match="live leases"):
            arena.close()
    else:
        arena.close()
    for worker in workers:
        with pytest.raises(ra.ArenaClosed):
            worker.result()
    held.clear()


@both
def test_waiters_without_memory_for_a_node_are_served_too(small: ra.Arena, kind: str) -> None:
    pool = bare(small, kind, 1)
    held = pool.alloc()
    blocks = eat_everything(small)
    workers = [Worker(lambda me=me: use(pool, me)) for me in range(FIRST_NODES + 7)]
    eventually(lambda: pool.stats().waiters == FIRST_NODES)
    with pytest.raises(TimeoutError):
        pool.alloc(timeout=0.02)
    with pytest.raises(ra.OutOfMemory, match="may not wait"):
        pool.alloc(ra.GFP_NOWAIT)
    assert pool.stats().waiters == FIRST_NODES
    pool.free(held)
    for worker in workers:
        worker.result()
    blocks.clear()
    finish(pool)


def test_elements_in_cycles_that_a_collection_on_another_thread_finds_go_to_waiters(arena: ra.Arena) -> None:
    pool = bare(arena, "memory", 3)

    def make_cycles() -> None:
        for element in pool.alloc_bulk(3):
            box: list[Any] = [element[1:], element]
            box.append(box)

    gc.disable()
    try:
        Worker(make_cycles).result()
        workers = in_turn(pool, [lambda: len(pool.alloc()) for _ in range(5)])
        Worker(gc.collect).result()
    finally:
        gc.enable()
    assert [worker.result() for worker in workers] == [200] * 5
    finish(pool)


# -- leases ----------------------------------------------------------------------------------------------------------


@both
def test_a_lease_holds_an_element_for_a_block_whatever_ends_it(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 1)
    with pool.lease() as element:
        assert len(element) == 200 and pool.curr_nr == 0
        with pytest.raises(TimeoutError), pool.lease(timeout=0.01):
            pass
        with pytest.raises(ra.OutOfMemory), pool.lease(ra.GFP_NOWAIT):
            pass
    with pytest.raises(ZeroDivisionError), pool.lease():
        raise ZeroDivisionError
    assert pool.curr_nr == 1
    lease = pool.lease()

    def work() -> None:
        with lease as mine:  # one lease may be used by many
            mine[:1] = b"x"

    with fast_switches():
        for worker in [Worker(lambda: [work() for _ in range(20)]) for _ in range(4)]:
            worker.result()
    del element
    finish(pool)


def test_a_lease_outlives_its_pool_and_its_arena() -> None:
    arena = ra.Arena(4 * MIB)
    pool = bare(arena, "memory", 1)
    with pool.lease() as element:
        pool.destroy(force=True)
        element[:1] = b"x"
    pool = bare(arena, "memory", 1)
    with pool.lease() as element, pytest.warns(ResourceWarning, match="live leases"):
        arena.close()
    with pytest.raises(ValueError, match="released"):
        element[0]


# -- children --------------------------------------------------------------------------------------------------------


@jitted
@both
def test_a_storm_of_keyboard_interrupts_on_a_blocked_alloc_strands_no_request(kind: str) -> None:
    """Interrupts come in pairs, the second while the first unwinds; what is freed then must reach whoever asks next."""
    quiet_child(
        START
        + f"""
arena, pool = make({kind!r}, 2)
held = pool.alloc_bulk(2); left = 0  # interrupts that may still be raised: what comes later is nobody's
def more(*_):
    global left
    if left: left -= 1; raise KeyboardInterrupt
signal.signal(signal.SIGALRM, more)
def attempt(k):
    global left
    left = 2
    signal.setitimer(signal.ITIMER_REAL, 2e-5 + k % 50 * 3e-6, 2e-5 + k % 7 * 1e-5)
    pool.alloc_bulk(2) if k % 2 else pool.alloc()
for k in range(2000):
    try:
        try: attempt(k)
        except KeyboardInterrupt: left = 0
    except KeyboardInterrupt: pass  # the second of a pair
    while left:
        try: left = 0
        except KeyboardInterrupt: pass
    signal.setitimer(signal.ITIMER_REAL, 0, 0)
    if pool.stats().waiters: print('stranded by', k, pool.stats().waiters); break
pool.validate()
while held: pool.free(held.pop())
pool.free_bulk(pool.alloc_bulk(2, timeout=0))
gc.collect(); assert pool.stats().outstanding == 0
pool.destroy(); arena.close()
""",
    )


@both
@pytest.mark.parametrize("plain", [True, False], ids=["machine code", "python"])
@pytest.mark.parametrize(
    ("handler", "outcome"),
    [
        ("pool.free(held.pop())", "None"),
        ("pool.destroy(force=True)", "ValueError"),
        ("arena.close()", "ArenaClosed"),
        ("raise KeyError", "KeyError"),
        ("pool.fail_alloc(0)", "None"),
        ("pool.resize(2); pool.fail_alloc(0); pool.refill()", "None"),
    ],
)
def test_a_signal_handler_may_do_anything_to_the_pool_that_its_thread_waits_for(
    kind: str, plain: bool, handler: str, outcome: str
) -> None:
    quiet_child(
        START
        + f"""
import warnings
warnings.simplefilter('ignore', ResourceWarning)
arena, pool = make({kind!r}, 1)
held = [pool.alloc()]
def handle(*_):
    {handler}
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.02)
found = None
try: found = pool.alloc() if {plain} else pool.alloc(timeout=60)
except Exception as error: outcome = type(error).__name__
else: outcome = None; assert found is not None
assert str(outcome) == {outcome!r}, outcome
if outcome in (None, 'KeyError'):
    assert pool.stats().waiters == 0
    pool.validate()
    if found is not None: pool.free(found)
    while held: pool.free(held.pop())
    pool.destroy(); arena.validate(); arena.close()
held.clear()
"""
    )


@both
def test_who_waits_is_no_lease_and_keeps_the_range_mapped_until_it_has_ended(kind: str) -> None:
    """Neither in the child of a fork, which has no such thread, nor when the arena closes under it."""
    quiet_child(
        START
        + f"""
def mapped(address):
    ranges = (line.split()[0].split('-') for line in open('/proc/self/maps'))
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
arena, pool = make({kind!r}, 1)
held = [pool.alloc()]
seen = []
def wait():
    try: pool.alloc()
    except ra.ArenaClosed: seen.append('closed')
threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
until(lambda: pool.stats().waiters == 3)
address, leases = arena.address, int({kind!r} == 'memory')
assert arena.stats().leases == leases
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert arena.stats().leases == leases
        while held: pool.free(held.pop())
        pool.destroy()
        assert arena.stats().leases == 0
        arena.close()
        code = 0
    finally: os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert pool.stats().waiters == 3
arena.close()
for thread in threads: thread.join()
assert seen == ['closed'] * 3
assert mapped(address) or not leases
held.clear(); threads.clear(); del pool, arena, thread; gc.collect()
assert not mapped(address)
""",
        "-W",
        "ignore::DeprecationWarning",
        "-W",
        "ignore::ResourceWarning",
    )


@both
def test_the_interpreter_ends_while_a_daemon_thread_waits(kind: str) -> None:
    quiet_child(
        START
        + f"""
arena, pool = make({kind!r}, 1)
held = pool.alloc()
threading.Thread(target=pool.alloc, daemon=True).start()
until(lambda: pool.stats().waiters == 1)
""",
        fresh=kind == "memory",
    )


@both
def test_the_interpreter_ends_while_a_daemon_thread_is_granted_what_it_waits_for(kind: str) -> None:
    """The thread wakes when it can no longer have the GIL, and is ended in the middle of machine code."""
    quiet_child(
        START
        + f"""
arena, pool = make({kind!r}, 1)
class Last:
    def __init__(self, element): self.element = element
    def __del__(self, sleep=time.sleep, free=pool.free):
        free(self.element)
        sleep(0.2)
sys.modules['the last to go'] = Last(pool.alloc())
threading.Thread(target=pool.alloc, daemon=True).start()
until(lambda: pool.stats().waiters == 1)
""",
        fresh=kind == "memory",
    )


@jitted
def test_a_storm_of_keyboard_interrupts_keeps_the_books_of_objects() -> None:
    """Wherever they hit alloc and free: what the arena counts as out is what the pool notes as out, and nothing else."""
    quiet_child(
        START
        + """
arena = ra.Arena('4MiB')
freed = []
pool = arena.mempool(3, alloc_fn=lambda d, g: bytearray(9), free_fn=freed.append)
left = 0
def more(*_):
    global left
    if left:
        left -= 1
        if left: signal.setitimer(signal.ITIMER_REAL, soon)  # no interval: on a busy machine nothing else would run
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, more)
def attempt(k):
    global left, soon
    left = 2; soon = 1e-6 + k % 7 * 3e-6
    signal.setitimer(signal.ITIMER_REAL, 1e-5 + k % 97 * 5e-7)
    while True:
        held = [pool.alloc() for _ in range(4)]
        while held: pool.free(held.pop())
hits = 0
for k in range(4000):
    try:
        try: attempt(k)
        except KeyboardInterrupt: hits += 1; left = 0
    except KeyboardInterrupt: pass
    while left:
        try: left = 0
        except KeyboardInterrupt: pass
    signal.setitimer(signal.ITIMER_REAL, 0, 0)
    now = pool.stats()
    assert now.outstanding == len(pool._out), (k, now, pool._out)
    assert len(pool._objects) == len(pool._known) == now.curr_nr + now.outstanding, (k, now, pool._objects)
    for _, element, _ in list(pool._out.values()): pool.free(element)  # interrupted between alloc and its caller
    pool.validate()
assert hits > 1000 and pool.curr_nr == 3
pool.destroy(); arena.close()
""",
    )


@both
def test_a_child_of_fork_forgets_its_parents_waiters(kind: str) -> None:
    quiet_child(
        START
        + f"""
arena, pool = make({kind!r}, 2)
held = pool.alloc_bulk(2)
def wait():
    element = pool.alloc()
    pool.free(element)
threads = [threading.Thread(target=wait) for _ in range(20)]
for k, thread in enumerate(threads): thread.start()
until(lambda: pool.stats().waiters == 20)
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert pool.stats().waiters == 0
            pool.validate()
            for element in held: pool.free(element)
            pool.free_bulk(pool.alloc_bulk(2, timeout=0))
            one = pool.alloc(); two = pool.alloc(timeout=0)
            thread = threading.Thread(target=wait); thread.start()
            until(lambda: pool.stats().waiters == 1)
            pool.free(one); thread.join(); pool.free(two)
            pool.validate(); arena.validate(); pool.destroy(); arena.validate()
            code = 0
        finally: os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
assert pool.stats().waiters == 20
pool.validate()
while held: pool.free(held.pop())
for thread in threads: thread.join()
pool.validate(); pool.destroy(); arena.close()
""",
        "-W",
        "ignore::DeprecationWarning",
    )


@both
def test_the_interpreter_ends_although_daemons_wait(kind: str) -> None:
    quiet_child(
        START
        + f"""
arena, pool = make({kind!r}, 2)
held = pool.alloc_bulk(2)
for k in range(20): threading.Thread(target=(pool.alloc, lambda: pool.alloc_bulk(2))[k % 2], daemon=True).start()
until(lambda: pool.stats().waiters == 20)
print('end')
""",
        "-W",
        "ignore::ResourceWarning",
        expect="end",
        fresh=kind == "memory",
    )
