"""``python -m bench.numpy_pipelines [--smoke] [--only NAME] [--json FILE]``: pipelines as programs run them, everywhere.

What they do is in ``bench.numpy_programs``. Each peer runs each pipeline in a process of its own, as often as there are
rounds; peers take turns. Told: milliseconds a pass after the first, and the same in processor time, which other work on the
machine disturbs less; of the first pass also the system's part of that; the peak of resident memory: whole, and beyond what
the process had before the first pass. Results are compared: all peers must compute the same.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from typing import Any

from bench.allocators import ARENA, DEFAULT, Child, Peer, peers
from bench.measure import Result, in_turn, run_alone, within_rounds

PASSES = 5
NEEDS: dict[str, tuple[str, ...]] = {"images": ("scipy",), "groupby": ("pandas",), "signal": ("scipy",), "bodies": ()}
SIZES = {"images": 1080, "groupby": 2_000_000, "signal": 1 << 17, "bodies": 500}
SMOKE = {"images": 32, "groupby": 1000, "signal": 4096, "bodies": 20}
TOLD = (  # what, field of the answer, of which pass (None: of them all), unit
    ("first pass, ms", "ns", 0, 1e6),
    ("first pass, processor, ms", "cpu", 0, 1e6),
    ("first pass, of that in the system, ms", "system", 0, 1e6),
    ("peak, MiB", "peak", None, 1 << 20),
    ("peak beyond before, MiB", "growth", None, 1 << 20),
)
GOALS = {"bodies": 1.5}  # times as fast as the default, at least; 1.0 for the others


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
        for peer in in_turn(chosen, k):
            seen[peer.name].append(measure(pipeline, peer, size, passes))
    sums = {answer["checksum"] for answers in seen.values() for answer in answers}
    if max(sums) - min(sums) > 1e-9 * abs(max(sums)):  # sums of reals depend on alignment
        raise RuntimeError(f"{pipeline}: the results differ: {sums}")
    passed = {name: [statistics.median(one["ns"][1:]) for one in answers] for name, answers in seen.items()}
    busy = {name: [statistics.median(one["cpu"][1:]) for one in answers] for name, answers in seen.items()}
    medians = {name: statistics.median(values) / 1e6 for name, values in passed.items()}
    ratios = within_rounds(passed, ARENA)
    notes = {f"times as fast as {name}": round(1 / ratio, 2) for name, ratio in ratios.items()}
    for name, ratio in within_rounds(busy, ARENA).items():
        notes[f"times as fast as {name}, processor time"] = round(1 / ratio, 2)
    for what, field, which, unit in TOLD:
        for name, answers in seen.items():
            values = [one[field] if which is None else one[field][which] for one in answers]
            notes[f"{what}, {name}"] = round(statistics.median(values) / unit, 1)
    goal = round(1 / GOALS.get(pipeline, 1.0), 3)
    return Result(f"{pipeline}, {size}", "ms", medians, ARENA, {DEFAULT: goal}, notes, ratios)


def rows(*, smoke: bool, only: str = "", rounds: int = 3) -> Iterator[Result]:
    """Run what can be run here, and say what cannot."""
    chosen, missing = peers()
    for line in missing:
        print(f"not taking part: {line}")
    for pipeline, needed in NEEDS.items():
        if only not in pipeline:
            continue
        lacking = [name for name in needed if importlib.util.find_spec(name) is None]
        if lacking:
            print(f"{pipeline}: left out, {lacking[0]} is not installed")
            continue
        sizes, passes = (SMOKE, 1) if smoke else (SIZES, PASSES)
        yield row(pipeline, chosen[:2] if smoke else chosen, sizes[pipeline], 1 if smoke else rounds, passes)


if __name__ == "__main__":
    run_alone("bench.numpy_pipelines", rows, 3)
