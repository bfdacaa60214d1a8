"""Threads of workloads: all are waited for, whatever one does, and what one raises is raised where it was asked for."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from realalloc.lab.crowd import Workers, crowd
from realalloc.lab.measure import WorkDiffers


def _slow(done: list[str]) -> int:
    time.sleep(0.2)
    done.append("slow")
    return 7


def test_workers_keep_their_threads() -> None:
    with Workers(2) as workers:
        first, again = ([], [])
        for seen in (first, again):
            jobs = [lambda k=k, seen=seen: seen.append((k, threading.get_ident())) or k for k in (0, 1)]
            assert workers.run(*jobs) == [0, 1]
        assert sorted(first) == sorted(again)
        assert len({ident for _, ident in first}) == 2
        assert workers.run(lambda: 5) == [5]
        alive = threading.active_count()
    assert threading.active_count() == alive - 2


def test_more_jobs_than_workers_are_refused() -> None:
    with Workers(1) as workers, pytest.raises(ValueError, match="2 jobs for 1 threads"):
        workers.run(lambda: 1, lambda: 2)


def _of_workers(*jobs):
    with Workers(len(jobs)) as workers:
        return workers.run(*jobs)


def _of_crowd(*jobs):
    return crowd(jobs)


@pytest.mark.parametrize("run", [_of_workers, _of_crowd])
@pytest.mark.parametrize(
    ("bad", "error"), [(lambda: -1, MemoryError), (lambda: -2, WorkDiffers), (lambda: 1 // 0, ZeroDivisionError)]
)
def test_who_fails_is_raised_when_all_are_done(run, bad, error) -> None:
    done: list[str] = []
    with pytest.raises(error):
        run(bad, lambda: _slow(done))
    assert done == ["slow"]


def test_workers_are_waited_for_before_anything_is_raised() -> None:
    done: list[str] = []
    with Workers(2) as workers:
        with pytest.raises(MemoryError):
            workers.run(lambda: -1, lambda: _slow(done))
        assert done == ["slow"]


@pytest.mark.parametrize("fresh", [False, True])
def test_ctrl_c_waits_for_the_threads(fresh: bool) -> None:
    done: list[str] = []

    def interrupt() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 1

    with Workers(2) as workers:
        jobs = (interrupt, lambda: _slow(done))
        with pytest.raises(KeyboardInterrupt):
            crowd(jobs) if fresh else workers.run(*jobs)
            time.sleep(5)  # the signal is on its way
        assert done == ["slow"]


def test_a_crowd_is_fresh_threads() -> None:
    here = threading.active_count()
    seen: set[int] = set()
    gate = threading.Barrier(3)

    def job(k: int) -> int:
        gate.wait(60)
        seen.add(threading.get_native_id())
        return k

    assert crowd([lambda k=k: job(k) for k in range(3)]) == [0, 1, 2]
    assert len(seen) == 3 and threading.get_native_id() not in seen
    assert threading.active_count() == here
    assert crowd([]) == []


def test_threads_are_spread_over_processors_and_this_one_stays_free() -> None:
    mine = os.sched_getaffinity(0)
    found: dict[int, set[int]] = {}
    crowd([lambda k=k: found.setdefault(k, os.sched_getaffinity(0)) and 0 for k in range(2)])
    assert all(len(cpus) == 1 and cpus <= mine for cpus in found.values())
    assert len(found[0] | found[1]) == min(2, len(mine))
    assert os.sched_getaffinity(0) == mine
