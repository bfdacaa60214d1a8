"""``realalloc replay``: what is in a trace, replays of it, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import child, is_plain, run
from support import JIT
from traces import events, facts, random_events

from realalloc.lab.report.files import read_json
from realalloc.lab.trace.format import write_trace


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A small trace of two threads."""
    write_trace(tmp_path / "small.trace", *random_events(300, threads=2))
    return str(tmp_path / "small.trace")


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = events(("malloc", 0, 0, 100), ("calloc", 1, 1, 8192), ("realloc", 0, 0, 200), ("free", 1, 0))
    write_trace(tmp_path / "t.trace", made, facts(2, 2, counts={"unknown_frees": 1234, "moves": 1}))
    code, out, err = run(capsys, "replay", "--info", str(tmp_path / "t.trace"))
    assert (code, err) == (0, "")
    assert is_plain(out)
    for line in (
        "trace t",
        "program",
        "live at the peak",
        "8.2 KiB, at event 2",
        "1,234",
        "numpy",
        "lifetimes",
        "to 8 KiB",
    ):
        assert line in out, line
    assert "left out: frees of blocks from before" in out and "moves" not in out


def test_info_as_json(capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "replay", "--info", "--json", "-", trace)
    assert code == 0
    assert json.loads(out)["small"]["events"] == 300
    code, text, _ = run(capsys, "replay", "--info", "--json", str(tmp_path / "j"), trace)
    assert code == 0
    assert "trace small" in text
    assert json.loads((tmp_path / "j").read_text()) == json.loads(out)


def test_a_replay(capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    arguments = ("--peer", "realalloc", "--peer", "glibc", "--rounds", "2", "--json", str(target))
    code, out, err = run(capsys, "replay", trace, *arguments)
    assert code == 0, out + err
    report = read_json(target)
    (row,) = report.rows
    assert {entry.peer for entry in row.entries} == {"realalloc", "glibc"}
    assert (row.operations, row.operation, row.parameters["threads"]) == (300, "event", 2)
    assert {footprint.peer for footprint in report.footprints} == {"realalloc", "glibc"}
    assert all(footprint.live_bytes > 0 for footprint in report.footprints)
    assert set(report.resident["replay small"].columns) == {"realalloc", "glibc"}
    assert "x live" in out and "replay small: ns per event" in out


def test_without_memory_and_latency(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    given = ("--peer", "realalloc", "--rounds", "1", "--no-memory", "--no-latency", "--json", "-")
    code, out, _ = run(capsys, "replay", trace, *given)
    report = json.loads(out)
    assert code == 0
    assert (report["footprints"], report["rows"][0]["entries"][0]["latencies"]) == ([], [])


@pytest.mark.skipif(not JIT, reason="long in plain Python")
def test_a_shipped_trace_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "replay", "--info", "json_csv")
    assert code == 0
    assert "json_csv" in out
    code, out, _ = run(capsys, "replay", "--list")
    assert code == 0
    for name in ("json_csv", "numpy_pipeline", "http_server", "realalloc", "glibc"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no trace is given"),
        (("missing.trace",), "missing.trace: No such file or directory"),
        (("{trace}", "--peer", "nobody"), "unknown peer 'nobody'; there are: realalloc, glibc"),
        (("{trace}", "--rounds", "0"), "--rounds"),
        (("{trace}", "--speed", "half"), "--speed"),
        (("{trace}", "--json", "no/such/directory"), "No such file or directory"),
        (("{trace}", "--info", "--json", "no/such/directory"), "No such file or directory"),
        (("{cut}",), "cut.trace: truncated at byte 300, after event 0"),
        (("{cut}", "--info"), "cut.trace: truncated at byte 300, after event 0"),
        (("{text}",), "text.trace: not a trace"),
        (("{directory}",), "Is a directory"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "cut.trace").write_bytes(Path(trace).read_bytes()[:300])
    (tmp_path / "text.trace").write_text("this is a text and no trace")
    names = {"trace": trace, "directory": str(tmp_path)}
    names |= {name: str(tmp_path / f"{name}.trace") for name in ("cut", "text")}
    code, out, err = run(capsys, "replay", *(each.format(**names) for each in arguments))
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


def test_help_imports_neither_numba_nor_numpy() -> None:
    text = "import sys\nfrom realalloc.cli import main\n"
    for command in ("record", "replay"):
        text += f"assert main([{command!r}, '--help']) == 0\n"
    text += "sys.exit(sum(name in sys.modules for name in ('numba', 'numpy')))\n"
    code, _, err = child(code=text, fresh=True)
    assert (code, err) == (0, "")
