"""The machine that numbers come from, and whether it is quiet enough to measure anything.

Guarantees: reads, and changes nothing. What a system does not tell is ``unknown``.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from numba import njit

from realalloc.facts import UNKNOWN, text_of, thp_mode, version_of
from realalloc.mm.jit import JIT

CPUINFO = Path("/proc/cpuinfo")
STAT = Path("/proc/stat")
STEAL: Final = 8  # field of the first line of /proc/stat: time that the hypervisor took
SLICES: Final = 200
STEPS: Final = 200_000 if JIT else 1000  # of a slice, dependent multiplications: about 0.2 ms
SPREAD_TOLD: Final = 1.25  # 95 % of the slices within that of the median, else the machine is called noisy


def describe() -> dict[str, str]:
    """Describe processor, system and versions."""
    models = [line.partition(":")[2].strip() for line in text_of(CPUINFO).splitlines() if line.startswith("model name")]
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "libc": libc or UNKNOWN,
        "thp": thp_mode(),
        "python": sys.version.split()[0],
        **{package: version_of(package) for package in ("realalloc", "numba", "numpy")},
    }


@njit(nogil=True)
def _work(steps: int, value: int) -> int:
    for _ in range(steps):
        value = value * 25214903917 + 11
        value &= 0xFFFFFFFFFFFF
    return value


def _steal_ticks() -> int | None:
    fields = text_of(STAT).partition("\n")[0].split()
    return int(fields[STEAL]) if len(fields) > STEAL and fields[STEAL].isdigit() else None


def noise(steps: int = STEPS) -> str | None:
    """Run the same arithmetic again and again; say how uneven it was if that is too much to measure by, else None."""
    _work(1, 1)
    stolen = _steal_ticks()
    spent = np.zeros(SLICES)
    for k in range(SLICES):
        begun = time.perf_counter_ns()
        _work(steps, k)
        spent[k] = time.perf_counter_ns() - begun
    spread = float(np.percentile(spent, 95) / np.median(spent))
    after = _steal_ticks()
    taken = 0 if stolen is None or after is None else after - stolen
    if spread <= SPREAD_TOLD and taken == 0:
        return None
    why = f", and the hypervisor took {taken} ticks away" if taken else ""
    seen = f"noisy machine: the slowest 5 % of the same arithmetic took {spread:.2f} times its median or more{why}"
    return f"{seen}; believe intervals, not medians"
