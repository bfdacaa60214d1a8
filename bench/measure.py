"""Interleaved repetitions, medians, ratios: the machine is shared and noisy, so peers take turns within every round."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from realalloc.lab import machine, measure
from realalloc.lab.measure import Turn


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


T = TypeVar("T")
Contestants = Mapping[str, Callable[[int], object] | Turn]


def sample(contestants: Contestants, number: int, rounds: int) -> dict[str, list[float]]:
    """Run every contestant once a round, in another order each; return ns per operation of every round."""
    turns = {who: run if isinstance(run, Turn) else Turn(_counted(run)) for who, run in contestants.items()}
    return measure.sample(turns, number, rounds)


def interleave(contestants: Contestants, number: int, rounds: int) -> dict[str, float]:
    """Run every contestant once a round; return median ns per operation."""
    return {who: statistics.median(spent) for who, spent in sample(contestants, number, rounds).items()}


def _counted(run: Callable[[int], object]) -> Callable[[int], int]:
    def one(number: int) -> int:
        run(number)
        return number

    return one


def in_turn(everybody: list[T], k: int) -> list[T]:
    """Return who takes part in the order of round ``k``: each is the first one in turn."""
    first = k % len(everybody)
    return everybody[first:] + everybody[:first]


def within_rounds(spent: Mapping[str, list[float]], ours: str) -> dict[str, float]:
    """Return ours / theirs for each other contestant: medians of the ratios within a round."""
    return {
        who: statistics.median(mine / theirs for mine, theirs in zip(spent[ours], values, strict=True))
        for who, values in spent.items()
        if who != ours
    }


def faults() -> int:
    """Return minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def report(results: list[Result], *, judge: bool) -> None:
    """Print results, with the targets unless the sizes mean nothing."""
    for result in results:
        if not judge:
            result.targets = {}
        print("\n".join(result.lines()), flush=True)


def save(results: list[Result], path: str) -> None:
    """Write results and the machine as JSON."""
    rows = [asdict(result) for result in results]
    Path(path).write_text(json.dumps({"machine": machine.describe(), "results": rows}, indent=1) + "\n")


class Rows(Protocol):
    """What runs the rows of a benchmark that have ``only`` in their name, one after the other."""

    def __call__(self, *, smoke: bool, only: str, rounds: int) -> Iterator[Result]: ...


def run_alone(prog: str, rows: Rows, rounds: int) -> None:
    """Be the main program of one benchmark: read its options, run its rows, report each as soon as it is there."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--smoke", action="store_true", help="small sizes, few peers: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write results and the machine there")
    parser.add_argument("--only", metavar="NAME", default="", help="rows with this in their name")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of everybody in a row")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    results = []
    for result in rows(smoke=options.smoke, only=options.only, rounds=options.rounds):
        report([result], judge=not options.smoke)
        results.append(result)
    if options.json:
        save(results, options.json)
