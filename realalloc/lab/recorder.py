"""Times of single operations, taken inside jitted loops: two readings of the cycle counter around every second operation.

An interval goes to a short buffer first, which is emptied into histograms when it is full: what an operation pays beside the
readings is one store. Which operations are timed changes sides each time, so that no pattern of a workload can hide in it.
Layout of a recorder, int64 words: header, buffer of intervals (interval * KINDS + kind), one histogram a kind.
Invariant: intervals in the buffer = words[COUNT] < ROOM whenever no operation is running.
May not: allocate, or be shared by two threads.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from realalloc.lab import histogram
from realalloc.lab.clock import cycles, ns_per_tick, reading_ns
from realalloc.lab.histogram import Counts
from realalloc.lab.latencies import Latency

ALLOC, FREE, RESPONSE, REALLOC = range(4)
KIND_NAMES: Final = ("alloc", "free", "response", "realloc")
KINDS: Final = len(KIND_NAMES)  # a power of two: shifts instead of divisions
COUNT, SIDE = 0, 1
TURNS: Final = 2  # one a kind: operations so far
HEADER: Final = 8
ROOM: Final = 1024  # intervals: 8 KiB
HISTOGRAMS: Final = HEADER + ROOM
WORDS: Final = HISTOGRAMS + len(KIND_NAMES) * histogram.BUCKETS
EVERY: Final = 2  # operations, of which one is timed


def make() -> Counts:
    """Return a recorder for one thread."""
    return np.zeros(WORDS, np.int64)


@njit(nogil=True, forceinline=True)
def begin(recorder: Counts, kind: int) -> int:
    """Say that an operation begins: the counter, or 0 if this one is not timed."""
    turn = recorder[TURNS + kind]
    recorder[TURNS + kind] = turn + 1
    return cycles() if (turn & 1) == recorder[SIDE] else 0


@njit(nogil=True, forceinline=True)
def end(recorder: Counts, kind: int, begun: int) -> None:
    """Say that it is over."""
    if begun != 0:
        note(recorder, kind, cycles() - begun)


@njit(nogil=True, forceinline=True)
def note(recorder: Counts, kind: int, ticks: int) -> None:
    """Record an interval."""
    at = recorder[COUNT]
    recorder[HEADER + at] = ticks * KINDS + kind
    recorder[COUNT] = at + 1
    if at + 1 == ROOM:
        settle(recorder)


@njit(nogil=True)
def settle(recorder: Counts) -> None:
    """Empty the buffer into the histograms."""
    for k in range(recorder[COUNT]):
        noted = recorder[HEADER + k]
        histogram.count(recorder, HISTOGRAMS + (noted & (KINDS - 1)) * histogram.BUCKETS, noted >> 2)
    recorder[COUNT] = 0
    recorder[SIDE] ^= 1


def latencies(recorders: list[Counts]) -> tuple[Latency, ...]:
    """Return what was recorded by several threads, one record for each kind that was."""
    for recorder in recorders:
        settle(recorder)
    found: list[Latency] = []
    for kind, name in enumerate(KIND_NAMES):
        begin_at = HISTOGRAMS + kind * histogram.BUCKETS
        parts: Any = [recorder[begin_at : begin_at + histogram.BUCKETS] for recorder in recorders]
        ticks, counts = histogram.filled(np.sum([histogram.make(), *parts], axis=0))
        if len(ticks):
            buckets = zip((ticks * ns_per_tick()).tolist(), counts.tolist(), strict=True)
            every = 1 if kind == RESPONSE else EVERY
            found.append(Latency(name, tuple(buckets), reading_ns(), every))
    return tuple(found)
