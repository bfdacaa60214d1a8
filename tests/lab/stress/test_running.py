"""The whole: several processes, one verdict."""

from __future__ import annotations

import signal
import threading

import pytest
from checks import some
from stressed import flip, fork_processes, once

from realalloc.lab.machine import describe
from realalloc.lab.stress import Options, Tick, run
from realalloc.lab.stress.children import Child
from realalloc.lab.stress.running import Run, merge

OPTIONS = Options(seconds=1.5, threads=2, processes=1, sizes="log:8..4KiB", arena=16 << 20, hold="64")


def test_two_processes_with_every_abuse_pass() -> None:
    ticks: list[Tick] = []
    verdict = run(OPTIONS, ticks.append)
    assert verdict.ok and not verdict.failed() and verdict.lost == [] and verdict.reproduce == ""
    assert [process.name for process in verdict.processes] == ["main", "process 1"]
    assert verdict.verified == sum(process.verified for process in verdict.processes) > some(1000, 20)
    assert all(process.abuses for process in verdict.processes)
    assert ticks and verdict.machine.keys() == describe().keys()


def test_damage_in_one_process_is_blamed_on_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_processes(monkeypatch)
    verdict = run(OPTIONS.but(abuse="none"), on_round=once(flip))
    assert not verdict.ok
    assert [(name, check.name) for name, check in verdict.failed()] == [("main", "contents")]
    assert "--processes" not in verdict.reproduce and "--seed" not in verdict.reproduce
    assert "--abuse none" in verdict.reproduce and verdict.reproduce.startswith("realalloc stress --")


def test_operations_of_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_processes(monkeypatch)
    wanted = some(3000, 30)
    verdict = run(OPTIONS.but(operations=wanted, abuse="none"))
    assert verdict.ok and all(process.verified >= wanted for process in verdict.processes)


def test_ctrl_c_keeps_what_was_measured() -> None:
    with Run(OPTIONS.but(seconds=60.0, processes=0)) as made:
        timer: list[threading.Timer] = []

        def on_tick(tick: Tick) -> None:
            if not timer and tick.verified > 0:
                timer.append(threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT)))
                timer[0].start()

        verdict = made.run(on_tick)
        timer[0].join()
    assert verdict.interrupted and verdict.ok and len(verdict.processes) == 1
    assert all(process.seconds < 50 for process in verdict.processes)


def test_options_that_this_machine_cannot_do_raise_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="size must be at least"):
        run(OPTIONS.but(arena=100_000, sizes="fixed:8"))


def test_ticks_are_added_up() -> None:
    class Heard(Child):
        def __init__(self, tick: Tick | None) -> None:
            self.tick = tick

    one = Tick(1.0, 2.0, 10, 5.0, 100, 50, 20, 0.3, 1, 1, 0)
    other = Tick(0.9, 2.0, 30, 7.0, 200, 60, 30, 0.7, 2, 1, 4)
    found = merge(one, [Heard(other), Heard(None)])
    assert found == Tick(1.0, 2.0, 40, 12.0, 300, 110, 50, 0.7, 3, 2, 4)
