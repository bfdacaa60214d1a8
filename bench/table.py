"""The table of the native benchmarks: ours, every native that is there, the ratio to the best of them, the target."""

from __future__ import annotations

from bench.measure import Result
from bench.natives import find_natives
from bench.peers import NAME, Plan, best
from bench.programs import programs
from bench.resident import resident
from bench.threads import two_threads
from bench.workloads import batches, pairs, replacement, rings, traces

WIDTH = 41
COLUMN = 11


def line(result: Result, names: list[str]) -> str:
    """Format one row."""
    digits = 2 if result.unit == "x" else 1
    cells = [f"{result.medians[name]:{COLUMN}.{digits}f}" if name in result.medians else " " * COLUMN for name in names]
    peer = next(iter(result.targets), None) or best(result)
    if peer:
        cells.append(f"{result.ratio(peer):8.2f}  {peer:<{COLUMN}}")
    if result.targets:
        most = result.targets[peer]
        cells.append(f"  {most:<6g}  {'met' if result.ratio(peer) <= most else 'MISSED'}")
    cells += [f"  ({name}: {value:.1f})" for name, value in result.notes.items()]
    return f"{result.name:<{WIDTH}}{''.join(cells)}".rstrip()


def natives(only: str, directory: str | None, *, smoke: bool, rounds: int, rss: bool = False) -> list[Result]:
    """Run the rows asked for, printing each when it is done."""
    found = find_natives()
    plan = Plan(found, only, smoke, 2 if smoke else rounds)
    names = [NAME, *(native.name for native in found)]
    heads = "".join(f"{name:>{COLUMN}}" for name in names)
    print(f"{'ns per allocation and free':<{WIDTH}}{heads}   ratio  {'to best':<{COLUMN}}{'' if smoke else '  target'}")
    results = []
    for part in (
        pairs(plan),
        batches(plan),
        replacement(plan),
        rings(plan),
        traces(plan, directory),
        two_threads(plan),
        programs(plan),
        resident(plan, directory) if rss or smoke else (),
    ):
        for result in part:
            if result.unit == "MiB" and not any(row.unit == "MiB" for row in results):
                print("MiB of RSS over what it was before; at the peak unless said")
            if smoke:  # such sizes say nothing
                result.targets = {}
            print(line(result, names), flush=True)
            results.append(result)
    return results
