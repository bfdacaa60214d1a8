"""A trace as turns: every peer does the same work, all bytes are written, threads hand over, all is freed."""

from __future__ import annotations

import numpy as np
import pytest
from checks import some
from traces import events, facts, random_events

import realalloc as ra
from realalloc.arena import MAX_BYTES
from realalloc.lab.loops.layers import CHECKED
from realalloc.lab.measure import measure
from realalloc.lab.natives import find_natives
from realalloc.lab.peers import jitted_peers, nobody, ours
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.rounds import Rounds, case_of, reserve_bytes
from realalloc.lab.trace.schedule import schedule


def made(threads: int = 1, count: int | None = None, seed: int = 1) -> Trace:
    """Make a trace at random."""
    return Trace("t", *random_events(count or some(3000, 200), threads, seed))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row(threads: int) -> None:
    natives, _ = find_natives("glibc")
    case = case_of(made(threads))
    with jitted_peers(natives) as peers:
        row = measure(case, peers, 2, harness=nobody())
    assert (row.name, row.operation, row.parameters["threads"]) == ("replay t", "event", threads)
    assert {entry.peer for entry in row.entries} == {"realalloc", "glibc"}
    assert len({entry.checksum for entry in row.entries}) == 1
    for entry in row.entries:
        assert {"alloc", "free", "realloc"} == {latency.operation for latency in entry.latencies}


def test_all_bytes_are_written_and_all_is_freed() -> None:
    trace = made(2)
    with ra.Arena("64MiB") as arena:
        rounds = Rounds(ours(arena.words), schedule(trace), "replay_whole")
        for _ in range(2):
            assert rounds.run(0) == int(np.maximum(trace.events["size"], 8)[trace.events["op"] != 3].sum())
            rounds.finish()
            assert arena.stats().live_objects == 0
        arena.validate()


def test_reallocations_keep_what_was_written() -> None:
    """The layer that proves the work reads the first word after each reallocation and at each free."""
    made = events(("malloc", 0, 0, 16), ("realloc", 0, 0, 100_000), ("realloc", 0, 0, 8), ("free", 0, 0))
    with ra.Arena("16MiB") as arena:
        peer = ours(arena.words).layered(CHECKED)
        rounds = Rounds(peer, schedule(Trace("t", made, facts())))
        assert rounds.run(0) == 16 + 100_000 + 8
        rounds.finish()
        assert peer.how()[1].tolist()[:3] == [1, 16 + 100_000 + 8, 1]


def test_an_allocation_that_fails_ends_every_thread() -> None:
    rows = [("malloc", 0, 0, 64 << 20), ("free", 1, 0), ("malloc", 1, 0, 8), ("free", 2, 0)]
    trace = Trace("t", events(*rows), facts(1, 3))
    with ra.Arena("16MiB") as arena:
        rounds = Rounds(ours(arena.words), schedule(trace))
        with pytest.raises(MemoryError):
            rounds.run(0)
        rounds.finish()


def test_an_arena_is_as_large_as_the_trace_needs() -> None:
    assert reserve_bytes(made()) == 1 << 30
    large = Trace("t", events(("malloc", 0, 0, 3 << 30)), facts())
    assert reserve_bytes(large) == 12 << 30
    assert reserve_bytes(Trace("t", events(("malloc", 0, 0, 1 << 60)), facts())) == MAX_BYTES
