"""Walk over the events of a trace once: do they make sense, how much is live when, how long do blocks live.

Guarantee: whatever the events say, nothing outside the arrays is touched, if slots are below ``slots``.
Invariant at every event: live bytes = sum of ``held`` over the slots that are held.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from realalloc.lab.trace.format import FREE, REALLOC, Events
from realalloc.mm.jitcache import in_cache

Numbers = npt.NDArray[Any]
POWERS: Final = 64
ALREADY_LIVE, NOT_LIVE, NEGATIVE = 1, 2, 3
MEANINGS: Final = {
    ALREADY_LIVE: "allocates into a slot that is taken",
    NOT_LIVE: "frees or reallocates a slot that is empty",
    NEGATIVE: "has a size below zero",
}
LIVE, PEAK, PEAK_AT, LIVE_BLOCKS, PEAK_BLOCKS, REMOTE, PROBLEM, WHERE = range(8)


class Problem(NamedTuple):
    """What cannot have happened."""

    problem: int
    event: int


class Walked(NamedTuple):
    """What was seen. ``lifetimes_ns[k]``: blocks that were freed and lived 2**(k-1) to 2**k - 1 ns (0: none at all)."""

    status: Problem | None
    peak_bytes: int
    peak_at: int  # event
    peak_blocks: int
    left_bytes: int
    left_blocks: int
    remote_frees: int  # by another thread than the one that allocated
    lifetimes_ns: Numbers
    lifetimes_events: Numbers


def cached_njit(func: Any) -> Any:
    """Jit a function whose machine code is kept on disk; what it calls must be in the same file."""
    return in_cache(lambda: numba.njit(cache=True, nogil=True)(func))


@cached_njit
def _power(value: int) -> int:
    power = 0
    while value > 0:
        value >>= 1
        power += 1
    return power


@cached_njit
def _walk(
    ops: Numbers,
    threads: Numbers,
    slots: Numbers,
    sizes: Numbers,
    times: Numbers,
    held: Numbers,
    by: Numbers,
    born: Numbers,
    spans: Numbers,
    ages: Numbers,
    out: Numbers,
) -> None:
    for k in range(len(ops)):
        op, slot, size = ops[k], slots[k], sizes[k]
        taken = held[slot] >= 0
        if size < 0:
            out[PROBLEM] = NEGATIVE
        elif op == FREE or op == REALLOC:
            if not taken:
                out[PROBLEM] = NOT_LIVE
        elif taken:
            out[PROBLEM] = ALREADY_LIVE
        if out[PROBLEM] != 0:
            out[WHERE] = k
            return
        if taken:
            out[LIVE] -= held[slot]
        if op == FREE:
            held[slot] = -1
            out[LIVE_BLOCKS] -= 1
            if threads[k] != by[slot]:
                out[REMOTE] += 1
            spans[_power(int(times[k] - times[born[slot]]))] += 1
            ages[_power(int(k - born[slot]))] += 1
            continue
        if not taken:
            out[LIVE_BLOCKS] += 1
            by[slot], born[slot] = threads[k], k
        held[slot] = size
        out[LIVE] += size
        if out[LIVE] > out[PEAK]:
            out[PEAK], out[PEAK_AT] = out[LIVE], k
        out[PEAK_BLOCKS] = max(out[PEAK_BLOCKS], out[LIVE_BLOCKS])


def walk(events: Events, slots: int) -> Walked:
    """Walk; ``status`` is None if all is well, else the walk ended there."""
    out = np.zeros(8, np.int64)
    spans, ages = np.zeros(POWERS, np.int64), np.zeros(POWERS, np.int64)
    columns = [
        np.ascontiguousarray(events[name]).astype(np.int64) for name in ("op", "thread", "slot", "size", "time_ns")
    ]
    held = np.full(slots, -1, np.int64)
    _walk(*columns, held, np.zeros(slots, np.int64), np.zeros(slots, np.int64), spans, ages, out)
    live, peak, at, blocks, peak_blocks, remote, problem, where = out.tolist()
    status = Problem(problem, where) if problem else None
    return Walked(status, peak, at, peak_blocks, live, blocks, remote, spans, ages)
