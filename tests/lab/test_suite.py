"""A whole benchmark: what it refuses, whom and what it chooses, and that a row that fails or Ctrl-C costs that row alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from checks import some

from realalloc.lab import machine, pythons, resident, suite, workloads
from realalloc.lab.measure import Case, Turn, WorkDiffers
from realalloc.lab.peers import OURS
from realalloc.lab.pythons import CannotTakePart
from realalloc.lab.results import JITTED, PYTHON, Report
from realalloc.lab.suite import Options, Suite, peer_names, workload_names
from realalloc.lab.workloads import QUICK_CASES, fragments

BASE = Options(peers=(OURS, "glibc", "bytearray"), rounds=2, scale=0.0002, latency=False, rss=False)


def _with(**changes: Any) -> Options:
    return dataclasses.replace(BASE, **changes)


def _run(**changes: Any) -> tuple[Report, Suite]:
    with Suite(_with(**changes)) as made:
        return made.run(), made


def _names(**changes: Any) -> list[str]:
    with Suite(_with(**changes)) as made:
        return [case.name for case in made.cases]


@pytest.mark.parametrize(
    ("wrong", "names"), [({"workloads": ("pair", "paris")}, workload_names), ({"peers": ("glibs",)}, peer_names)]
)
def test_unknown_names_are_refused_with_those_there_are(wrong: dict[str, Any], names: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown (workload 'paris'|peer 'glibs'); there are: ") as info:
        Suite(_with(**wrong))
    assert str(info.value).endswith(", ".join(names()))


def test_names() -> None:
    assert set(workload_names()) == {workload.NAME for workload in workloads.ALL} | {"fragments"}
    for names in (workload_names(), peer_names()):
        assert len(set(names)) == len(names)
    assert {OURS, "glibc", "jemalloc", "mmap", "deque"} <= set(peer_names())


@pytest.mark.parametrize(
    "nothing",
    [
        {"workloads": ("view",), "views": (JITTED,)},
        {"workloads": ("pair",), "views": (PYTHON,)},
        {"workloads": ("handover", "cache-lines"), "threads": 1},
        {"workloads": ("pair",), "peers": ("bytearray",)},
        {"workloads": ("pool",), "peers": ("mmap", "glibc")},
        {"workloads": ("fragments",)},
        {"workloads": ("fragments",), "rss": True, "peers": ("mmap",)},
    ],
)
def test_nothing_to_measure_is_refused(nothing: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing is left to measure"):
        Suite(_with(**nothing))


def test_a_peer_that_is_not_here_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "find_natives", lambda: ([], ["jemalloc: no such file (apt: libjemalloc2)"]))
    with pytest.raises(ValueError, match=r"nothing is left to measure; jemalloc: no such file \(apt"):
        Suite(_with(peers=("jemalloc",)))


def test_quick_is_the_dozen() -> None:
    assert set(_names(quick=True)) == QUICK_CASES
    assert set(_names(quick=True, workloads=("ring",))) == {"ring as sh6bench", "ring as sh8bench"}
    with Suite(_with(quick=True, rounds=None, scale=None)) as made:
        assert made.rounds == suite.QUICK_ROUNDS and made.report.options["scale"] == 0.2
    with Suite(_with(rounds=None, scale=None)) as made:
        assert made.rounds == suite.ROUNDS and made.report.options["scale"] == 1.0


def test_views() -> None:
    for view in (PYTHON, JITTED):
        with Suite(_with(views=(view,))) as made:
            assert {case.view for case in made.cases} == {view}
    with Suite(_with(peers=("bytearray",))) as made:
        assert {case.workload for case in made.cases} == {"view", "arrays"}
    with Suite(_with(peers=("glibc",))) as made:
        assert {case.view for case in made.cases} == {JITTED}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"quick": True}, False),
        ({"views": (PYTHON,)}, False),
        ({"workloads": ("pair",)}, False),
        ({"workloads": ("fragments",)}, True),
        ({"workloads": ("fragments",), "quick": True}, True),
        ({"quick": True, "rss": True}, True),
        ({"rss": False, "workloads": ("fragments",)}, False),
    ],
)
def test_who_wants_resident_memory(changes: dict[str, Any], wanted: bool) -> None:
    assert Options(**changes).wants_rss == wanted


def test_a_report_of_some_rows() -> None:
    told: list[tuple[str, int, int]] = []
    with Suite(_with(workloads=("view", "pair"))) as made:
        report = made.run(lambda *stage: told.append(stage))
    names = [row.name for row in report.rows]
    assert names == [case.name for case in made.cases] == [stage for stage, _, _ in told]
    assert [done for _, done, _ in told] == list(range(len(names))) and {total for *_, total in told} == {len(names)}
    for row in report.rows:
        both = {OURS, "glibc"} if row.view == JITTED else {OURS, "bytearray"}
        assert {entry.peer for entry in row.entries} == both
        assert all(len(entry.rounds_ns) == 2 for entry in row.entries)
    assert not made.failed and not report.interrupted and report.skipped == []
    assert report.options["workloads"] == ("view", "pair") and report.options["rounds"] == 2
    assert report.options["seed"] == 1 and report.command == "bench" and report.machine == machine.describe()
    assert set(report.floors) == {
        "reading the cycle counter",
        "step of the cycle counter",
        "reading Python's clock",
    }
    again = Report.from_dict(json.loads(json.dumps(report.as_dict())))
    assert [row.name for row in again.rows] == names


def test_more_threads_than_processors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.os, "sched_getaffinity", lambda _pid: {0})
    with Suite(_with(threads=4)) as made:
        assert made.scope.threads == 1
        assert made.report.skipped == ["rows of 4 threads: 1 processors"]


def test_noise_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "noise", lambda: "noisy machine: very")
    report, made = _run(workloads=("pool",))
    assert report.warnings == ["noisy machine: very"] and not made.failed


FINE = Turn(lambda number: number)


def _cases(monkeypatch: pytest.MonkeyPatch, **makes: Any) -> None:
    """Let the suite have these cases alone."""
    monkeypatch.setattr(machine, "noise", lambda: None)
    made = [Case("fake", name, 3, make, content=False, timed=False) for name, make in makes.items()]
    monkeypatch.setattr(suite.workloads, "cases", lambda _scope, _only=(): iter(made))


def _raise(error: BaseException) -> Any:
    def make(_peer: Any) -> Turn:
        raise error

    return make


@pytest.mark.parametrize("error", [WorkDiffers("it differs"), MemoryError("it differs"), OSError("it differs")])
def test_a_row_that_fails_is_a_warning_and_the_others_go_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _cases(monkeypatch, before=lambda _peer: FINE, broken=_raise(error), after=lambda _peer: FINE)
    report, made = _run()
    assert [row.case for row in report.rows] == ["before", "after"]
    assert report.warnings == ["fake broken was not measured: it differs"]
    assert made.failed and not report.interrupted


def test_objects_that_are_left_cost_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(peer: Any) -> Turn:
        blocks, one = np.zeros(1, np.int64), np.zeros(1, np.int32)
        return Turn(lambda _number: peer.loops.replace(peer.how(), blocks, one, one + 64, 0, 1))

    _cases(monkeypatch, leaking=leaking, after=lambda _peer: FINE)
    report, made = _run(peers=(OURS,))
    assert [row.case for row in report.rows] == ["after"] and made.failed
    assert report.warnings == ["fake leaking was not measured: 1 objects were left behind"]


def test_ctrl_c_keeps_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    _cases(monkeypatch, before=lambda _peer: FINE, now=_raise(KeyboardInterrupt()), after=lambda _peer: FINE)
    report, made = _run(rss=True)
    assert [row.case for row in report.rows] == ["before"]
    assert report.interrupted and not made.failed and report.warnings == [] and report.resident == {}


def test_a_bug_stays_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    _cases(monkeypatch, broken=_raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError), Suite(BASE) as made:
        made.run()


def test_who_has_no_room_misses_a_row_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(peer: Any) -> Turn:
        if peer.name == "glibc":
            raise CannotTakePart("glibc", "too little of it")
        return FINE

    _cases(monkeypatch, narrow=make, wide=lambda _peer: FINE)
    report, made = _run()
    assert [(row.case, [entry.peer for entry in row.entries]) for row in report.rows] == [
        ("narrow", [OURS]),
        ("wide", [OURS, "glibc"]),
    ]
    assert report.skipped == ["glibc in fake narrow: too little of it"] and not made.failed


def test_the_pools_have_peers_of_their_own() -> None:
    report, _ = _run(workloads=("pool",), peers=(OURS, "deque", "mmap"))
    assert [{entry.peer for entry in row.entries} for row in report.rows] == [{OURS, "deque"}]
    assert {source.name for source in pythons.POOLS} >= {OURS, "deque"}


def test_resident_memory_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    peers = BASE.peers if some(1, 0) else (OURS,)
    monkeypatch.setattr(fragments, "SETS", {"400k x 16..4096": 400_000})
    with Suite(_with(workloads=("fragments",), rss=None, views=(JITTED,), scale=0.001, peers=peers)) as made:
        report = made.run(lambda *stage: told.append(stage))
    assert report.rows == [] and not made.failed, report.warnings
    ((name, series),) = report.resident.items()
    assert name == "fragments 400k x 16..4096"
    assert set(series.columns) == set(made._jitted_names)
    assert all(len(column) == len(series.seconds) for column in series.columns.values())
    assert len(told) == len(series.columns)


def test_a_child_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(request: resident.Request) -> resident.Answer:
        if request.peer == "glibc":
            raise RuntimeError(f"fragments {request.case} with glibc: exit 1: no reason given")
        return resident.Answer(5, {}, [0.0, 1.0], [5, 6])

    monkeypatch.setattr(resident, "ask", ask)
    monkeypatch.setattr(machine, "noise", lambda: None)
    report, made = _run(workloads=("fragments",), rss=True)
    assert set(report.resident) == {f"fragments {case}" for case in fragments.SETS}
    assert all(set(series.columns) == {OURS} for series in report.resident.values())
    assert made.failed and len(report.warnings) == len(fragments.SETS)
    monkeypatch.setattr(resident, "ask", lambda _request: (_ for _ in ()).throw(RuntimeError("no")))
    report, _ = _run(workloads=("fragments",), rss=True)
    assert report.resident == {}


def test_ctrl_c_in_a_child_s_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(request: resident.Request) -> resident.Answer:
        if request.case == "64 x 4M":
            raise KeyboardInterrupt
        return resident.Answer(5, {}, [0.0], [5])

    monkeypatch.setattr(resident, "ask", ask)
    report, _ = _run(workloads=("fragments",), rss=True)
    assert report.interrupted and list(report.resident) == ["fragments 400k x 16..4096"]


def test_the_workers_end_with_the_suite() -> None:
    with Suite(_with(workloads=("handover",))) as made:
        made.scope.workers.run(lambda: 1, lambda: 1)
        assert made.scope._workers
    assert not made.scope._workers
