"""burst: response times, not the time of the wall: what is late waits, and that is in the row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks import some

from realalloc.lab.measure import measure
from realalloc.lab.natives import find_natives
from realalloc.lab.peers import Peer, jitted_peers, native
from realalloc.lab.workloads import burst
from realalloc.lab.workloads.scope import Scope

GLIBC, _ = find_natives("glibc")


def test_a_row_has_response_times() -> None:
    case = next(iter(burst.cases(Scope(0.002))))
    with jitted_peers(GLIBC, with_ours=False) as peers:
        row = measure(case, peers, 2)
    for entry in row.entries:
        response = entry.latency("response")
        assert response is not None and response.in_every == 1
        assert response.count == 3 * case.number  # of the timed turns
        assert min(entry.rounds_ns) > 0
    assert row.operation == "response" and row.harness_ns is None


def test_ns_is_the_mean_of_what_was_recorded() -> None:
    case = next(iter(burst.cases(Scope(0.002))))
    peer: Peer = native(GLIBC[0])
    turn = case.make(peer)
    turn.run(case.number)
    assert turn.cost_ns is not None
    cost = turn.cost_ns()
    (response,) = peer.latencies()
    turn.close()
    assert response.count == case.number
    mean = sum(ns * count for ns, count in response.buckets) / response.count
    assert mean == pytest.approx(cost, rel=0.02)


def test_requests_that_are_due_at_once_wait_for_each_other() -> None:
    case = next(iter(burst.cases(Scope(0.002))))
    peer = native(GLIBC[0])
    number = some(200, 50)
    given = {**case.make.keywords, "due_ns": np.zeros(number), "sizes": case.make.keywords["sizes"][:number]}
    turn = dataclasses.replace(case, make=lambda p: case.make.func(p, **given)).make(peer)
    for _ in range(5):
        turn.run(number)
    (response,) = peer.latencies()
    turn.close()
    assert response.at(100) > 5 * response.at(1)  # the last one waited for all before it
