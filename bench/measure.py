"""Interleaved repetitions, medians, ratios: the machine is shared and noisy, so peers take turns within every round."""

from __future__ import annotations

import gc
import json
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Result:
    """One row: median nanoseconds of every contestant, and the ratio that the target speaks of."""

    name: str
    unit: str
    medians: dict[str, float]
    ours: str
    targets: dict[str, float]  # peer -> ours / peer at most
    notes: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)  # medians of ours / peer within a round, where known

    def ratio(self, peer: str) -> float:
        """Return ours / peer."""
        if peer in self.ratios:
            return self.ratios[peer]
        return self.medians[self.ours] / self.medians[peer]

    def lines(self) -> list[str]:
        """Format for people."""
        out = [f"{self.name}"]
        out += [f"    {who:<34} {value:12.1f} {self.unit}" for who, value in self.medians.items()]
        for peer, most in self.targets.items():
            got = self.ratio(peer)
            out.append(f"    {self.ours} / {peer} = {got:.3f} (target {most:g}: {'met' if got <= most else 'MISSED'})")
        out += [f"    {name}: {value:g}" for name, value in self.notes.items()]
        return out


def _nothing() -> None:
    """Do nothing."""


@dataclass
class Turn:
    """A contestant with work off the clock: before and after every turn, and after the last."""

    run: Callable[[int], object]
    prepare: Callable[[], object] = _nothing
    teardown: Callable[[], object] = _nothing
    close: Callable[[], object] = _nothing


def sample(
    contestants: dict[str, Callable[[int], object] | Turn], number: int, rounds: int, *, shuffled: bool = False
) -> dict[str, list[float]]:
    """Run every contestant once a round, ``number`` operations each; return ns per operation of every round.

    Shuffled: in another order each round, as who runs after whom matters where working sets are large.
    """
    turns = {name: run if isinstance(run, Turn) else Turn(run) for name, run in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns)
    dice = random.Random(1)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds + 1):
            if shuffled:
                dice.shuffle(order)
            for name in order:
                turn = turns[name]
                turn.prepare()
                begin = time.perf_counter_ns()
                turn.run(number)
                spent = (time.perf_counter_ns() - begin) / number
                turn.teardown()
                if round_:  # the first round warms up
                    samples[name].append(spent)
        for turn in turns.values():
            turn.close()
    finally:
        if enabled:
            gc.enable()
    return samples


def interleave(
    contestants: dict[str, Callable[[int], object] | Turn], number: int, rounds: int, *, shuffled: bool = False
) -> dict[str, float]:
    """Run every contestant once a round; return median ns per operation."""
    samples = sample(contestants, number, rounds, shuffled=shuffled)
    return {name: statistics.median(values) for name, values in samples.items()}


def faults() -> int:
    """Return minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def machine() -> dict[str, str]:
    """Describe where the numbers come from."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": model,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "thp": thp.read_text().strip() if thp.exists() else "none",
    }


def report(results: list[Result], *, judge: bool) -> None:
    """Print results, with the targets unless the sizes mean nothing."""
    for result in results:
        if not judge:
            result.targets = {}
        print("\n".join(result.lines()))


def save(results: list[Result], path: str) -> None:
    """Write results and the machine as JSON."""
    rows = [asdict(result) for result in results]
    Path(path).write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")
