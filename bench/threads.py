"""Two threads, without the GIL: objects that change hands, workers that end and are replaced, private work.

Time is that of the wall over the pairs of one thread: where nothing is shared, two threads show the same number as one.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench import streams
from bench.kernels import BATCH, CONTROL, LINE, RING, STREAM, TABLE, control_how
from bench.measure import Result, Turn, sample
from bench.peers import Peer, Plan, check, judged, peers, row
from bench.workloads import GLIBC_THREAD, replacer

CONTROL_NAME = "channel only"
LEAST = 1.0  # ns: where the channel hides the work, nothing is left of it but noise
MARKS = 2 * LINE
GENERATIONS = 4
LARSON_SLOTS = 5000


def pin(cpu: int) -> None:
    """Keep this thread on a processor, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {cpu})


class Workers:
    """Two threads that stay, one on each processor, so that an allocator's threads are warm in every turn but the first."""

    def __init__(self) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self.pools = [ThreadPoolExecutor(1, initializer=pin, initargs=(cpus[k % len(cpus)],)) for k in range(2)]

    def run(self, *jobs: Callable[[], object]) -> None:
        """Run a job in each thread; wait for both."""
        waiting = [pool.submit(job) for pool, job in zip(self.pools, jobs, strict=False)]
        for future in waiting:
            future.result()

    def close(self) -> None:
        """End the threads."""
        for pool in self.pools:
            pool.shutdown()


def _produce(p: Peer, workers: Workers, sizes: np.ndarray) -> Turn:
    ring = np.zeros(RING, np.int64)
    marks = np.zeros(MARKS, np.int64)

    def run(number: int) -> None:
        workers.run(
            lambda: check(p.loops.produce(p.how, sizes, ring, marks, number)),
            lambda: check(p.loops.consume(p.how, ring, marks, number)),
        )

    run(0)  # compiles: a loop that waits for one that is being compiled would spin
    return Turn(run, prepare=lambda: marks.fill(0))


def _swap(p: Peer, workers: Workers, sizes: np.ndarray) -> Turn:
    buffers = np.zeros(4 * BATCH, np.int64)
    marks = np.zeros(MARKS, np.int64)
    hows = _hows(p)

    def run(number: int) -> None:
        rounds = number // BATCH
        workers.run(
            *[lambda me=me: check(p.loops.swap(hows[me], me, sizes, buffers, marks, rounds)) for me in range(2)]
        )

    run(0)
    return Turn(run, prepare=lambda: marks.fill(0))


def _share(p: Peer, workers: Workers, slots: list[np.ndarray], sizes: list[np.ndarray]) -> Turn:
    table = np.zeros(TABLE, np.int64)
    hows = _hows(p)

    def run(number: int) -> None:
        jobs = [lambda me=me: check(p.loops.share(hows[me], table, slots[me], sizes[me], number)) for me in range(2)]
        workers.run(*jobs)

    run(0)
    return Turn(run, close=lambda: p.loops.drain(p.how, table))


def _hows(p: Peer) -> list[np.ndarray]:
    """Give each thread its own ``how`` where it counts there."""
    return [p.how, control_how(1)] if p.loops is CONTROL else [p.how, p.how]


def crossing(plan: Plan, workers: Workers, name: str, number: int, make: Callable[..., Turn], given: tuple) -> Result:
    """Run a row of objects that change hands; what the hand-over costs by itself is subtracted, round by round."""
    with peers(plan) as everyone:
        turns = {p.name: make(p, workers, *given) for p in [*everyone, Peer(CONTROL_NAME, CONTROL, control_how())]}
        samples = sample(turns, number, plan.rounds, shuffled=True)
    channel = samples.pop(CONTROL_NAME)
    left = {who: [max(a - b, LEAST) for a, b in zip(spent, channel, strict=True)] for who, spent in samples.items()}
    result = judged(name, left, 1.2)
    result.notes[CONTROL_NAME] = statistics.median(channel)
    return result


def changing_hands(plan: Plan, workers: Workers) -> Iterator[Result]:
    """Producer and consumer, batches swapped, a table of shared slots."""
    same = np.full(STREAM, 64, np.int32)
    number = plan.count(150_016, 2048)
    for name, sizes in (("producer/consumer 64", same), ("producer/consumer mix", streams.mix(STREAM))):
        if plan.wants(name):
            yield crossing(plan, workers, name, number // 32 * 32, _produce, (sizes,))
    for name, sizes in (("swap 1000 x 64", same), ("swap 1000 x mix", streams.mix(STREAM))):
        if plan.wants(name):
            yield crossing(plan, workers, name, plan.count(100_000), _swap, (sizes,))
    name = "shared 4096 slots x 16..511"
    if plan.wants(name):
        number = plan.count(100_000)
        slots = [streams.slots(TABLE, number, seed) for seed in (11, 12)]
        sizes = [streams.uniform(16, 512, number, seed) for seed in (13, 14)]
        yield crossing(plan, workers, name, number, _share, (slots, sizes))


def larson_turn(p: Peer, threads: int, slots: np.ndarray, sizes: np.ndarray) -> Turn:
    """Let threads that live for one generation replace the objects of their predecessors; the first ones are this thread's."""
    blocks = [np.zeros(LARSON_SLOTS, np.int64) for _ in range(threads)]
    everything = np.zeros(threads * LARSON_SLOTS, np.int64)
    every = np.arange(len(everything), dtype=np.int32)
    failures: list[BaseException] = []
    check(p.loops.replace(p.how, blocks[0], slots, sizes, 0, 0))  # compiles

    def build() -> None:
        check(p.loops.replace(p.how, everything, every, np.resize(sizes, len(every)), 0, len(every)))
        mixed = np.random.default_rng(15).permutation(everything)
        for k in range(threads):
            blocks[k][:] = mixed[k * LARSON_SLOTS : (k + 1) * LARSON_SLOTS]

    def generation(k: int, begin: int, end: int) -> None:
        try:
            check(p.loops.replace(p.how, blocks[k], slots, sizes, begin, end))
        except BaseException as error:
            failures.append(error)

    def run(number: int) -> None:
        each = number // GENERATIONS
        for turn in range(GENERATIONS):
            alive = [
                threading.Thread(target=generation, args=(k, turn * each, (turn + 1) * each)) for k in range(threads)
            ]
            for thread in alive:
                thread.start()
            for thread in alive:
                thread.join()
        if failures:
            raise failures[0]

    def finish() -> None:
        for part in blocks:
            p.loops.drain(p.how, part)
        everything.fill(0)

    return Turn(run, build, finish)


def larson(plan: Plan) -> Iterator[Result]:
    """Workers that end: what they allocated is freed by their successors."""
    for threads in (1, 2):
        name = f"larson, {threads} thread{'s'[: threads - 1]}"
        if plan.wants(name):
            number = plan.count(300_000)
            slots = streams.slots(LARSON_SLOTS, number)
            sizes = streams.uniform(8, 1000, number)
            yield row(plan, name, 1.0, number, larson_turn, (threads, slots, sizes), harness=False)


def _private(p: Peer, workers: Workers, threads: int, places: int, slots: np.ndarray, sizes: np.ndarray) -> Turn:
    mine = [replacer(p, places, slots, sizes) for _ in range(threads)]
    return Turn(
        lambda n: workers.run(*[lambda turn=turn: turn.run(n) for turn in mine]),
        close=lambda: [turn.close() for turn in mine],
    )


def private(plan: Plan, workers: Workers) -> Iterator[Result]:
    """Replace random objects of one's own."""
    places, number = plan.count(10_000), plan.count(300_000)
    for threads in (1, 2):
        name = f"private random 10k x 16..1024, {threads} thread{'s'[: threads - 1]}"
        if plan.wants(name):
            given = (workers, threads, places, streams.slots(places, number), streams.log_uniform(16, 1024, number))
            yield row(plan, name, None, number, _private, given, harness=False)
    name = f"{GLIBC_THREAD}, 2 threads"
    if plan.wants(name):
        given = (workers, 2, 1024, streams.slots(1024, number), streams.inverse_square(4, 32768, number))
        yield row(plan, name, 1.0, number, _private, given, harness=False)


def two_threads(plan: Plan) -> Iterator[Result]:
    """Run all rows of this file, where there are two processors."""
    if len(os.sched_getaffinity(0)) < 2:
        print("two threads skipped: one processor")
        return
    workers = Workers()
    try:
        yield from changing_hands(plan, workers)
        yield from larson(plan)
        yield from private(plan, workers)
    finally:
        workers.close()
