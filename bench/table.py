"""The table of the native benchmarks: the lab's jitted workloads, the ratio to the best native, and what was aimed at."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bench import targets
from bench.measure import Result
from realalloc.lab import resident, streams
from realalloc.lab.measure import Case, Turn, check, measure
from realalloc.lab.natives import MIMALLOCS, Native, find_natives
from realalloc.lab.peers import BARE, OURS, Peer, bare_stacks, jitted_peers, nobody
from realalloc.lab.results import Row
from realalloc.lab.workloads import fragments, jitted_cases
from realalloc.lab.workloads.scope import FULL, SMOKE, Scope

WIDTH = 56
COLUMN = 11
REPEATS = 3  # processes, where threads race
IN_MEMORY = ("mstress", "larson", "xmalloc", "mleak")  # workloads whose peak is looked at
MIMALLOC = "mimalloc"  # version 3
LEAST_MIB = 0.1  # less is noise
LIVE = "live bytes"


def result_of(row: Row, most: float | None) -> Result:
    """Judge a row of the lab: the target speaks of the best native; what bare stacks took is only noted, as it is none."""
    bare = [entry.ns.value for entry in row.entries if entry.peer == BARE]
    row = replace(row, entries=tuple(entry for entry in row.entries if entry.peer != BARE))
    medians = {entry.peer: entry.ns.value for entry in row.entries}
    ratios = {peer: row.ratio(OURS, peer).value for peer in medians if peer != OURS}
    best = row.best_other(OURS)
    notes = {} if row.harness_ns is None else {"harness": row.harness_ns}
    notes |= {BARE: value for value in bare}
    return Result(row.name, "ns", medians, OURS, {best: most} if best and most else {}, notes, ratios)


def line(result: Result, names: list[str]) -> str:
    """Format one row."""
    digits = 2 if result.unit == "x" else 1
    cells = [f"{result.medians[name]:{COLUMN}.{digits}f}" if name in result.medians else " " * COLUMN for name in names]
    peer = next(iter(result.targets), None) or max(result.ratios, key=result.ratios.__getitem__, default=None)
    if peer:
        cells.append(f"{result.ratio(peer):8.2f}  {peer:<{COLUMN}}")
    if result.targets:
        most = result.targets[peer]
        cells.append(f"  {most:<6g}  {'met' if result.ratio(peer) <= most else 'MISSED'}")
    cells += [f"  ({name}: {value:.1f})" for name, value in result.notes.items()]
    return f"{result.name:<{WIDTH}}{''.join(cells)}".rstrip()


def trace_turn(p: Peer, stream: streams.Operations) -> Turn:
    """Replay what a program did; the heap that it began with is built off the clock."""
    blocks = np.zeros(stream.places, np.int64)

    def play(begin: int, end: int) -> int:
        return check(p.loops.replay(p.how(), blocks, stream.slots, stream.sizes, begin, end))

    return Turn(
        lambda n: play(stream.warm, stream.warm + n),
        lambda: play(0, stream.warm),
        lambda: p.loops.drain(p.how(), blocks),
    )


def trace_cases(directory: str, scope: Scope) -> Iterator[Case]:
    """Give the recorded traces of a directory."""
    for stream in streams.load_traces(directory):
        number = scope.count(len(stream.slots) - stream.warm)
        yield Case("trace", stream.name, number, functools.partial(trace_turn, stream=stream), operation="operation")


def timed(found: list[Native], scope: Scope, only: str, directory: str | None, rounds: int) -> Iterator[Result]:
    """Run the rows of nanoseconds whose name has ``only`` in it, and the geometric mean of the traces."""
    cases = [*jitted_cases(scope), *(trace_cases(directory, scope) if directory else ())]
    played = []
    for case in cases:
        if only.lower() not in case.name.lower():
            continue
        with jitted_peers(found) as peers, bare_stacks() as floor:
            everybody = [*peers, floor] if case.threads == 1 else peers
            row = measure(case, everybody, rounds, harness=nobody(), latency=False)
        result = result_of(row, targets.TIME.get(case.name))
        if case.workload == "trace":
            played.append(result)
        yield result
    if len(played) > 1:
        medians, ratios = [
            {who: statistics.geometric_mean(part[who] for part in parts) for who in parts[0]}
            for parts in ([r.medians for r in played], [r.ratios for r in played])
        ]
        peer = next((who for who in MIMALLOCS if who in ratios), None)
        yield Result(
            "traces, geometric mean", "ns", medians, OURS, {peer: targets.TRACES} if peer else {}, ratios=ratios
        )


def peaks(found: list[Native], scope: Scope, only: str, *, smoke: bool) -> Iterator[Result]:
    """Run the rows of resident memory, every peer in a process of its own; a smoke run has two of them and one native."""
    names = [OURS, *(native.name for native in found)][: 2 if smoke else None]
    cases = [case for case in jitted_cases(scope, IN_MEMORY) if not smoke or case.workload == "mleak"]
    for case in cases:
        name = f"RSS, {case.name}"
        if only.lower() not in name.lower():
            continue
        repeats = REPEATS if case.threads > 1 and not smoke else 1
        request = resident.Request(case.workload, case.case, "", scope.scale, scope.seed, scope.threads)
        answers = {peer: [resident.ask(request_for(request, peer)) for _ in range(repeats)] for peer in names}
        amounts = {peer: statistics.median(a.peak_bytes for a in parts) / 2**20 for peer, parts in answers.items()}
        yield compared(name, amounts, None if case.workload == "mleak" else targets.PEAK)
    for case in fragments.SETS:
        name = f"RSS, {fragments.NAME} {case}"
        if only.lower() not in name.lower() or (smoke and case != "64 x 4M"):
            continue
        request = resident.Request(fragments.NAME, case, "", scope.scale, scope.seed)
        answers = {peer: resident.ask(request_for(request, peer)) for peer in names}
        for step in answers[OURS].steps:
            amounts = {peer: a.steps[step] / 2**20 for peer, a in answers.items() if step in a.steps}
            yield compared(f"{name}, {step}", amounts, None)


def request_for(request: resident.Request, peer: str) -> resident.Request:
    """Ask the same of somebody else."""
    return resident.Request(request.workload, request.case, peer, request.scale, request.seed, request.threads)


def compared(name: str, amounts: dict[str, float], most: float | None) -> Result:
    """Make a row in MiB; the target speaks of mimalloc."""
    others = {who: amounts[OURS] / max(amount, LEAST_MIB) for who, amount in amounts.items() if who != OURS}
    return Result(name, "MiB", amounts, OURS, {MIMALLOC: most} if most and MIMALLOC in others else {}, ratios=others)


def natives(only: str, directory: str | None, *, smoke: bool, rounds: int, rss: bool = False) -> list[Result]:
    """Run the rows asked for, printing each when it is done."""
    found, missing = find_natives()
    print("\n".join(f"skipped: {reason}" for reason in missing))
    scope = Scope(SMOKE if smoke else FULL, threads=min(2, len(os.sched_getaffinity(0))))
    names = [OURS, *(native.name for native in found)]
    heads = "".join(f"{name:>{COLUMN}}" for name in names)
    print(f"{'ns per allocation and free':<{WIDTH}}{heads}   ratio  {'to best':<{COLUMN}}{'' if smoke else '  target'}")
    results = []
    try:
        parts = [timed(found, scope, only, directory, 2 if smoke else rounds)]
        parts += [peaks(found, scope, only, smoke=smoke)] if rss or smoke else []
        for part in parts:
            for result in part:
                if result.unit == "MiB" and not any(row.unit == "MiB" for row in results):
                    print("MiB of RSS over what it was before; at the peak unless said")
                if smoke:  # such sizes say nothing
                    result.targets = {}
                print(line(result, names), flush=True)
                results.append(result)
    finally:
        scope.close()
    return results
