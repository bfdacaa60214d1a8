"""The gate of a crowd: nobody passes before all are there, and only the meeting is off the clock."""

from __future__ import annotations

import threading
import time

import pytest

from realalloc.lab import gate
from realalloc.lab.crowd import Workers, crowd
from realalloc.lab.gate import Gate
from realalloc.lab.measure import Turn, take_turns


def _in_thread(run) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_nobody_passes_before_all_are_there() -> None:
    meeting, seen = Gate(2), []
    early = _in_thread(lambda: (meeting.arrive(0), seen.append("early")))
    time.sleep(0.1)
    assert seen == [] and early.is_alive()
    seen.append("late")
    meeting.arrive(1)
    early.join()
    assert seen == ["late", "early"]


def test_who_asked_counts_from_asking_to_the_last_arrival() -> None:
    before = gate.waited_ns()
    meeting = Gate(2)
    early = _in_thread(lambda: meeting.arrive(0))
    time.sleep(0.1)
    meeting.arrive(1)
    early.join()
    time.sleep(0.1)  # the work
    begin = time.perf_counter_ns()
    meeting.passed()
    waited = gate.waited_ns() - before
    assert 100_000_000 <= waited <= begin - meeting._asked - 100_000_000


def test_an_open_gate_holds_nobody() -> None:
    meeting = Gate(2)
    early = _in_thread(lambda: meeting.arrive(0))
    meeting.open()
    early.join()
    meeting.arrive(1)


def test_a_gate_for_nobody_counts_nothing() -> None:
    before = gate.waited_ns()
    Gate(0).passed()
    assert gate.waited_ns() == before


def _of_workers(jobs):
    with Workers(max(len(jobs), 1)) as workers:
        return workers.run(*jobs)


@pytest.mark.parametrize("run", [_of_workers, crowd])
def test_jobs_begin_together(run, monkeypatch) -> None:
    begun: dict[int, int] = {}
    slow_to_come = Gate.arrive
    monkeypatch.setattr(Gate, "arrive", lambda self, k: (time.sleep(0.1 * k), slow_to_come(self, k)))
    before = gate.waited_ns()
    asked = time.perf_counter_ns()
    assert run([lambda k=k: begun.setdefault(k, time.perf_counter_ns()) and k for k in (0, 1)]) == [0, 1]
    assert min(begun.values()) - asked >= 100_000_000
    assert gate.waited_ns() - before >= 100_000_000


def test_the_meeting_is_off_the_clock_of_a_turn(monkeypatch) -> None:
    slow_to_come = Gate.arrive
    monkeypatch.setattr(Gate, "arrive", lambda self, k: (time.sleep(0.5 * k), slow_to_come(self, k)))
    seen = take_turns({"one": Turn(lambda n: sum(crowd([lambda: 1, lambda: 2])))}, 1, 1)
    assert 0 < seen["one"].rounds[0] < 500_000_000


@pytest.mark.parametrize("fresh", [False, True])
def test_a_thread_that_cannot_be_started_does_not_hold_the_others(fresh: bool, monkeypatch) -> None:
    done: list[int] = []
    start, tries = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        tries.append(thread)
        if len(tries) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    jobs = [lambda k=k: done.append(k) or k for k in (0, 1)]
    with pytest.raises(RuntimeError, match="can't start"):
        crowd(jobs) if fresh else _of_workers(jobs)
    assert done == [0]
