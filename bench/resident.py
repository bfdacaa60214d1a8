"""Peak RSS over baseline: every workload and peer in a process of its own, as memory of one process cannot be told apart.

``python -m bench.resident WORKLOAD PEER [--traces DIR] [--smoke]`` is such a process; it prints JSON. Everything is compiled
and every array of the harness is touched before the baseline, and the C heap's free pages are given back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import realalloc as ra
from bench import streams
from bench.kernels import NATIVE, OURS
from bench.measure import Result, Turn
from bench.natives import find_natives
from bench.peers import NAME, RESERVE, Peer, Plan, check
from bench.programs import Case, cases
from bench.threads import LARSON_SLOTS, Workers, larson_turn
from realalloc.rss import trim_heap

MIB = 1 << 20
MIMALLOC = "mimalloc"  # version 3
WORKLOADS = ("mstress", "xmalloc", "mleak")  # those of programs.py
MOST, MOST_OVER_LIVE = 1.0, 1.2  # of mimalloc; of the bytes that are live
REPEATS = 3  # processes, where threads race
FRAGMENTS = {"fragments 400k x 16..4096": 400_000, "fragments 64 x 4M": 64}
SURVIVORS = 10  # one object in so many is freed last
SECONDS = (0.2, 1.1, 5.0)  # after everything was freed, with a pair each millisecond
TRIMMED = "trimmed"  # ours only: the natives have no verb for it that all of them share
LIVE = "live bytes"
LEAST = 0.1  # MiB: less is noise
SMOKE = ("mleak", "fragments 64 x 4M")


def _status(field: str) -> int:
    """Return a field of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def live_bytes(stream: streams.Operations) -> int:
    """Return how many bytes are live at the peak."""
    held = np.zeros(stream.places, np.int64)
    live = most = 0
    for slot, size in zip(stream.slots.tolist(), stream.sizes.tolist(), strict=True):
        live += max(size, 0) - int(held[slot])
        held[slot] = max(size, 0)
        most = max(most, live)
    return most


def _replay(p: Peer, stream: streams.Operations) -> Turn:
    """Replay a stream; all bytes of the objects are written."""
    blocks = np.zeros(stream.places, np.int64)
    blocks.fill(0)  # touches it
    check(p.loops.replay_full(p.how, blocks, stream.slots, stream.sizes, 0, 0))
    return Turn(
        lambda n: check(p.loops.replay_full(p.how, blocks, stream.slots, stream.sizes, 0, n)),
        close=lambda: p.loops.drain(p.how, blocks),
    )


def _fragments(name: str, count: int) -> streams.Operations:
    """Allocate, free all but every tenth object in random order, free these."""
    sizes = streams.log_uniform(16, 4096, count) if "16" in name else np.full(count, 4 << 20, np.int32)
    every = np.arange(count, dtype=np.int32)
    mixed = streams.order("shuffled", count)
    gone = np.full(count, -1, np.int32)
    return streams.Operations(name, count, 0, np.concatenate([every, mixed]), np.concatenate([sizes, gone]))


def workloads(plan: Plan, directory: str | None, workers: Workers | None) -> Iterator[Case]:
    """Give everything whose memory is looked at."""
    for case in cases(plan, workers):
        if case.name.startswith(WORKLOADS):
            yield case._replace(name=case.name.removesuffix(", per thread"))
    number = plan.count(300_000)
    given = (streams.slots(LARSON_SLOTS, number), streams.uniform(8, 1000, number))
    for threads in (1, 2) if workers else (1,):
        yield Case(
            f"larson, {threads} thread{'s'[: threads - 1]}", 1.0, number, larson_turn, (threads, *given), threads
        )
    for stream in streams.load_traces(directory) if directory else ():
        yield Case(f"trace {stream.name}", None, plan.count(len(stream.slots)), _replay, (stream,))
    for name, count in FRAGMENTS.items():
        stream = _fragments(name, plan.count(count))
        yield Case(name, None, len(stream.slots), _replay, (stream,))


def _peak(case: Case, p: Peer) -> dict[str, float]:
    """Run a workload once; return the bytes over the baseline at the peak."""
    turn = case.make(p, *case.given)
    trim_heap()
    _forget_peak()
    base = _status("VmRSS")
    turn.prepare()
    turn.run(case.number)
    peak = _status("VmHWM") - base
    turn.teardown()
    turn.close()
    return {"peak": peak}


def _later(stream: streams.Operations, p: Peer, trim: Callable[[], int] | None, *, smoke: bool) -> dict[str, float]:
    """Fill, free in two steps, go on with little; return the bytes over the baseline after each."""
    blocks = np.ones(stream.places, np.int64)  # touched
    check(p.loops.replay_full(p.how, blocks, stream.slots, stream.sizes, 0, 0))
    check(p.loops.pairs(p.how, 64, 1, 1))
    trim_heap()
    base = _status("VmRSS")
    found = {}
    begin = 0
    for when, end in (
        ("filled", stream.places),
        ("a tenth left", 2 * stream.places - stream.places // SURVIVORS),
        ("freed", 2 * stream.places),
    ):
        check(p.loops.replay_full(p.how, blocks, stream.slots, stream.sizes, begin, end))
        found[when] = _status("VmRSS") - base
        begin = end
    begun = time.monotonic()
    for seconds in SECONDS[:1] if smoke else SECONDS:
        while time.monotonic() - begun < seconds:
            check(p.loops.pairs(p.how, 64, 1, 1))
            time.sleep(0.001)
        found[f"after {seconds:g} s"] = _status("VmRSS") - base
    if trim:
        trim()
        found[TRIMMED] = _status("VmRSS") - base
    return found


def _measure(case: Case, peer: str, *, smoke: bool) -> dict[str, float]:
    """Run a workload with one peer in this process; return MiB."""
    with contextlib.ExitStack() as stack:
        trim = None
        if peer == NAME:
            arena = stack.enter_context(ra.Arena(RESERVE))
            p, trim = Peer(NAME, OURS, arena.words), arena.trim
        else:
            (native,) = find_natives(peer)
            p = Peer(peer, NATIVE, np.array([native.alloc, native.free], np.int64))
        if case.name in FRAGMENTS:
            found = _later(case.given[0], p, trim, smoke=smoke)
        else:
            found = _peak(case, p)
    return {when: max(amount, 0) / MIB for when, amount in found.items()}


def _ask(case: Case, peer: str, directory: str | None, *, smoke: bool) -> dict[str, float]:
    """Measure in a process of its own; the median where threads race."""
    command = [sys.executable, "-m", "bench.resident", case.name, peer]
    command += ["--traces", directory] if directory else []
    command += ["--smoke"] if smoke else []
    answers = []
    for _ in range(REPEATS if case.threads > 1 and not smoke else 1):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        answers.append(json.loads(done.stdout))
    return {when: statistics.median(answer[when] for answer in answers) for when in answers[0]}


def _compared(name: str, amounts: dict[str, float], most: float | None) -> Result:
    """Make a row in MiB; the target speaks of mimalloc."""
    others = {who: amounts[NAME] / max(amount, LEAST) for who, amount in amounts.items() if who != NAME}
    targets = {MIMALLOC: most} if most and MIMALLOC in others else {}
    return Result(name, "MiB", amounts, NAME, targets, ratios=others)


def resident(plan: Plan, directory: str | None) -> Iterator[Result]:
    """Run all rows of this file; a smoke run asks for two of them and one native."""
    names = [NAME, *(native.name for native in plan.natives)]
    workers = Workers() if len(os.sched_getaffinity(0)) > 1 else None
    for case in workloads(plan, directory, workers):
        name = f"RSS, {case.name}"
        if not plan.wants(name) or (plan.smoke and case.name not in SMOKE):
            continue
        asked = names[:2] if plan.smoke else names
        found = {who: _ask(case, who, directory, smoke=plan.smoke) for who in asked}
        if case.name in FRAGMENTS:
            for when in found[names[-1] if names[-1] in found else names[0]]:
                if when != TRIMMED:
                    yield _compared(f"{name}, {when}", {who: parts[when] for who, parts in found.items()}, None)
            yield _compared(f"{name}, trimmed", {NAME: found[NAME][TRIMMED]}, None)
            continue
        peaks = {who: parts["peak"] for who, parts in found.items()}
        yield _compared(name, peaks, None if case.name == "mleak" else MOST)
        if case.name.startswith("trace"):
            live = live_bytes(case.given[0]) / MIB
            over = {who: peak / live for who, peak in peaks.items()}
            row = Result(f"{name}, over live bytes", "x", over, NAME, {LIVE: MOST_OVER_LIVE}, {"live MiB": live})
            row.ratios[LIVE] = over[NAME]
            yield row


def main() -> None:
    """Measure one peer in one workload."""
    parser = argparse.ArgumentParser(prog="bench.resident")
    parser.add_argument("workload")
    parser.add_argument("peer")
    parser.add_argument("--traces", metavar="DIR")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    workers = Workers()
    plan = Plan([], "", options.smoke, 1)
    case = next(case for case in workloads(plan, options.traces, workers) if case.name == options.workload)
    found = _measure(case, options.peer, smoke=options.smoke)
    workers.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
