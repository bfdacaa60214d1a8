"""Who waits for whom: the order on every slot is kept, however threads are interleaved, and nobody waits for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest
from traces import events, facts, random_events

from realalloc.lab.trace import schedule as module
from realalloc.lab.trace.format import FREE, REALLOC
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.schedule import Schedule, schedule


def interleaved(plan: Schedule, dice: random.Random) -> list[tuple[int, int]]:
    """Run threads at random, a step at a time, as the loops would; return (slot, op) as they happened."""
    turns = np.zeros(plan.slots + 1, np.int64)
    at = [0] * len(plan.parts)
    done: list[tuple[int, int]] = []
    while len(done) < plan.events:
        ready = [
            t
            for t, part in enumerate(plan.parts)
            if at[t] < len(part.ops) and turns[part.slots[at[t]]] >= part.waits[at[t]]
        ]
        assert ready, "everybody waits"
        t = dice.choice(ready)
        part, k = plan.parts[t], at[t]
        done.append((int(part.slots[k]), int(part.ops[k])))
        if part.posts[k]:
            turns[part.slots[k]] = part.posts[k]
        at[t] += 1
    return done


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_interleaving_keeps_every_slot(seed: int, threads: int) -> None:
    made, said = random_events(400, threads, seed, most=8)
    plan = schedule(Trace("t", made, said))
    held: set[int] = set()
    for slot, op in interleaved(plan, random.Random(seed)):
        assert (slot in held) == (op in (FREE, REALLOC))
        (held.discard if op == FREE else held.add)(slot)
    for thread, part in enumerate(plan.parts):
        mine = made[made["thread"] == thread]
        assert part.slots.tolist() == mine["slot"].tolist()
        assert part.ops.tolist() == mine["op"].tolist()


def test_one_thread_waits_for_nobody() -> None:
    plan = schedule(Trace("t", *random_events(200)))
    assert plan.handovers == 0
    assert not plan.parts[0].waits.any() and not plan.parts[0].posts.any()


def test_numbers_of_hand_overs() -> None:
    made = events(("malloc", 0, 1, 10), ("free", 1, 1), ("malloc", 1, 1, 4), ("realloc", 0, 1, 20), ("malloc", 0, 0, 1))
    plan = schedule(Trace("t", made, facts(2, 2)))
    first, second = plan.parts
    assert (first.posts.tolist(), first.waits.tolist()) == ([1, 0, 0], [0, 2, 0])
    assert (second.posts.tolist(), second.waits.tolist()) == ([0, 2], [1, 0])
    assert first.sizes.tolist() == [10, 20, 8]  # the first 8 bytes are written
    assert plan.handovers == 2


def test_more_threads_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_THREADS", 3)
    plan = schedule(Trace("t", *random_events(300, threads=10, most=8)))
    assert len(plan.parts) == 3
    interleaved(plan, random.Random(1))


def test_nothing() -> None:
    plan = schedule(Trace("t", events(), facts(0, 0)))
    assert (plan.events, len(plan.parts), plan.handovers) == (0, 1, 0)
