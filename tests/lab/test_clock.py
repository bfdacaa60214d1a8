"""The cycle counter: it compiles, it goes forward, and a tick is what the system's clock says it is."""

from __future__ import annotations

import time

import numba
import numpy as np
import pytest
from support import JIT

from realalloc.lab import clock
from realalloc.lab.clock import cycles, ns_per_tick, reading_ns, resolution_ns


@numba.njit(nogil=True)
def _read(out):
    for k in range(len(out)):
        out[k] = cycles()


@pytest.mark.skipif(not JIT, reason="nothing is compiled without jit")
def test_the_intrinsic_compiles() -> None:
    compiled = numba.njit(lambda: cycles())
    compiled.compile(())
    (code,) = compiled.inspect_asm().values()
    assert isinstance(compiled(), int)
    assert "rdtsc" in code or "cntvct" in code or "mrs" in code  # an instruction, no call into the system


def test_it_goes_forward() -> None:
    out = np.zeros(1000, np.int64)
    _read(out)
    assert (np.diff(out) >= 0).all() and out[-1] > out[0] > 0


def test_a_tick_is_what_the_systems_clock_says() -> None:
    out = np.zeros(1, np.int64)
    _read(out)
    best = np.inf
    for _ in range(5):  # somebody else may have the processor: the least of some is the sleep
        begun = time.perf_counter_ns()
        _read(out)
        first = int(out[0])
        time.sleep(0.02)
        _read(out)
        spent = time.perf_counter_ns() - begun
        told = (int(out[0]) - first) * ns_per_tick()
        best = min(best, abs(told - spent) / spent)
    assert best < 0.05


def test_it_is_measured_once() -> None:
    assert ns_per_tick() == ns_per_tick() > 0
    assert reading_ns() == reading_ns() > 0
    assert clock.ns_per_tick.cache_info().currsize == 1


def test_a_step_is_no_longer_than_a_reading_and_divides_what_is_seen() -> None:
    step = resolution_ns()
    assert 0 < step <= max(reading_ns(), ns_per_tick()) * 1.01
    ticks = step / ns_per_tick()
    assert ticks == pytest.approx(round(ticks)) and round(ticks) >= 1


def test_the_step_is_the_common_divisor_of_what_is_seen_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(out) -> None:  # by 26 ticks at once; one interval was interrupted
        out[:] = np.resize([26, 52, 26, 78], len(out))
        out[0] = 1_000_001

    monkeypatch.setattr(clock, "_readings", counted)
    clock.resolution_ns.cache_clear()
    try:
        assert resolution_ns() == pytest.approx(26 * ns_per_tick())
    finally:
        clock.resolution_ns.cache_clear()
