"""``python -m bench.numpy_pipelines [--smoke] [--json FILE]``: three pipelines as programs run them, on every allocator.

What they do is in ``bench.numpy_programs``. Each peer runs each pipeline in a process of its own, as often as there are
rounds; peers take turns. Told: milliseconds a pass after the first, the first pass, the peak of resident memory: whole, and
beyond what the process had before the first pass. Results are compared: all peers must compute the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Iterator
from typing import Any

from bench.allocators import ARENA, DEFAULT, Child, Peer, peers
from bench.measure import Result, report, save
from realalloc.lab import machine

PASSES = 5
NEEDS = {"images": ("scipy",), "groupby": ("pandas",), "signal": ("scipy",)}
SIZES = {"images": 1080, "groupby": 2_000_000, "signal": 1 << 17}
SMOKE = {"images": 32, "groupby": 1000, "signal": 4096}


def measure(pipeline: str, peer: Peer, size: int, passes: int) -> dict[str, Any]:
    """Run a pipeline in a new process of a peer."""
    child = Child(peer, "bench.numpy_programs")
    try:
        return child.ask({"pipeline": pipeline, "size": size, "passes": passes})
    finally:
        child.close()


def row(pipeline: str, chosen: list[Peer], size: int, rounds: int, passes: int) -> Result:
    """Run a pipeline everywhere; RuntimeError if somebody computes something else."""
    seen: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in chosen}
    for k in range(rounds):
        for peer in chosen[k % len(chosen) :] + chosen[: k % len(chosen)]:
            seen[peer.name].append(measure(pipeline, peer, size, passes))
    sums = {answer["checksum"] for answers in seen.values() for answer in answers}
    if max(sums) - min(sums) > 1e-9 * abs(max(sums)):  # sums of reals depend on alignment
        raise RuntimeError(f"{pipeline}: the results differ: {sums}")
    passed = {name: [statistics.median(one["ns"][1:]) for one in answers] for name, answers in seen.items()}
    medians = {name: statistics.median(values) / 1e6 for name, values in passed.items()}
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(passed[ARENA], values, strict=True))
        for name, values in passed.items()
        if name != ARENA
    }
    notes = {f"times as fast as {name}": round(1 / ratio, 2) for name, ratio in ratios.items()}
    for what, key, unit in (
        ("first pass, ms", "", 1e6),
        ("peak, MiB", "peak", 1 << 20),
        ("peak beyond before, MiB", "growth", 1 << 20),
    ):
        for name, answers in seen.items():
            values = [one[key] if key else one["ns"][0] for one in answers]
            notes[f"{what}, {name}"] = round(statistics.median(values) / unit, 1)
    return Result(f"{pipeline}, {size}", "ms", medians, ARENA, {DEFAULT: 1.0}, notes, ratios)


def rows(*, smoke: bool, rounds: int = 3) -> Iterator[Result]:
    """Run what can be run here, and say what cannot."""
    chosen, missing = peers()
    for line in missing:
        print(f"not taking part: {line}")
    for pipeline, needed in NEEDS.items():
        lacking = [name for name in needed if importlib.util.find_spec(name) is None]
        if lacking:
            print(f"{pipeline}: left out, {lacking[0]} is not installed")
            continue
        sizes, passes = (SMOKE, 1) if smoke else (SIZES, PASSES)
        yield row(pipeline, chosen[:2] if smoke else chosen, sizes[pipeline], 1 if smoke else rounds, passes)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="bench.numpy_pipelines")
    parser.add_argument("--smoke", action="store_true", help="small sizes, two peers: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write results and the machine there")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each peer for each pipeline")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    results = []
    for result in rows(smoke=options.smoke, rounds=options.rounds):
        report([result], judge=not options.smoke)
        results.append(result)
    if options.json:
        save(results, options.json)


if __name__ == "__main__":
    main()
