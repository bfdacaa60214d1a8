"""Who takes part in a row of the native benchmarks, and how a row is run and judged."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import realalloc as ra
from bench.crowds import CORRUPT
from bench.kernels import CONTROL, NATIVE, OURS, control_how
from bench.measure import Result, Turn, sample
from bench.natives import Native

NAME = "realalloc"
HARNESS = "harness alone"
FEW = 64  # objects that stay in the first cache
RESERVE = "1GiB"  # reserving costs nothing; no row comes near it


class Peer(NamedTuple):
    """An allocator: the loops made for it, and what they take as ``how``."""

    name: str
    loops: SimpleNamespace
    how: np.ndarray


class Plan(NamedTuple):
    """What every row needs to know."""

    natives: list[Native]
    only: str
    smoke: bool
    rounds: int

    def wants(self, name: str) -> bool:
        """Say whether a row was asked for."""
        return self.only.lower() in name.lower()

    def count(self, full: int, smoke: int = 2000) -> int:
        """Return how many operations a turn has."""
        return min(full, smoke) if self.smoke else full


@contextlib.contextmanager
def peers(plan: Plan) -> Iterator[list[Peer]]:
    """Give ours, in a fresh arena, and all natives; afterwards nothing may be left and every structure must be sound."""
    with ra.Arena(RESERVE) as arena:
        natives = [Peer(n.name, NATIVE, np.array([n.alloc, n.free], np.int64)) for n in plan.natives]
        yield [Peer(NAME, OURS, arena.words), *natives]
        arena.validate()
        if arena.stats().live_objects:
            raise AssertionError("a workload left objects behind")


def check(result: int) -> int:
    """Return a checksum; raise where an allocation failed, as a fast failure is no result, or where contents had changed."""
    if result == -1:
        raise MemoryError("an allocation of a workload failed")
    if result == CORRUPT:
        raise AssertionError("a workload did not find what it had written")
    return result


def ratios(samples: dict[str, list[float]]) -> dict[str, float]:
    """Return ours / native, by rounds: a processor that changes its speed between rounds changes it for both."""
    return {
        who: statistics.median(a / b for a, b in zip(samples[NAME], spent, strict=True))
        for who, spent in samples.items()
        if who != NAME
    }


def judged(name: str, samples: dict[str, list[float]], most: float | None) -> Result:
    """Make the row; the target speaks of the best native."""
    medians = {who: statistics.median(spent) for who, spent in samples.items()}
    result = Result(name, "ns", medians, NAME, {}, ratios=ratios(samples))
    peer = best(result)
    if peer and most:
        result.targets[peer] = most
    return result


def best(result: Result) -> str | None:
    """Return the name of the fastest native."""
    return max(result.ratios, key=result.ratios.__getitem__, default=None)


def row(
    plan: Plan,
    name: str,
    most: float | None,
    number: int,
    make: Callable[..., Turn],
    given: tuple[Any, ...],
    *,
    harness: bool = True,
) -> Result:
    """Run one row: every peer's turn is ``make(peer, *given)``. Note what the loop costs without an allocator."""
    with peers(plan) as everyone:
        nobody = [Peer(HARNESS, CONTROL, control_how(objects=FEW))] if harness else []
        turns = {peer.name: make(peer, *given) for peer in [*everyone, *nobody]}
        samples = sample(turns, number, plan.rounds, shuffled=True)
    alone = samples.pop(HARNESS, None)
    result = judged(name, samples, most)
    if alone:
        result.notes[HARNESS] = statistics.median(alone)
    return result
