"""Extra processes: told, heard, and waited for, however they end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stressed import fork_processes

from realalloc.lab.stress import Options
from realalloc.lab.stress.children import Child, Children, child_seed

OPTIONS = Options(seconds=60.0, threads=1, arena=8 << 20, sizes="log:8..1KiB", abuse="none", mix="kmalloc=9,lease=1")


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """Make a module that pretends to be a child."""
    (tmp_path / "fake_stress_child.py").write_text(f"import json, os, sys, time\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_stress_child"


def test_a_child_runs_until_it_is_told_to_stop_and_answers() -> None:
    with Children(OPTIONS.but(processes=1)) as children:
        children.wait_ready()
        children.go()
        assert children.running()
        children.stop()
        (found,) = children.end()
        assert children.lost == []
    assert found.name == "process 1" and found.seed == child_seed(OPTIONS.seed, 1)
    assert found.ok and found.seconds < 50 and found.taken == found.freed
    assert found.series["memory"].columns["rss"]


def test_a_child_that_never_ran_answers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_processes(monkeypatch)
    child = Child("process 1", OPTIONS)
    assert child.ready.wait(300)
    child.tell("stop")
    assert child.finish(120) is None
    assert child.result is not None and child.result.verified == 0


def test_a_child_that_dies_is_lost_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake(tmp_path, monkeypatch, "print('{\"half')\nprint('it hurts', file=sys.stderr)\nos._exit(9)")
    child = Child("process 1", OPTIONS, module)
    assert child.ready.wait(60)
    reason = child.finish(60)
    assert reason == "process 1: exit 9; it hurts"


def test_a_child_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("process 1", OPTIONS, fake(tmp_path, monkeypatch, "time.sleep(300)"))
    reason = child.finish(0.5)
    assert reason is not None and "killed after 0.5 s" in reason and "it said nothing" in reason


def test_a_result_of_one_that_then_failed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake(tmp_path, monkeypatch, "print(json.dumps({'ready': True}))\nsys.exit(3)")
    child = Child("process 1", OPTIONS, module)
    assert child.ready.wait(60)
    assert "exit 3" in str(child.finish(60)) and child.result is None


def test_nobody_is_left_behind_by_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []
    with pytest.raises(KeyError), Children(OPTIONS.but(processes=2)) as children:
        pids = [child._process.pid for child in children.all]
        raise KeyError
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_seeds_are_apart() -> None:
    seeds = [child_seed(seed, number) for seed in (0, 1, (1 << 48) - 1) for number in (1, 2, 3)]
    assert len(set(seeds)) == 9 and all(Options(seed=seed) for seed in seeds)
    assert sys.maxsize > max(seeds)
