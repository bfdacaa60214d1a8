"""``python -m bench.numpy_arrays [--smoke] [--json FILE] [--only CASE]``: array expressions, ``np.empty``, ``np.zeros`` and
a queue of arrays, in an arena and without.

Peers: NumPy's default handler over the C library as it is, over the same tuned (``MALLOC_TRIM_THRESHOLD_``,
``MALLOC_MMAP_THRESHOLD_``; ``MALLOC_MMAP_MAX_=0``), and over preloaded allocators; each in a process of its own, new for each
case, since what glibc does depends on what was freed before; all take turns in each round. Beside them stands a floor: the
same work in buffers that are there already, which is what an allocator that costs nothing would leave. Ratios are medians of
those within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from bench.allocators import ARENA, DEFAULT, Peer, peers, start
from bench.measure import Result, in_turn, run_alone, within_rounds
from bench.numpy_cases import LIVE

KIB, MIB = 1 << 10, 1 << 20
FLOOR = "floor"
WORK = 1 << 25  # bytes of arrays in a turn


class Case(NamedTuple):
    """What is timed; ``times``: as fast as the default at least; ``beats``: at least as fast as the best of all peers."""

    name: str
    nbytes: int
    times: float = 0.0
    beats: bool = False
    floor: str = ""


EXPRESSIONS = {64: 0.0, KIB: 0.0, 4 * KIB: 0.0, 64 * KIB: 0.0, MIB: 4.0, 4 * MIB: 2.5, 16 * MIB: 0.0}
EXPRESSIONS |= {64 * MIB: 1.3, 256 * MIB: 0.0}
CASES = [
    Case("expression", nbytes, times, beats=True, floor="expression_floor") for nbytes, times in EXPRESSIONS.items()
]
CASES += [Case(name, nbytes, 1 / 1.1) for name in ("empty", "zeros") for nbytes in (64, KIB)]
CASES += [Case(name, nbytes) for nbytes in (MIB, 64 * MIB) for name in ("zeros", "zeros_filled")]
CASES += [Case("queue", 16 * MIB, 50.0, floor="queue_floor")]
SMOKE = [Case("expression", 64 * KIB, floor="expression_floor"), Case("queue", 64 * KIB)]


def spelled(nbytes: int) -> str:
    """Spell a size."""
    for unit, size in (("MiB", MIB), ("KiB", KIB)):
        if nbytes >= size:
            return f"{nbytes // size} {unit}"
    return f"{nbytes} B"


def row(case: Case, chosen: list[Peer], rounds: int, *, smoke: bool) -> Result:
    """Run a case in new processes: every peer once a round, in another order each."""
    number = 2 if smoke else max(1, min(50_000, WORK // case.nbytes))
    if case.name == "queue" and not smoke:
        number = 2 * LIVE
    children, wrong = start("bench.numpy_cases", [*chosen, *([Peer(FLOOR, {})] if case.floor else [])])
    for line in wrong:
        print(f"not taking part: {line}")
    spent: dict[str, list[float]] = {child.peer.name: [] for child in children}
    faults: dict[str, list[float]] = {child.peer.name: [] for child in children}
    try:
        for k in range(rounds + 1):
            for child in in_turn(children, k):
                what = case.floor if child.peer.name == FLOOR else case.name
                answer = child.ask({"case": what, "nbytes": case.nbytes, "number": number})
                if k:  # the first one warms up
                    spent[child.peer.name].append(answer["ns"])
                    faults[child.peer.name].append(answer["faults"])
    finally:
        for child in children:
            child.close()
    return judged(case, spent, faults)


def judged(case: Case, spent: dict[str, list[float]], faults: dict[str, list[float]]) -> Result:
    """Make the row of what was measured."""
    medians = {name: statistics.median(values) for name, values in spent.items()}
    ratios = within_rounds(spent, ARENA)
    others = [name for name in ratios if name not in (DEFAULT, FLOOR)]
    best = min(others, key=lambda name: medians[name], default=DEFAULT)
    targets = {DEFAULT: round(1 / case.times, 3)} if case.times else {}
    if case.beats:
        targets[best] = 1.0
    notes = {f"times as fast as {name}": round(1 / ratio, 2) for name, ratio in ratios.items() if name != FLOOR}
    if FLOOR in spent:
        least = statistics.median(b / a for a, b in zip(spent[FLOOR], spent[DEFAULT], strict=True))
        notes["times as fast as default at most (floor)"] = round(least, 2)
    lowest = {name: min(values) for name, values in spent.items() if name != FLOOR}
    notes |= {
        f"lowest of each, {name}": round(value / lowest[ARENA], 2) for name, value in lowest.items() if name != ARENA
    }
    notes |= {f"page faults, {name}": round(statistics.median(faults[name]), 1) for name in (ARENA, DEFAULT)}
    return Result(f"{case.name}, {spelled(case.nbytes)}", "ns", medians, ARENA, targets, notes, ratios)


def rows(*, smoke: bool, only: str = "", rounds: int = 11) -> Iterator[Result]:
    """Run everything; in a smoke run with three peers, since each is a process."""
    chosen, missing = peers()
    for line in missing:
        print(f"not taking part: {line}")
    for case in SMOKE if smoke else CASES:
        if only in case.name:
            count = 1 if smoke else 5 if case.nbytes > 64 * MIB or case.name == "queue" else rounds
            yield row(case, chosen[:3] if smoke else chosen, count, smoke=smoke)


if __name__ == "__main__":
    run_alone("bench.numpy_arrays", rows, 11)
