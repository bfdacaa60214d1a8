"""``realalloc bench``: what it lists, refuses, writes and prints; and that Ctrl-C keeps what was measured."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import TIMEOUT, is_plain, run, start
from support import JIT

from realalloc.lab import machine, suite
from realalloc.lab.measure import WorkDiffers
from realalloc.lab.results import Report
from realalloc.lab.suite import peer_names, workload_names

TINY = ("bench", "pool", "--quick", "--rounds", "2", "--peer", "deque", "--peer", "SimpleQueue", "--no-latency")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "QUICK", 0.001)
    monkeypatch.setattr(machine, "noise", lambda: None)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "bench", "--list")
    assert (code, err) == (0, "") and is_plain(out)
    lines = [line.strip() for line in out.splitlines()]
    for name in (*workload_names(), *peer_names()):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert " here" in out


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *TINY)
    assert code == 0 and is_plain(out)
    assert "pool 4 KiB: ns per take + give back" in out and "deque" in out and "SimpleQueue" in out
    assert err == "pool 4 KiB: 1 rows\n"


NOWHERE = "/no/such/directory/file"
BAD = [
    (("paris",), "unknown workload 'paris'; there are: view, "),
    (("--peer", "glibs"), "unknown peer 'glibs'; there are: realalloc, "),
    (("--rounds", "-1"), "--rounds must be at least 1"),
    (("--rounds", "0"), "--rounds must be at least 1"),
    (("--rounds", "x"), "--rounds must be a whole number, not 'x'"),
    (("--rounds", "1001"), "1000"),
    (("--seed", "0"), "--seed"),
    (("--threads", "65"), "64"),
    (("--view", "C"), "'C'"),
    (("--json", NOWHERE), "/no/such/directory"),
    (("--csv", NOWHERE), "/no/such/directory"),
    (("--json", "/"), "directory"),
    (("--json", "-", "--csv", "-"), "json and csv cannot both go to stdout"),
    (("--html", "-"), "html cannot go to stdout"),
    (("view", "--view", "jitted"), "nothing is left to measure"),
    (("pair", "--peer", "bytearray"), "nothing is left to measure"),
    (("--nothing",), "--nothing"),
]


@pytest.mark.parametrize(("argv", "said"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_measured(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.Suite, "run", lambda *_: pytest.fail("something was measured"))
    code, out, err = run(capsys, "bench", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("realalloc") and "error: " in err and said in err
    assert err.count("\n") == 1 and is_plain(err)


def test_one_bad_file_of_several_leaves_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *TINY, "--csv", str(tmp_path / "a.csv"), "--json", NOWHERE)
    assert code == 2 and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *TINY, "--json", "-")
    report = Report.from_dict(json.loads(out))
    assert (code, err) == (0, "")
    assert [entry.peer for entry in report.rows[0].entries] == ["deque", "SimpleQueue"]
    assert report.options["rounds"] == 2 and not report.interrupted


def test_csv_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *TINY, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (0, "")
    assert {row["peer"] for row in rows} == {"deque", "SimpleQueue"} and {row["workload"] for row in rows} == {"pool"}


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "html", "png")}
    code, out, err = run(capsys, *TINY, *[word for name, path in files.items() for word in (f"--{name}", str(path))])
    assert code == 0 and "pool 4 KiB" in out
    assert err.splitlines()[-4:] == [f"wrote {path}" for path in files.values()]
    assert all(path.stat().st_size > 100 for path in files.values())
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    assert Report.from_dict(json.loads(files["json"].read_text())).rows[0].name == "pool 4 KiB"


def test_options_reach_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (*TINY, "--seed", "7", "--threads", "1", "--view", "python", "--no-rss", "--json", "-")
    options = json.loads(run(capsys, *argv)[1])["options"]
    wanted = {"seed": 7, "threads": 1, "views": ["python"], "rss": False, "latency": False, "quick": True, "rounds": 2}
    assert {key: options[key] for key in wanted} == wanted
    assert options["workloads"] == ["pool"] and options["peers"] == ["deque", "SimpleQueue"]


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(suite, "measure", fail)


def test_a_row_that_could_not_be_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, WorkDiffers("it was not the same"))
    code, out, _ = run(capsys, *TINY)
    assert code == 1 and "pool 4 KiB was not measured: it was not the same" in " ".join(out.split())


def test_ctrl_c_before_the_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    code, out, _ = run(capsys, *TINY, "--json", str(tmp_path / "a.json"))
    assert code == 130 and "Traceback" not in out
    report = Report.from_dict(json.loads((tmp_path / "a.json").read_text()))
    assert report.interrupted and report.rows == []


def test_what_was_measured_is_printed_even_if_it_cannot_be_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "there"
    place.mkdir()
    real = suite.Suite.run

    def removed(self: suite.Suite, tell: Any) -> Report:
        report = real(self, tell)
        place.rmdir()
        return report

    monkeypatch.setattr(suite.Suite, "run", removed)
    code, out, err = run(capsys, *TINY, "--json", str(place / "a.json"))
    assert code == 2 and str(place) in err
    assert "pool 4 KiB: ns per" in out


def _interrupt_at(stage: str, argv: tuple[str, ...], path: Path, seconds: float = 0.3) -> tuple[int, str, str, Report]:
    """Start a bench, press Ctrl-C some time after a stage is named."""
    process = start("bench", *argv, "--no-latency", "--rounds", "1000", "--json", str(path))
    assert process.stderr is not None
    seen = ""
    while stage not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, seen + err, Report.from_dict(json.loads(path.read_text()))


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    argv = ("pool", "arrays", "--quick", "--view", "python", "--peer", "deque", "--peer", "mmap")
    code, out, err, report = _interrupt_at("arrays 16 x 64 KiB", argv, tmp_path / "a.json")
    assert code == 130, err
    assert [row.name for row in report.rows] == ["pool 4 KiB"] and report.interrupted
    assert "pool 4 KiB: ns per" in out and "Traceback" not in out + err
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not JIT, reason="a turn takes minutes without jit")
@pytest.mark.parametrize("workload", ["larson", "handover"])
def test_ctrl_c_while_threads_are_in_machine_code(workload: str, tmp_path: Path) -> None:
    argv = (workload, "--view", "jitted", "--peer", "glibc", "--peer", "realalloc")
    code, out, err, report = _interrupt_at(f"{workload} ", argv, tmp_path / "a.json", 6)
    assert code == 130, err
    assert report.interrupted and all("noisy" in warning for warning in report.warnings)
    assert "Traceback" not in out + err
