"""Shared by the tests of reports: a run as a bench would leave it, made of dice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from realalloc.lab.latencies import Latency
from realalloc.lab.results import JITTED, PYTHON, Counters, Entry, Footprint, Report, Row
from realalloc.lab.series import Series

PEERS = (
    "realalloc",
    "glibc",
    "jemalloc",
    "mimalloc",
    "tcmalloc",
    "bytearray",
    "np.empty",
    "memoryview(bytearray)",
    "multiprocessing.heap",
    "SharedMemory",
    "mmap",
    "pyarrow jemalloc",
)
SIZES = (64, 512, 4096, 65536, 1 << 20)


def latency(dice: np.random.Generator, operation: str, middle: float, count: int = 1_000_000) -> Latency:
    """Draw a log-normal body and a tail of page faults and preemptions, into buckets of 1/32."""
    body = dice.lognormal(np.log(middle), 0.25, count)
    slow = dice.random(count)
    body[slow < 3e-3] *= 8
    body[slow < 2e-4] += 1.6e3
    body[slow < 1e-5] += dice.exponential(4e5, np.count_nonzero(slow < 1e-5))
    exponent = np.floor(np.log2(body)) - 5
    tops, counts = np.unique((np.floor(body / 2**exponent) + 1) * 2**exponent, return_counts=True)
    return Latency(operation, tuple(zip(tops.tolist(), counts.tolist(), strict=True)), 8.2)


def entry(dice: np.random.Generator, peer: str, ns: float, rounds: int, timed: int, counters: Counters) -> Entry:
    """Draw the rounds of a peer, and its latencies where ``timed`` operations are."""
    latencies = tuple(latency(dice, name, ns / 2 + 9, timed) for name in ("alloc", "free")) if timed else ()
    return Entry(peer, tuple((ns * dice.lognormal(0, 0.02, rounds)).tolist()), latencies, counters, 12345)


def resident(dice: np.random.Generator, peers: tuple[str, ...], samples: int = 200) -> Series:
    """Draw a resident set that rises, stays and falls."""
    shape = np.interp(np.arange(samples), (0, samples / 5, samples * 0.8, samples - 1), (0.1, 1, 1.05, 0.15))
    columns = {}
    for number, peer in enumerate(peers):
        noise = dice.normal(1, 0.01, samples)
        columns[peer] = tuple((np.round(shape * noise * (180 + 20 * number) * 2**20)).tolist())
    return Series(tuple((np.arange(samples) * 0.05).tolist()), columns)


def make_report(peers: int = 9, rounds: int = 15, timed: int = 20_000, seed: int = 1) -> Report:
    """Make a run of three workloads in both views; the peers are the first of ``PEERS``."""
    dice = np.random.default_rng(seed)
    names = PEERS[:peers]
    cost = dict(zip(PEERS, (4.1, 17, 6.2, 4.2, 5.1, 95, 140, 230, 4100, 41_000, 2900, 61), strict=True))
    rows = []
    for size in SIZES:
        entries = tuple(
            entry(dice, peer, cost[peer] * (1 + size / 40_000), rounds, timed * (size == 4096), Counters())
            for peer in names
        )
        case = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
        rows.append(Row("pair", case, JITTED, "alloc + free", 1_000_000, {"seed": 1}, entries, 0.9, size))
    for name, operation, view in (("larson", "replacement", JITTED), ("producer/consumer", "hand over", PYTHON)):
        counted = [
            Counters(int(dice.integers(0, 90_000)), 3 * (k == 4), int(dice.integers(0, 300)), 12 * k, k % 3)
            for k in range(len(names))
        ]
        entries = tuple(
            entry(dice, peer, cost[peer] * 2.2, rounds, timed, seen) for peer, seen in zip(names, counted, strict=True)
        )
        rows.append(Row(name, "2 threads", view, operation, 200_000, {"threads": 2, "seed": 1}, entries, 1.4))
    return Report(
        command="realalloc bench --quick",
        machine={"cpu": "AMD EPYC 7B13, 2 CPUs usable", "python": "3.11.9", "kernel": "Linux 6.1.0", "THP": "madvise"},
        options={"quick": True, "seed": 1, "rounds": rounds},
        rows=rows,
        resident={"larson": resident(dice, names)},
        floors={"reading the clock": 8.2, "an empty jitted loop": 0.31},
        skipped=["snmalloc: no shared library found", "pyarrow: not installed"],
        warnings=["the machine is busy (load 3.1 on 2 CPUs): ratios within 4 % cannot be told apart"],
        started="2025-01-31 12:00:00",
        footprints=[Footprint("replay git", peer, 8 << 20, (10 + k) << 20, k << 20) for k, peer in enumerate(names)],
    )


HOSTILE = "<script>alert(1)</script>\x1b[31m$\\frac$_&\n=1+1\u202e"


def make_hostile() -> Report:
    """Make a run in which everything that is text is called by a name that somebody would obey."""
    report = make_report(3, 4, 2000)
    text = json.dumps(report.as_dict())
    for word in (
        "glibc",
        "larson",
        "alloc + free",
        "replacement",
        "madvise",
        "THP",
        "snmalloc",
        "busy",
        "--quick",
        '"seed',
    ):
        text = text.replace(word, word + json.dumps(HOSTILE)[1:-1])
    data = json.loads(text)
    for row in data["rows"]:
        for one in row["entries"]:
            for latency in one["latencies"]:
                latency["operation"] = "_" + HOSTILE + latency["operation"]
    return Report.from_dict(data)


def make_odd() -> dict[str, Report]:
    """Make runs that are not whole: nothing, interrupted, one peer, nobody of ours, nothing seen, one operation."""
    whole = make_report(3, 4, 2000)
    alone = replace(whole.rows[2], entries=whole.rows[2].entries[:1])
    others = replace(whole.rows[2], entries=whole.rows[2].entries[1:])
    once = replace(whole.rows[2].entries[0], latencies=(Latency("alloc", ((40.0, 1),), 8.0), Latency("free", (), 8.0)))
    nan = float("nan")
    blank = Report("realalloc bench", {}, {})
    unseen = Series((0.0, 1.0, 2.0), {"glibc": (nan, nan, nan), "realalloc": (nan, 2.0**20, nan)})
    return {
        "empty": blank,
        "interrupted": replace(blank, rows=[whole.rows[0], replace(whole.rows[1], entries=())], interrupted=True),
        "one peer": replace(blank, rows=[alone]),
        "nobody of ours": replace(blank, rows=[others]),
        "one operation": replace(blank, rows=[replace(alone, entries=(once,))]),
        "one round": replace(blank, rows=make_report(3, 1, 0).rows),
        "nothing took time": replace(blank, rows=[replace(alone, entries=(replace(once, rounds_ns=(0.0, 0.0)),))]),
        "nothing seen": replace(blank, resident={"larson": unseen, "never": Series((), {"glibc": ()})}),
        "below zero": replace(blank, resident={"slope": Series((0.0, 1.0), {"a": (-1.0, 1.0)}, "MiB/s")}),
    }
