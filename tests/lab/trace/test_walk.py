"""The walk: what is live when, lifetimes, and events that cannot have happened."""

from __future__ import annotations

import pytest
from traces import events, live_after, random_events

from realalloc.lab.trace.walk import ALREADY_LIVE, NEGATIVE, NOT_LIVE, walk


def test_books() -> None:
    made = events(
        ("malloc", 0, 0, 100), ("malloc", 0, 1, 50), ("realloc", 0, 0, 30), ("free", 1, 1), ("calloc", 0, 1, 10), ("free", 0, 0)
    )
    walked = walk(made, 2)
    assert walked.status is None
    assert (walked.peak_bytes, walked.peak_at, walked.peak_blocks) == (150, 1, 2)
    assert (walked.left_bytes, walked.left_blocks, walked.remote_frees) == (10, 1, 1)
    assert walked.lifetimes_ns.nonzero()[0].tolist() == [8, 9]  # 128 ns, 320 ns
    assert walked.lifetimes_events.nonzero()[0].tolist() == [2, 3]  # 2 events, 5 events


@pytest.mark.parametrize(
    ("rows", "problem", "event"),
    [
        ([("malloc", 0, 0, 1), ("calloc", 0, 0, 1)], ALREADY_LIVE, 1),
        ([("free", 0, 0)], NOT_LIVE, 0),
        ([("malloc", 0, 0, 1), ("free", 0, 0), ("realloc", 0, 0, 4)], NOT_LIVE, 2),
        ([("malloc", 0, 0, -5)], NEGATIVE, 0),
    ],
)
def test_what_cannot_be(rows: list[tuple[object, ...]], problem: int, event: int) -> None:
    assert walk(events(*rows), 1).status == (problem, event)


def test_a_model() -> None:
    made, facts = random_events(600, threads=3, seed=5)
    live = live_after(made)
    walked = walk(made, facts["slots"])
    assert (walked.left_bytes, walked.left_blocks) == (sum(live.values()), len(live))
    running = [sum(live_after(made[: k + 1]).values()) for k in range(0, len(made), 10)]
    assert walked.peak_bytes >= max(running)
    assert walked.peak_bytes == sum(live_after(made[: walked.peak_at + 1]).values())
