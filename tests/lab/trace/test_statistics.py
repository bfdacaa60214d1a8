"""Statistics agree with what the events say."""

from __future__ import annotations

import json

from traces import events, facts, random_events

from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.statistics import statistics


def test_numbers_by_hand() -> None:
    made = events(
        ("malloc", 0, 0, 100),
        ("calloc", 1, 1, 8192),
        ("realloc", 0, 0, 129),
        ("free", 1, 0),
        ("malloc", 0, 0, 0),
    )
    seen = statistics(Trace("t", made, facts(2, 2, counts={"unknown_frees": 3, "torn": 0})))
    assert seen.operations["obj"] == {"malloc": 2, "calloc": 0, "realloc": 1, "free": 1}
    assert seen.operations["numpy"] == {"malloc": 0, "calloc": 1, "realloc": 0, "free": 0}
    assert seen.sizes == [(1, 1, 0), (128, 1, 100), (256, 1, 129), (8192, 1, 8192)]
    assert (seen.events, seen.threads, seen.events_by_thread, seen.remote_frees) == (5, 2, [3, 2], 1)
    assert (seen.peak_bytes, seen.peak_at_event, seen.peak_blocks) == (8321, 2, 2)
    assert (seen.left_bytes, seen.left_blocks) == (8192, 2)
    assert seen.lifetimes == [(256, 1)]
    assert seen.missing == {"unknown_frees": 3}
    assert seen.seconds == 256e-9
    assert json.loads(json.dumps(seen.as_dict()))["peak_bytes"] == 8321


def test_counts_add_up() -> None:
    made, said = random_events(500, threads=4)
    seen = statistics(Trace("t", made, said))
    assert sum(sum(counts.values()) for counts in seen.operations.values()) == sum(seen.events_by_thread) == 500
    asked = [counts for counts in seen.operations.values()]
    frees = sum(counts["free"] for counts in asked)
    assert sum(count for _, count, _ in seen.sizes) == 500 - frees
    assert sum(count for _, count in seen.lifetimes) == frees
    assert sum(amount for _, _, amount in seen.sizes) == int(made["size"].sum())


def test_nothing() -> None:
    seen = statistics(Trace("t", events(), facts(0, 0)))
    assert (seen.events, seen.operations, seen.lifetimes, seen.seconds) == (0, {}, [], 0.0)
