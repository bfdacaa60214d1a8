"""How a row is measured: turns, rounds, proof that all did the same, and that every turn is closed whatever happens."""

from __future__ import annotations

import dataclasses
import gc
import signal
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from realalloc.lab import counters, measure
from realalloc.lab.latencies import Latency
from realalloc.lab.loops.crowds import CORRUPT
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.measure import (
    LEAST_NS,
    TIMED_TURNS,
    Case,
    Turn,
    WorkDiffers,
    check,
    sample,
    take_turns,
    without_collector,
)
from realalloc.lab.results import Counters


class Fake:
    """A contestant that writes down what is done with it."""

    def __init__(self, name: str, log: list[tuple[Any, ...]], layer: str = "", **how: Any) -> None:
        self.name, self.log, self.layer, self.how = name, log, layer, how

    def layered(self, layer: str) -> Fake:
        return Fake(self.name, self.log, layer, **self.how)

    def latencies(self) -> tuple[Latency, ...]:
        return (Latency(f"of {self.layer}", ((1.0, 1),), 0.0),)

    def checksum(self) -> int:
        assert self.layer == CHECKED
        assert self.log[-1] == (self.name, CHECKED, "close")  # what is freed at the end counts
        return self.how.get("checksum", 42)

    def step(self, what: str) -> None:
        self.log.append((self.name, self.layer, what))
        failure = self.how.get(what)
        if failure is not None and self.layer == self.how.get("layer", PLAIN):
            raise failure


def _make(who: Fake) -> Turn:
    who.step("make")

    def run(number: int) -> int:
        who.step("run")
        time.sleep(who.how.get("seconds", 0))
        return who.how.get("returned", number)

    def step(what):
        return lambda: who.step(what)

    return Turn(run, step("prepare"), step("teardown"), step("close"), who.how.get("cost_ns"))


CASE = Case("fake", "case", 10, _make, {"seed": 1})


def _log(log, name, layer):
    return [what for who, its, what in log if (who, its) == (name, layer)]


def _balanced(log) -> None:
    for name, layer in {(name, layer) for name, layer, _ in log}:
        counts = Counter(_log(log, name, layer))
        made = counts["make"] - (_log(log, name, layer)[-1] == "make")  # one that raised was not begun
        assert counts["close"] == made, (name, layer)
        assert counts["prepare"] == counts["teardown"], (name, layer)
        if counts["close"]:
            assert _log(log, name, layer)[-1] == "close"


def test_a_row() -> None:
    log: list[tuple[Any, ...]] = []
    rounds: list[int] = []
    everybody = [Fake(name, log) for name in "abc"]
    row = measure.measure(CASE, everybody, 5, harness=Fake("alone", log), on_round=rounds.append)
    assert (row.workload, row.case, row.operations, row.view) == ("fake", "case", 10, "jitted")
    assert row.parameters == {"seed": 1, "threads": 1}
    assert [entry.peer for entry in row.entries] == ["a", "b", "c"]
    assert rounds == [1, 2, 3, 4, 5]
    for entry in row.entries:
        assert len(entry.rounds_ns) == 5 and all(ns > 0 for ns in entry.rounds_ns)
        assert entry.checksum == 42
        assert [found.operation for found in entry.latencies] == ["of timed"]
    assert row.harness_ns is not None and row.harness_ns > 0
    _balanced(log)
    turn = ["prepare", "run", "teardown"]
    for name in "abc":
        assert _log(log, name, PLAIN) == ["make", *turn * 6, "close"]  # the first warms up
        assert _log(log, name, CHECKED) == ["make", *turn, "close"]
        assert _log(log, name, TIMED) == ["make", *turn * TIMED_TURNS, "close"]
    assert _log(log, "alone", PLAIN) == ["make", *turn * 6, "close"]
    assert {layer for name, layer, _ in log if name == "alone"} == {PLAIN}


def test_every_contestant_has_every_round_in_another_order() -> None:
    log: list[tuple[Any, ...]] = []
    turns = {name: _make(Fake(name, log, PLAIN)) for name in "abcd"}
    seen = take_turns(turns, 10, 20)
    ran = [name for name, _, what in log if what == "run"]
    rounds = ["".join(ran[k : k + 4]) for k in range(0, len(ran), 4)]
    assert len(rounds) == 21 and all(sorted(round_) == list("abcd") for round_ in rounds)
    assert len(set(rounds)) > 8 and len({round_[0] for round_ in rounds}) == 4
    assert all(len(found.rounds) == len(found.counted) == len(found.returned) == 20 for found in seen.values())
    log.clear()
    take_turns(turns, 10, 20)
    assert ran == [name for name, _, what in log if what == "run"]  # the same dice
    log.clear()
    take_turns(turns, 10, 20, seed=2)
    assert ran != [name for name, _, what in log if what == "run"]


@pytest.mark.parametrize(("latency", "timed"), [(False, True), (True, False)])
def test_latencies_are_left_out(latency: bool, timed: bool) -> None:
    log: list[tuple[Any, ...]] = []
    case = dataclasses.replace(CASE, timed=timed)
    row = measure.measure(case, [Fake("a", log)], 2, latency=latency)
    assert row.entries[0].latencies == () and TIMED not in {layer for _, layer, _ in log}
    assert row.harness_ns is None


def test_a_case_without_a_harness() -> None:
    log: list[tuple[Any, ...]] = []
    row = measure.measure(dataclasses.replace(CASE, harness=False), [Fake("a", log)], 2, harness=Fake("alone", log))
    assert row.harness_ns is None and {name for name, _, _ in log} == {"a"}


def test_what_run_returns_proves_it_where_contents_do_not() -> None:
    log: list[tuple[Any, ...]] = []
    case = dataclasses.replace(CASE, content=False)
    row = measure.measure(case, [Fake("a", log, returned=7), Fake("b", log, returned=7)], 2)
    assert [entry.checksum for entry in row.entries] == [7, 7]
    assert CHECKED not in {layer for _, layer, _ in log}


@pytest.mark.parametrize("cheat", [{"checksum": 43}, {"returned": 9}])
@pytest.mark.parametrize("content", [True, False])
def test_who_cheats_is_found(cheat: dict[str, int], content: bool) -> None:
    log: list[tuple[Any, ...]] = []
    case = dataclasses.replace(CASE, content=content)
    everybody = [Fake("a", log), Fake("b", log, **cheat)]
    if not content and "checksum" in cheat:
        measure.measure(case, everybody, 2)
        return
    with pytest.raises(WorkDiffers, match=r"fake case: not the same work: .*a.*b"):
        measure.measure(case, everybody, 2)
    _balanced(log)


def test_who_cheats_in_one_round_only_is_found() -> None:
    log: list[tuple[Any, ...]] = []
    answers = iter([10, 10, 10, 9])

    def make(who: Fake) -> Turn:
        turn = _make(who)
        return dataclasses.replace(turn, run=lambda number: next(answers) if who.name == "b" else number)

    case = dataclasses.replace(CASE, make=make, content=False)
    with pytest.raises(WorkDiffers):
        measure.measure(case, [Fake("a", log), Fake("b", log)], 3)


def test_numbers_are_compared_not_their_types() -> None:
    case = dataclasses.replace(CASE, content=False)
    row = measure.measure(case, [Fake("a", [], returned=7), Fake("b", [], returned=np.int64(7))], 2)
    assert [type(entry.checksum) for entry in row.entries] == [int, int]


def test_the_harness_may_return_what_it_likes() -> None:
    log: list[tuple[Any, ...]] = []
    measure.measure(CASE, [Fake("a", log)], 2, harness=Fake("alone", log, returned=-99))


@pytest.mark.parametrize("layer", [PLAIN, CHECKED, TIMED])
@pytest.mark.parametrize("what", ["make", "prepare", "run", "teardown"])
@pytest.mark.parametrize("failure", [MemoryError("none"), KeyboardInterrupt(), ZeroDivisionError()])
def test_every_turn_is_closed_when_the_second_one_fails(layer: str, what: str, failure: BaseException) -> None:
    log: list[tuple[Any, ...]] = []
    everybody = [Fake("a", log), Fake("b", log, layer=layer, **{what: failure}), Fake("c", log)]
    enabled = gc.isenabled()
    with pytest.raises(type(failure)):
        measure.measure(CASE, everybody, 3, harness=Fake("alone", log))
    assert gc.isenabled() == enabled
    _balanced(log)


def test_a_close_that_fails_does_not_keep_others_open() -> None:
    log: list[tuple[Any, ...]] = []
    everybody = [Fake("a", log), Fake("b", log, close=ValueError("not closed")), Fake("c", log)]
    with pytest.raises(ValueError, match="not closed"):
        measure.measure(CASE, everybody, 3)
    _balanced(log)


def test_ctrl_c_in_the_middle_of_a_turn_waits_for_its_end() -> None:
    log: list[tuple[Any, ...]] = []

    def make(who: Fake) -> Turn:
        turn = _make(who)

        def run(number: int) -> int:
            if (who.name, who.layer) == ("b", PLAIN):
                signal.raise_signal(signal.SIGINT)
            who.step("over")
            return number

        return dataclasses.replace(turn, run=run)

    with pytest.raises(KeyboardInterrupt):
        measure.measure(dataclasses.replace(CASE, make=make), [Fake("a", log), Fake("b", log)], 3)
    assert _log(log, "b", PLAIN) == ["make", "prepare", "over", "teardown", "close"]
    _balanced(log)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_channel_is_taken_off_round_by_round() -> None:
    costs = {"a": iter([0.0, 100.0, 230.0, 70.0]), "alone": iter([0.0, 40.0, 30.0, 90.0])}
    log: list[tuple[Any, ...]] = []

    def fakes():
        return {name: Fake(name, log, cost_ns=lambda name=name: next(costs[name])) for name in costs}

    made = fakes()
    case = dataclasses.replace(CASE, subtracted=True, content=False, timed=False)
    row = measure.measure(case, [made["a"]], 3, harness=made["alone"])
    assert row.entries[0].rounds_ns == (60.0, 200.0, LEAST_NS)  # nothing is left but noise
    assert row.harness_ns == 40.0


def test_without_subtraction_the_harness_stays_in() -> None:
    log: list[tuple[Any, ...]] = []
    fakes = [Fake(name, log, cost_ns=lambda ns=ns: ns) for name, ns in (("a", 100.0), ("alone", 40.0))]
    case = dataclasses.replace(CASE, content=False, timed=False)
    row = measure.measure(case, fakes[:1], 3, harness=fakes[1])
    assert row.entries[0].rounds_ns == (100.0,) * 3 and row.harness_ns == 40.0


def test_time_is_divided_by_operations_and_what_is_off_the_clock_is_not_in_it() -> None:
    log: list[tuple[Any, ...]] = []

    def slow() -> None:
        time.sleep(0.05)

    turn = Turn(lambda _number: time.sleep(0.002) or 1, slow, slow)
    found = sample({"a": turn, "b": _make(Fake("b", log, PLAIN))}, 4, 2)
    assert all(500_000 <= ns for ns in found["a"])
    assert min(found["a"]) < 50_000_000 / 4
    assert _log(log, "b", PLAIN)[-1] == "close"


def test_counters_are_those_of_the_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([Counters(10 * k, 0, k, 0, None) for k in range(100)])
    monkeypatch.setattr(counters, "now", lambda: next(told))
    case = dataclasses.replace(CASE, content=False, timed=False)
    row = measure.measure(case, [Fake("a", [])], 4)
    assert row.entries[0].counters == Counters(40, 0, 4, 0, None)  # what is not told is not 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="x"), without_collector():
            assert not gc.isenabled()
            raise ValueError("x")
        assert gc.isenabled() == enabled
        states = []
        turn = Turn(lambda number: states.append(gc.isenabled()) or number)
        sample({"a": turn}, 1, 2)
        assert states == [False] * 3 and gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_check() -> None:
    assert check(0) == 0 and check(7) == 7
    with pytest.raises(MemoryError):
        check(-1)
    with pytest.raises(WorkDiffers):
        check(CORRUPT)
