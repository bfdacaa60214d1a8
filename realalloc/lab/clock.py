"""The processor's cycle counter in jitted code, and what a tick of it is.

Guarantees: ``cycles()`` reads the counter in one instruction, without a system call; on machines that Linux runs on today it
counts at a constant rate, the same on every processor. Differences are ticks; ``ns_per_tick()`` was measured against
``CLOCK_MONOTONIC``. The reading is not ordered against the work beside it: intervals of a few ns are blurred, tails are not.
May not: be used to compare machines.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils

from realalloc.mm.jit import JIT, native

CALIBRATION_NS: Final = 20_000_000
READINGS: Final = 20_000
OFTEN: Final = 10  # one in so many


def _emit_cycles(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    word = ir.IntType(64)
    counter = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), "llvm.readcyclecounter")
    return builder.call(counter, [])


@native(_emit_cycles)
def cycles() -> int:
    """Read the counter; in plain Python the monotonic clock, whose tick is a nanosecond."""
    return time.perf_counter_ns()


@njit(nogil=True)
def _now() -> int:
    return cycles()


@njit(nogil=True)
def _readings(out: Any) -> None:
    last = cycles()
    for k in range(len(out)):
        now = cycles()
        out[k] = now - last
        last = now


@functools.cache
def ns_per_tick() -> float:
    """Return nanoseconds of one tick, measured once in a process for 20 ms."""
    if not JIT:
        return 1.0
    _now()
    begun, first = time.perf_counter_ns(), _now()
    while time.perf_counter_ns() - begun < CALIBRATION_NS:
        pass
    spent, ticks = time.perf_counter_ns() - begun, _now() - first
    return spent / ticks if ticks > 0 else 1.0


@functools.cache
def reading_ns() -> float:
    """Return what one reading of the counter costs, the median of many: it is in every interval that is measured."""
    out = np.zeros(READINGS if JIT else READINGS // 20, np.int64)
    _readings(out)
    _readings(out)
    return float(np.median(out)) * ns_per_tick()


@functools.cache
def resolution_ns() -> float:
    """Return the step that the counter moves by: some processors count many ticks at once, and intervals have such steps.

    The greatest common divisor of the intervals that are seen often; rare ones were interrupted.
    """
    out = np.zeros(READINGS if JIT else READINGS // 20, np.int64)
    _readings(out)
    values, counts = np.unique(out, return_counts=True)
    often = values[(counts * OFTEN >= len(out)) & (values > 0)]
    return float(np.gcd.reduce(often) if len(often) else 1) * ns_per_tick()
