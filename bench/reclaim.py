"""Memory that goes back: what stays resident after a trim, after decay, over a long life, under a limit; and what it costs.

Resident sets are what psutil says, over what they were before anything was allocated; every block is touched. Each native
allocator that is there does the same through its malloc and free. Times take turns, ratios are within a run.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

import realalloc as ra
from bench.classes import class_speed, long_life, recorded
from bench.measure import Result, sample
from realalloc.jit import as_array, kfree, kmalloc
from realalloc.lab import streams
from realalloc.lab.measure import Case
from realalloc.lab.natives import Native, find_natives
from realalloc.lab.peers import ours
from realalloc.lab.workloads import jitted_cases
from realalloc.lab.workloads.scope import Scope
from realalloc.memory import Memory, anonymous
from realalloc.rss import rss, trim_heap

MIB = 1 << 20
OURS = "realalloc"
HALF_MIB = 34.0  # at most, of 64 MiB of which every second block was freed
LAST_MIB = 1.5  # at most, when all but the last block were freed
DECAY_S = 1.0
PAIR_S = 0.001  # a pair a millisecond, while memory decays
OBJECTS = 400_000


class Blocks:
    """Blocks of one allocator, touched when they are taken: of the arena by jitted verbs, of natives by their functions."""

    def __init__(self, name: str, arena: ra.Arena | None, native: Native | None) -> None:
        """Remember whose they are."""
        self.name, self._arena = name, arena
        if native is not None:
            self._malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(native.alloc)
            self._free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.free)

    def take(self, size: int) -> int:
        """Allocate and touch."""
        if self._arena is not None:
            offset = int(_take(self._arena.words, size))
            if offset <= 0:
                raise MemoryError
            return offset
        address = self._malloc(size)
        if not address:
            raise MemoryError
        ctypes.memset(address, 1, size)
        return int(address)

    def give(self, block: int) -> None:
        """Free."""
        if self._arena is not None:
            _give(self._arena.words, block)
        else:
            self._free(block)

    def trim(self) -> None:
        """Ask for memory to go back, where there is a way to ask."""
        if self._arena is not None:
            self._arena.trim()
        elif self.name == "glibc":
            trim_heap()


@numba.njit(nogil=True)
def _take(words: Any, size: int) -> int:
    offset = kmalloc(words, size)
    if offset > 0:
        as_array(words, offset, (size + 7) // 8)[:] = 1
    return offset


@numba.njit(nogil=True)
def _give(words: Any, offset: int) -> int:
    return kfree(words, offset)


@numba.njit(nogil=True)
def _pairs(words: Any, size: int, number: int) -> int:
    for _ in range(number):
        kfree(words, kmalloc(words, size))
    return number


def _contestants(size: str, decay: float | None) -> list[tuple[Blocks, ra.Arena | None]]:
    arena = ra.Arena(size, decay=decay)
    found = find_natives()[0]
    return [(Blocks(OURS, arena, None), arena), *((Blocks(native.name, None, native), None) for native in found)]


def trimmed(*, smoke: bool) -> list[Result]:
    """64 MiB live, every second block freed, trim; then all but the last freed, trim."""
    total = 4 * MIB if smoke else 64 * MIB
    results = []
    for size in (4096, 65536, MIB):
        halves: dict[str, float] = {}
        lasts: dict[str, float] = {}
        for blocks, arena in _contestants("256MiB", None):
            blocks.give(blocks.take(size))  # machine code is loaded
            blocks.trim()
            before = rss()
            held = [blocks.take(size) for _ in range(total // size)]
            for block in held[::2]:
                blocks.give(block)
            blocks.trim()
            halves[blocks.name] = (rss() - before) / MIB
            for block in held[1:-1:2]:
                blocks.give(block)
            blocks.trim()
            lasts[blocks.name] = (rss() - before) / MIB
            blocks.give(held[-1])
            if arena is not None:
                arena.close()
        name = f"{total // MIB} MiB live in blocks of {size // 1024} KiB"
        results.append(_bounded(f"{name}, half freed, trim", halves, HALF_MIB))
        results.append(_bounded(f"{name}, all but the last freed, trim", lasts, LAST_MIB))
    return results


def _bounded(name: str, amounts: dict[str, float], most: float) -> Result:
    """Make a row in MiB whose target is an amount, not a ratio."""
    return Result(name, "MiB", {**amounts, "target": most}, OURS, {"target": 1.0})


def decayed(*, smoke: bool) -> list[Result]:
    """Fill with small objects, free them all, and go on with one pair a millisecond; nobody calls trim."""
    count = 4000 if smoke else OBJECTS
    sizes = streams.log_uniform(16, 4096, count, 1).tolist()
    moments = (("at once", 0.0), ("after the decay time", DECAY_S), ("after twice that", 2 * DECAY_S))
    rows: dict[str, dict[str, float]] = {label: {} for label, _ in moments}
    live: dict[str, float] = {}
    for blocks, arena in _contestants("1GiB", DECAY_S):
        blocks.give(blocks.take(64))
        blocks.trim()
        before = rss()
        held = [blocks.take(size) for size in sizes]
        live[blocks.name] = (rss() - before) / MIB
        random.Random(2).shuffle(held)
        for block in held:
            blocks.give(block)
        held.clear()
        freed = time.monotonic()
        for label, moment in moments:
            while time.monotonic() < freed + (0.1 if smoke else 1.1) * moment:
                blocks.give(blocks.take(64))
                time.sleep(PAIR_S)
            rows[label][blocks.name] = (rss() - before) / MIB
        if arena is not None:
            arena.close()
        trim_heap()
    most = {"after the decay time": 30.0, "after twice that": 12.0}
    results = [Result(f"{count} objects live", "MiB", live, OURS, {})]
    return results + [
        _bounded(f"all {count} freed, {label}", amounts, most[label])
        if label in most
        else Result(f"all {count} freed, {label}", "MiB", amounts, OURS, {})
        for label, amounts in rows.items()
    ]


def trim_speed(*, smoke: bool) -> list[Result]:
    """trim() of free memory in runs of 2 MiB, against one madvise over as many bytes."""
    total = (8 if smoke else 1024) * MIB
    ratios, ours, peer = [], [], []
    for _ in range(1 if smoke else 5):
        with ra.Arena(total + 64 * MIB, decay=None, huge_pages=False) as arena:
            held = [arena.alloc_pages(9) for _ in range(total // (2 * MIB))]
            for pages in held:
                np.frombuffer(pages.view, np.uint8)[::4096] = 1
            del pages
            held.clear()
            begin = time.perf_counter_ns()
            gone = arena.trim()
            ours.append(time.perf_counter_ns() - begin)
            assert gone >= total
        range_ = Memory(total + (2 << 20), 2 << 20, total)
        range_.advise_huge(0, total, wanted=False)
        range_.words[: total // 8 : 512] = 1
        begin = time.perf_counter_ns()
        range_.purge(0, total)
        peer.append(time.perf_counter_ns() - begin)
        ratios.append(ours[-1] / peer[-1])
    medians = {"trim()": statistics.median(ours) / 1e6, "one madvise": statistics.median(peer) / 1e6}
    ratio = {"one madvise": statistics.median(ratios)}
    return [Result(f"{total // MIB} MiB free", "ms", medians, "trim()", {"one madvise": 1.2}, ratios=ratio)]


def limited(*, smoke: bool) -> list[Result]:
    """Four threads under a limit, the resident set seen a hundred times a second: how far it went over."""
    limit, largest = 64 * MIB, MIB
    with ra.Arena("512MiB", limit=limit, decay=0.05) as arena:
        np.frombuffer(arena.kmalloc(MIB), np.uint8)[:] = 1
        arena.trim()
        stop = threading.Event()

        def work(seed: int) -> None:
            rng = random.Random(seed)
            held: list[memoryview] = []
            while not stop.is_set():
                try:
                    held.append(arena.kmalloc(rng.choice((100, 4000, 50_000, largest))))
                    np.frombuffer(held[-1], np.uint8)[::4096] = 1
                except ra.OutOfMemory:
                    del held[: len(held) // 2 + 1]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        before, over, seen = rss(), 0, 0
        for thread in threads:
            thread.start()
        end = time.monotonic() + (0.3 if smoke else 10)
        while time.monotonic() < end:
            time.sleep(0.01)
            mine = arena.residency()
            seen = max(seen, mine.pages + mine.window)
            over = max(over, rss() - before - limit)
        stop.set()
        for thread in threads:
            thread.join()
        arena.validate()
    medians = {
        "most resident (mincore)": seen / MIB,
        "the limit": limit / MIB,
        "a block over it": (limit + largest) / MIB,
    }
    notes = {"psutil, MiB over the limit, the program's own growth included": over / MIB}
    return [Result("4 threads, 10 s", "MiB", medians, "most resident (mincore)", {"the limit": 1.0}, notes)]


def cost(*, smoke: bool) -> list[Result]:
    """What decay costs: pairs in one jitted loop, and bursts that come and go, with it and without."""
    number = 1000 if smoke else 2_000_000
    rounds = 2 if smoke else 21
    with ra.Arena("256MiB", decay=10) as on, ra.Arena("256MiB", decay=None) as off:
        arenas = {"decay=10": on, "decay=None": off}
        results = []
        for name, work in (
            ("pair 64 B", _pair_of(64)),
            ("pair 256 KiB", _pair_of(256 << 10)),
            ("burst of 32 MiB", _burst),
        ):
            turns = {who: work(arena) for who, arena in arenas.items()}
            many = number if name.startswith("pair") else max(1, number // 100_000)
            spent = sample(turns, many, rounds)
            ratio = statistics.median(a / b for a, b in zip(spent["decay=10"], spent["decay=None"], strict=True))
            medians = {who: statistics.median(times) for who, times in spent.items()}
            most = 1.02 if name.startswith("pair") else 1.05
            results.append(
                Result(
                    f"cost of decay, {name}",
                    "ns",
                    medians,
                    "decay=10",
                    {"decay=None": most},
                    ratios={"decay=None": ratio},
                )
            )
    return results


def _pair_of(size: int) -> Callable[[ra.Arena], Callable[[int], object]]:
    return lambda arena: lambda number: _pairs(arena.words, size, number)


def _burst(arena: ra.Arena) -> Callable[[int], object]:
    def run(number: int) -> None:
        for _ in range(number):
            held = [int(_take(arena.words, 100_000)) for _ in range(320)]
            for offset in held:
                _give(arena.words, offset)

    return run


def stressed(*, smoke: bool) -> list[Result]:
    """What decay costs mstress: threads that allocate, exchange and free. Time of processors, kswapd's included; each turn
    has an arena of its own, since what decays after a turn would be paid for by the next.
    """
    decays: dict[str, float | None] = {"decay=None": None, "decay=10": 10, "decay=0.1": 0.1}
    results = []
    for case in jitted_cases(Scope(0.02 if smoke else 1.0, 2, 1), {"mstress"}):
        number = case.number if smoke else 10_000_000
        spent: dict[str, list[float]] = {who: [] for who in decays}
        for turn in range(2 if smoke else 11):
            for who in random.Random(turn).sample(sorted(decays), len(decays)):
                spent[who].append(_mstress(case, decays[who], number))
        medians = {who: statistics.median(times) for who, times in spent.items()}
        for who in ("decay=10", "decay=0.1"):
            ratio = statistics.median(a / b for a, b in zip(spent[who], spent["decay=None"], strict=True))
            row = {name: medians[name] for name in (who, "decay=None")}
            name = f"cost of {who}, mstress, {case.case}"
            results.append(Result(name, "ns", row, who, {"decay=None": 1.05}, ratios={"decay=None": ratio}))
    return results


def _mstress(case: Case, decay: float | None, number: int) -> float:
    with ra.Arena("1GiB", decay=decay) as arena:
        turn = case.make(ours(arena.words))
        begin = time.process_time_ns()
        turn.run(number)
        spent = time.process_time_ns() - begin
        turn.close()
    return spent / number


def reclaim(*, smoke: bool) -> list[Result]:
    """Run all parts."""
    anonymous(4096).close()
    parts = (trimmed, decayed, long_life, class_speed, recorded, trim_speed, limited, cost, stressed)
    return [result for part in parts for result in part(smoke=smoke)]
