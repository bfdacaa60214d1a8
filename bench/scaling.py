"""``python -m bench scaling``: how much more two threads do than one, where nothing is shared but the allocator.

Each thread replaces objects of a heap of its own, turn after turn, and goes on until the slowest has had all of its turns: so
the other one is at work in every turn that counts, and neither the start of a thread nor its cold caches are in it. One thread
alone takes its turns on each processor. Times as many operations a second: twice ns with one, over ns with two; of the lowest
turns, as the machine is shared, and of the medians, each side of a ratio from all rounds. The loop without an allocator shows
what the machine gives; the natives stand beside it.
"""

from __future__ import annotations

import functools
import os
import statistics
import time

import numpy as np

import realalloc as ra
from bench.measure import Result
from realalloc.lab import streams
from realalloc.lab.crowd import Workers
from realalloc.lab.loops.kinds import CONTROL_OBJECTS
from realalloc.lab.measure import check, without_collector
from realalloc.lab.natives import Native
from realalloc.lab.peers import HARNESS, OURS, Peer, native, nobody, ours

WANTED = 1.9  # times as many operations a second
PLACES = 10_000  # objects of a thread
SIZES = (16, 1024)  # log-uniform
STREAM = 1 << 17  # replacements, then again from the start


class Heap:
    """What one thread works on."""

    def __init__(self, peer: Peer, thread: int, places: int, turn: int) -> None:
        """Fill nothing yet: its thread does."""
        self.how, self.loops, self.turn = peer.how(thread), peer.loops, turn
        self.blocks = np.zeros(places, np.int64)
        self.slots = streams.slots(places, STREAM, 1 + thread)
        self.sizes = streams.log_uniform(*SIZES, STREAM, 1 + thread)
        self.at = 0

    def go_on(self) -> float:
        """Replace one turn's objects; return ns for each."""
        begin = time.perf_counter_ns()
        check(self.loops.replace(self.how, self.blocks, self.slots, self.sizes, self.at, self.at + self.turn))
        spent = time.perf_counter_ns() - begin
        self.at = (self.at + self.turn) % (STREAM - self.turn + 1)
        return spent / self.turn

    def drain(self) -> int:
        """Free everything."""
        return int(self.loops.drain(self.how, self.blocks) >= 0)


def side_by_side(workers: Workers, heaps: list[Heap], turns: int) -> list[float]:
    """Let all heaps' threads go on until each has had its turns; return ns per operation of the first ``turns`` of each."""
    spent: list[list[float]] = [[] for _ in heaps]

    def life(k: int) -> int:
        heaps[k].go_on()  # warm again
        while min(map(len, spent)) < turns:
            spent[k].append(heaps[k].go_on())
        return 0

    workers.run(*[functools.partial(life, k) for k in range(len(heaps))])
    return [ns for mine in spent for ns in mine[:turns]]


def alone(workers: Workers, heaps: list[Heap], thread: int, turns: int) -> list[float]:
    """Let one heap's thread work, and the others wait."""
    spent: list[float] = []

    def life() -> int:
        heaps[thread].go_on()
        spent.extend(heaps[thread].go_on() for _ in range(turns))
        return 0

    workers.run(*[(lambda: 0) for _ in range(thread)], life)
    return spent


def scaling(found: list[Native], *, smoke: bool) -> list[Result]:
    """Measure realalloc, natives and the loop alone; nothing where there is one processor."""
    if len(os.sched_getaffinity(0)) < 2:
        print("skipped: scaling: one processor")
        return []
    places, turn, turns, rounds = (100, 1000, 2, 1) if smoke else (PLACES, 50_000, 30, 5)
    single: dict[str, list[float]] = {}
    double: dict[str, list[float]] = {}
    with ra.Arena("1GiB") as arena, Workers(2) as workers, without_collector():
        peers = [ours(arena.words), *map(native, found), nobody(CONTROL_OBJECTS)]
        heaps = {peer.name: [Heap(peer, k, places, turn) for k in range(2)] for peer in peers}
        for mine in heaps.values():
            mine[0].go_on()  # compiles
            side_by_side(workers, mine, STREAM // turn)  # fills
        for _ in range(rounds):
            for name, mine in heaps.items():
                for k in range(2):
                    single.setdefault(name, []).extend(alone(workers, mine, k, turns))
                double.setdefault(name, []).extend(side_by_side(workers, mine, turns))
        for mine in heaps.values():
            workers.run(*[heap.drain for heap in mine])
        arena.validate()
    lowest = {name: 2 * min(single[name]) / min(double[name]) for name in single}
    ns = {"1 thread": min(single[OURS]), "2 threads": min(double[OURS])}
    notes = {f"times as many a second ({WANTED} wanted)": lowest.pop(OURS)}
    notes["the same of the medians"] = 2 * statistics.median(single[OURS]) / statistics.median(double[OURS])
    notes |= {name: value for name, value in lowest.items() if name != HARNESS}
    notes[HARNESS] = lowest[HARNESS]
    title = f"replacement {PLACES} x {SIZES[0]}..{SIZES[1]}, private, threads that go on, lowest turn"
    return [Result(title, "ns", ns, "2 threads", {"1 thread": 2 / WANTED}, {k: round(v, 3) for k, v in notes.items()})]
