"""Awaiting elements: coroutines of any loops queue with blocking threads; however a wait ends, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from checks import Worker, bare, eat_everything, eventually, meanwhile, quiet_child, some
from support import MIB

import realalloc as ra
from realalloc.mm.layout import FIRST_NODES

KINDS = ["memory", "objects"]
both = pytest.mark.parametrize("kind", KINDS)
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes a loop; skip if it is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = pytest.importorskip("uvloop").new_event_loop
    return made


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes loops of each kind; the first one opens what stays open."""
    made = loop_factory(request.param)
    loop = made()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return made


@pytest.fixture
def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """Runs a coroutine in a new loop, from any thread."""

    def run_it(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(coroutine)

    return run_it


def finish(pool: Any) -> None:
    """Check that nothing is out and nobody waits, the counters too, and end the pool."""
    gc.collect()
    pool.validate()
    s = pool.stats()
    assert (s.outstanding, s.waiters, s.curr_nr) == (0, 0, max(1, s.min_nr))
    assert s.gets_reserve + s.gets_alloc == s.puts_reserve + s.puts_free
    assert pool._wakers == {}
    pool.destroy()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until_waiting(pool: Any, count: int) -> None:
    for _ in range(60_000):
        if pool.stats().waiters == count:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


async def in_turn(pool: Any, calls: list[Callable[[], Coroutine[Any, Any, Any]]]) -> list[asyncio.Task[Any]]:
    """Start tasks that will wait, in this order."""
    first = pool.stats().waiters
    tasks = [asyncio.create_task(call()) for call in calls]
    await until_waiting(pool, first + len(calls))
    return tasks


async def use(pool: Any, mark: int) -> None:
    """Take an element, write into it, let others run, and look."""
    element = await pool.alloc_async()
    wanted = bytes([mark % 251]) * 16
    element[:16] = wanted
    await asyncio.sleep(0)
    assert bytes(element[:16]) == wanted
    pool.free(element)


# -- in order of arrival ---------------------------------------------------------------------------------------------


@both
def test_coroutines_are_served_in_order_of_arrival(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    count = some(2000, 100)
    order: list[int] = []

    async def work(me: int) -> None:
        element = await pool.alloc_async()
        order.append(me)
        await asyncio.sleep(0)
        pool.free(element)

    async def main() -> None:
        held = pool.alloc()
        before = fds()
        tasks = await in_turn(pool, [lambda me=me: work(me) for me in range(count)])
        assert fds() == before + 1, "one eventfd for a pool and a loop"
        pool.validate()
        pool.free(held)
        await asyncio.gather(*tasks)
        assert fds() == before

    run(main())
    assert order == list(range(count))
    s = pool.stats()
    assert (s.gets_wait, s.peak_waiters, s.gets_reserve) == (count, count, count + 1)
    finish(pool)


@both
def test_coroutines_and_threads_stand_in_one_queue(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    order: list[int] = []
    count = FIRST_NODES + 7

    def block(me: int) -> None:
        element = pool.alloc(timeout=100)
        order.append(me)
        pool.free(element)

    async def work(me: int) -> None:
        element = await pool.alloc_async()
        order.append(me)
        pool.free(element)

    async def main() -> list[Worker]:
        held = pool.alloc()
        tasks, workers = [], []
        for me in range(count):
            if me % 3:
                tasks += await in_turn(pool, [lambda me=me: work(me)])
            else:
                workers.append(Worker(lambda me=me: block(me)))
                await until_waiting(pool, me + 1)
        pool.free(held)
        await asyncio.gather(*tasks)
        return workers

    for worker in run(main()):
        worker.result()
    assert order == list(range(count))
    finish(pool)


@both
def test_loops_in_threads_and_blocking_threads_share_a_pool(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 2)
    marks = itertools.count()
    rounds = some(30, 4)

    async def work() -> None:
        for _ in range(rounds):
            await use(pool, next(marks))

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(8)))

    def block() -> None:
        for _ in range(rounds):
            with pool.lease(timeout=100) as element:
                element[:3] = b"own"
                time.sleep(0)
                assert bytes(element[:3]) == b"own"

    before = fds()
    workers = [Worker(lambda: run(main())) for _ in range(3)] + [Worker(block) for _ in range(2)]
    for worker in workers:
        worker.result()
    assert fds() == before
    assert pool.stats().gets_reserve == rounds * 26
    finish(pool)


@both
def test_an_element_that_is_there_is_had_without_suspending(arena: ra.Arena, kind: str) -> None:
    pool = bare(arena, kind, 1)
    before = fds()
    coroutine = pool.alloc_async()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    held = done.value.value
    del done
    assert pool.curr_nr == 0
    for gfp in (ra.GFP_NOWAIT, ra.GFP_ATOMIC):
        with pytest.raises(ra.OutOfMemory, match="may not wait"):
            pool.alloc_async(gfp).send(None)
    with pytest.raises(ValueError, match="unknown bits"):
        pool.alloc_async(2).send(None)
    assert fds() == before
    pool.free(held)
    del held
    finish(pool)


# -- giving up -------------------------------------------------------------------------------------------------------


@both
def test_a_task_that_is_cancelled_while_it_waits_leaves_the_queue(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    order: list[int] = []

    async def work(me: int) -> None:
        async with pool.lease():
            order.append(me)

    async def main() -> None:
        held = pool.alloc()
        tasks = await in_turn(pool, [lambda me=me: work(me) for me in range(5)])
        for k in (0, 2, 4):
            tasks[k].cancel()
        await until_waiting(pool, 2)
        pool.validate()
        pool.free(held)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends[::2]] == [asyncio.CancelledError] * 3

    run(main())
    assert order == [1, 3]
    finish(pool)


@both
@pytest.mark.parametrize("yields", [0, 1, 2])
def test_a_task_that_is_cancelled_just_when_it_is_served_passes_its_element_on(
    arena: ra.Arena, kind: str, run: Run, yields: int
) -> None:
    """Before the loop looks, after it looked, and when the task runs: the next one gets the element, one way or the other."""
    pool = bare(arena, kind, 1)
    order: list[int] = []

    async def work(me: int) -> None:
        async with pool.lease():
            order.append(me)

    async def main() -> None:
        held = pool.alloc()
        tasks = await in_turn(pool, [lambda me=me: work(me) for me in range(6)])
        worker = Worker(lambda: len(pool.alloc(timeout=100)) if kind == "memory" else pool.free(pool.alloc()))
        await until_waiting(pool, 7)
        pool.free(held)
        assert pool.stats().waiters == 6, "the first one was granted it"
        for _ in range(yields):
            await asyncio.sleep(0)
        for task in tasks[:5]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order[-1] == 5 and (yields or order == [5])
        await asyncio.to_thread(worker.result)

    run(main())
    finish(pool)


@both
@pytest.mark.parametrize("how", ["timeout", "wait_for", "lease"])
def test_a_timeout_ends_a_wait_and_loses_nothing(arena: ra.Arena, kind: str, run: Run, how: str) -> None:
    pool = bare(arena, kind, 1)

    async def attempt() -> None:
        if how == "timeout":
            async with asyncio.timeout(0.01):
                await pool.alloc_async()
        elif how == "wait_for":
            await asyncio.wait_for(pool.alloc_async(), 0.01)
        else:
            async with pool.lease(timeout=0.01):
                pass

    async def main() -> None:
        before = fds()
        held = pool.alloc()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await attempt()
        with pytest.raises(TimeoutError):
            async with pool.lease(timeout=0):
                pass
        assert (pool.stats().waiters, fds()) == (0, before)
        pool.free(held)
        async with pool.lease(timeout=0):  # there is one: it need not wait
            assert pool.curr_nr == 0
        async with pool.lease(timeout=float("inf")):
            assert pool.curr_nr == 0

    run(main())
    finish(pool)


@both
def test_a_lease_without_end_awaits(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)

    async def work() -> None:
        async with pool.lease(timeout=float("inf")) as element:
            assert len(element) == 200

    async def main() -> None:
        async with pool.lease(timeout=100):
            tasks = await in_turn(pool, [work, work])
        await asyncio.gather(*tasks)
        with pytest.raises(ZeroDivisionError):
            async with pool.lease():
                raise ZeroDivisionError
        async with pool.lease():
            with pytest.raises(ra.OutOfMemory):
                async with pool.lease(ra.GFP_NOWAIT):
                    pass

    run(main())
    finish(pool)


@both
@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_timeouts_that_race_with_elements_lose_nothing(arena: ra.Arena, kind: str, run: Run, how: str) -> None:
    pool = bare(arena, kind, 2)
    numbers = random.Random(7)
    ends = [0, 0]

    async def attempt(seconds: float) -> None:
        try:
            if how == "timeout":
                async with pool.lease(timeout=seconds):
                    await asyncio.sleep(0)
            else:
                pool.free(await asyncio.wait_for(pool.alloc_async(), seconds))
            ends[0] += 1
        except TimeoutError:
            ends[1] += 1

    async def main() -> None:
        for _ in range(some(40, 5)):
            await asyncio.gather(*(attempt(numbers.random() * 0.004) for _ in range(20)))

    def hold() -> None:
        with pool.lease():
            time.sleep(0.001)

    with meanwhile(hold, threads=3):
        run(main())
    assert ends[0] and ends[1]
    finish(pool)


@both
def test_cancellations_at_random_lose_nothing(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 2)
    numbers = random.Random(11)

    async def work() -> None:
        async with pool.lease() as element:
            element[:1] = b"x"
            await asyncio.sleep(0)

    async def main() -> None:
        for _ in range(some(60, 6)):
            tasks = [asyncio.create_task(work()) for _ in range(30)]
            for task in numbers.sample(tasks, 15):
                for _ in range(numbers.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            pool.validate()

    with meanwhile(lambda: pool.free(pool.alloc(timeout=100))):
        run(main())
    finish(pool)


# -- the loop, the pool or the arena goes ----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_task_that_dies_with_its_loop_gives_its_request_up(
    arena: ra.Arena, kind: str, new_loop: Any, granted: bool
) -> None:
    pool = bare(arena, kind, 1)
    before = fds()
    held = pool.alloc()
    loop = new_loop()
    tasks = [loop.create_task(pool.alloc_async()) for _ in range(3)]
    loop.run_until_complete(until_waiting(pool, 3))
    worker = Worker(lambda: pool.free(pool.alloc(timeout=100)))
    eventually(lambda: pool.stats().waiters == 4)
    if granted:
        pool.free(held)
    loop.close()
    del loop, tasks
    gc.collect()
    if not granted:
        eventually(lambda: pool.stats().waiters == 1)
        pool.free(held)
    worker.result()
    assert fds() == before
    del held
    finish(pool)


@both
def test_a_loop_that_ends_cancels_who_waits_and_its_successor_works(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    before = fds()
    held = pool.alloc()
    for _ in range(3):
        waiting: list[Any] = []

        async def main(waiting: list[Any] = waiting) -> None:
            waiting += await in_turn(pool, [pool.alloc_async, pool.alloc_async])

        run(main())
        assert all(task.cancelled() for task in waiting)
        assert (pool.stats().waiters, fds()) == (0, before)
    pool.free(held)
    run(use(pool, 1))
    finish(pool)


@both
def test_a_destruction_by_force_ends_all_awaits_with_a_value_error(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    held = pool.alloc()

    async def main() -> None:
        before = fds()
        tasks = await in_turn(pool, [pool.alloc_async] * (FIRST_NODES + 3))
        with pytest.raises(BufferError, match="1 elements out and 16 waiters"):
            pool.destroy()
        await asyncio.sleep(0.01)
        assert pool.stats().waiters == FIRST_NODES + 3 and not any(task.done() for task in tasks)
        pool.destroy(force=True)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [ValueError] * len(tasks)
        assert fds() == before
        with pytest.raises(ValueError, match="destroyed"):
            await pool.alloc_async()

    run(main())
    if kind == "objects":
        pool.free(held)


@both
@pytest.mark.parametrize("granted", [False, True])
def test_closing_the_arena_ends_all_awaits(kind: str, run: Run, granted: bool) -> None:
    arena = ra.Arena(4 * MIB)
    pool = bare(arena, kind, 1)
    held = [pool.alloc()]

    async def main() -> None:
        before = fds()
        tasks = await in_turn(pool, [pool.alloc_async] * 5)
        if granted:
            pool.free(held.pop())
        if held and kind == "memory":
            with pytest.warns(ResourceWarning, match="live leases"):
                arena.close()
        else:
            arena.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [ra.ArenaClosed] * 5
        assert fds() == before

    run(main())
    held.clear()


@pytest.mark.parametrize("goes", ["pool", "arena"])
def test_pools_and_arenas_that_go_while_loops_in_threads_await_end_them_quietly(goes: str, run: Run) -> None:
    complaints: list[Any] = []

    async def main(pool: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

        async def work() -> None:
            while True:
                async with pool.lease():
                    await asyncio.sleep(0)

        ends = await asyncio.gather(*(work() for _ in range(5)), return_exceptions=True)
        assert {type(end) for end in ends} == {ra.ArenaClosed if goes == "arena" else ValueError}, ends

    for _ in range(some(20, 3)):
        arena = ra.Arena(MIB, max_order=4)
        pool = bare(arena, "objects", 2)
        workers = [Worker(lambda pool=pool: run(main(pool))) for _ in range(2)]
        eventually(lambda pool=pool: pool.stats().gets_wait > 5)
        if goes == "pool":
            pool.destroy(force=True)
        else:
            arena.close()
        for worker in workers:
            worker.result()
        arena.close()
    assert complaints == []


@both
def test_awaiters_without_memory_for_a_node_are_served_too(small: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(small, kind, 1)
    held = [pool.alloc()]
    blocks = eat_everything(small)

    async def main() -> None:
        tasks = [asyncio.create_task(use(pool, me)) for me in range(FIRST_NODES + 7)]
        await until_waiting(pool, FIRST_NODES)
        with pytest.raises(TimeoutError):
            async with pool.lease(timeout=0.02):
                pass
        assert pool.stats().waiters == FIRST_NODES
        tasks.pop().cancel()
        tasks.pop(0).cancel()
        pool.free(held.pop())
        await asyncio.gather(*tasks)

    run(main())
    blocks.clear()
    finish(pool)


# -- elements from elsewhere -----------------------------------------------------------------------------------------


@both
def test_an_element_that_another_thread_frees_wakes_the_loop(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)

    async def main() -> None:
        held = [pool.alloc()]
        (task,) = await in_turn(pool, [lambda: use(pool, 1)])
        await asyncio.to_thread(lambda: pool.free(held.pop()))
        await task

    run(main())
    finish(pool)


def test_two_pools_and_one_loop_have_an_eventfd_each(arena: ra.Arena, run: Run) -> None:
    pools = [bare(arena, kind, 1) for kind in KINDS]

    async def main() -> None:
        before = fds()
        held = [pool.alloc() for pool in pools]
        tasks = [task for pool in pools for task in await in_turn(pool, [lambda pool=pool: use(pool, 1)] * 3)]
        assert fds() == before + 2
        for pool, element in zip(pools, held, strict=True):
            pool.free(element)
        await asyncio.gather(*tasks)
        assert fds() == before

    run(main())
    for pool in pools:
        finish(pool)


@both
def test_a_pool_that_is_only_awaited_makes_progress_by_its_backing(arena: ra.Arena, kind: str, run: Run) -> None:
    """Who waits is served with what the backing allocator has again when somebody asks it."""
    pool = bare(arena, kind, 1)

    async def main() -> None:
        held = [pool.alloc()]
        (task,) = await in_turn(pool, [pool.alloc_async])
        pool.fail_alloc(0)
        assert pool.refill() == 1
        held.append(await task)
        pool.free_bulk(held)

    run(main())
    assert pool.curr_nr == 1
    finish(pool)


@both
def test_threads_with_loops_leave_no_thread_behind(arena: ra.Arena, kind: str, run: Run) -> None:
    pool = bare(arena, kind, 1)
    before = threading.active_count()
    run(use(pool, 3))
    assert threading.active_count() == before
    finish(pool)


# -- children --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_child_of_fork_awaits_in_a_loop_of_its_own(kind: str, loop: str) -> None:
    loop_factory(loop)
    quiet_child(
        f"""
import asyncio, os, threading, time, {loop}
import realalloc as ra
options = dict(size=200) if {kind!r} == 'memory' else dict(alloc_fn=lambda d, g: [], free_fn=id)
arena = ra.Arena('4MiB'); pool = arena.mempool(1, **options); pool.fail_alloc()
held = pool.alloc()
async def use(): pool.free(await pool.alloc_async())
async def in_child():
    one = asyncio.create_task(use()); two = asyncio.create_task(use())
    while pool.stats().waiters < 2: await asyncio.sleep(0)
    pool.free(held)
    await one; await two
def run(coroutine):
    with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner: runner.run(coroutine)
async def many(): await asyncio.gather(*(use() for _ in range(20)))
thread = threading.Thread(target=lambda: run(many())); thread.start()
while pool.stats().waiters < 20: time.sleep(0.001)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert pool.stats().waiters == 0
        run(in_child()); pool.validate(); arena.validate(); pool.destroy(); code = 0
    finally: os._exit(code)
print(os.waitpid(pid, 0)[1], pool.stats().waiters)
pool.free(held); thread.join(); pool.validate(); pool.destroy(); arena.close()
""",
        "-W",
        "ignore::DeprecationWarning",
        expect="0 20",
    )


@both
def test_the_interpreter_ends_although_a_daemons_loop_awaits(kind: str) -> None:
    quiet_child(
        f"""
import asyncio, threading, time
import realalloc as ra
options = dict(size=200) if {kind!r} == 'memory' else dict(alloc_fn=lambda d, g: [], free_fn=id)
arena = ra.Arena('4MiB'); pool = arena.mempool(1, **options); pool.fail_alloc()
held = pool.alloc()
async def main(): await asyncio.gather(*(pool.alloc_async() for _ in range(20)))
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
while pool.stats().waiters < 20: time.sleep(0.001)
print('end')
""",
        "-W",
        "ignore::ResourceWarning",
        expect="end",
        fresh=kind == "memory",
    )
