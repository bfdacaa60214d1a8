"""Size classes: what the kernel's and the fine ones need in memory over a long life of random sizes, and in time.

Resident sets are what psutil says, over what they were before; the first word of each block is written. Times take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

import realalloc as ra
from bench.measure import Result, sample
from bench.pairs import ours_pairs
from realalloc.jit import as_array, kfree, kmalloc
from realalloc.lab.peers import OURS, OURS_FINE
from realalloc.lab.trace.reading import find, load, shipped
from realalloc.lab.trace.resident import Request, ask
from realalloc.lab.trace.walk import walk
from realalloc.mm.kmalloc import ksize
from realalloc.rss import RssSampler, rss

MIB = 1 << 20
BLOCKS = 20_000
CLASSES = ("kernel", "fine")


@numba.njit(nogil=True)
def _live(words: Any, slots: Any, sizes: Any, begin: int, end: int, seed: int) -> int:
    """Replace the block of a random slot, over and over; return the most bytes that were live, < 0 if memory ran out."""
    live = 0
    for k in range(len(slots)):
        live += sizes[k]
    peak = live
    for step in range(begin, end):
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
        k = (seed >> 33) % len(slots)
        size = 16 << ((seed >> 20) % 8)
        size += (seed >> 40) % size
        if slots[k] != 0:
            kfree(words, slots[k])
        live += size - sizes[k]
        peak = max(peak, live)
        slots[k] = kmalloc(words, size)
        sizes[k] = size
        if slots[k] <= 0:
            return -step
        as_array(words, slots[k], 1)[0] = step
    return peak


@numba.njit(nogil=True)
def _free_all(words: Any, slots: Any) -> None:
    for k in range(len(slots)):
        if slots[k] != 0:
            kfree(words, slots[k])


def long_life(*, smoke: bool) -> list[Result]:
    """Random replacement, 10**8 operations: the peak over live bytes and metadata, and growth after the second tenth; with
    ten times as many blocks, too, of either set of size classes.
    """
    few, many = (20_000, 60_000) if smoke else (10**8, 3 * 10**7)
    return [
        _replaced(classes, slots, number)
        for slots, number in ((BLOCKS, few), (10 * BLOCKS, many))
        for classes in CLASSES
    ]


def _replaced(classes: str, blocks: int, number: int) -> Result:
    with ra.Arena("512MiB", classes=classes) as arena:
        slots, sizes = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
        _live(arena.words, slots, sizes, 0, 1, 1)
        before, peaks, lives = rss(), [], []
        for tenth in range(10):
            with RssSampler() as sampler:
                lives.append(
                    _live(arena.words, slots, sizes, tenth * number // 10, (tenth + 1) * number // 10, tenth + 1)
                )
            peaks.append(sampler.peak - before)
        arena.validate()
        metadata = arena.residency().metadata
        usable = sum(int(ksize(arena.words, offset)) for offset in slots.tolist() if offset)
        _free_all(arena.words, slots)
    bound = max(lives) + metadata
    medians = {"RSS at peak": max(peaks) / MIB, "live + metadata": bound / MIB}
    notes = {
        "last tenth / second": peaks[9] / max(1, peaks[1]),
        "peak / (bytes of the size classes + metadata)": max(peaks) / (usable + metadata),
    }
    name = f"replacement of {blocks} blocks, {number} operations, {classes} classes"
    return Result(name, "MiB", medians, "RSS at peak", {"live + metadata": 1.15}, notes)


def class_speed(*, smoke: bool) -> list[Result]:
    """What fine classes cost in time: pairs of sizes that both sets have and have not, and random replacement."""
    number, rounds = (1000, 2) if smoke else (2_000_000, 21)
    arenas = {classes: ra.Arena("256MiB", classes=classes) for classes in CLASSES}
    works: list[tuple[str, int, Callable[[ra.Arena], Callable[[int], object]]]] = [
        ("pair 64 B", number, _pair_of(64)),
        ("pair 3000 B", number, _pair_of(3000)),
        (f"replacement of {BLOCKS} blocks", number // 4, _replacement),
    ]
    results = []
    for name, many, work in works:
        spent = sample({classes: work(arena) for classes, arena in arenas.items()}, many, rounds)
        ratio = statistics.median(a / b for a, b in zip(spent["fine"], spent["kernel"], strict=True))
        medians = {classes: statistics.median(times) for classes, times in spent.items()}
        ratios, most = {"kernel": ratio}, 1.05 if name.startswith("pair") else 1.2
        results.append(Result(f"{name}, by classes", "ns", medians, "fine", {"kernel": most}, ratios=ratios))
    for arena in arenas.values():
        arena.close()
    return results


def recorded(*, smoke: bool) -> list[Result]:
    """Traces that come along, each set in a process of its own: what is resident at the peak over what was live."""
    results = []
    for name in shipped()[: 1 if smoke else None]:
        path = str(find(name))
        trace = load(path)
        live = walk(trace.events, trace.slots).peak_bytes / MIB
        peaks = [ask(Request("replay", trace.name, who, path)).peak_bytes / MIB for who in (OURS, OURS_FINE)]
        medians = {"kernel": peaks[0], "fine": peaks[1], "live": live}
        notes = {"kernel / live": peaks[0] / live}
        results.append(Result(f"RSS, trace {trace.name}, by classes", "MiB", medians, "fine", {"live": 1.2}, notes))
    return results


def _pair_of(size: int) -> Callable[[ra.Arena], Callable[[int], object]]:
    return lambda arena: lambda number: ours_pairs(arena.words, size, number)


def _replacement(arena: ra.Arena) -> Callable[[int], object]:
    slots, sizes = np.zeros(BLOCKS, np.int64), np.zeros(BLOCKS, np.int64)
    _live(arena.words, slots, sizes, 0, 20 * BLOCKS, 1)
    return lambda number: _live(arena.words, slots, sizes, 1, number + 1, 2)
