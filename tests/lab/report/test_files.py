"""Reports as files: whole or not at all, and what was there stays."""

from __future__ import annotations

import csv
import json
import os
import stat
from pathlib import Path

import pytest
from reports import HOSTILE, make_hostile, make_odd, make_report
from support import run_child

from realalloc.lab.report import check_destinations, files, save
from realalloc.lab.results import Report

REPORT = make_report(4, 5, 500)


def listing(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_json_is_read_again(tmp_path: Path) -> None:
    files.write_json(REPORT, tmp_path / "r.json")
    assert files.read_json(tmp_path / "r.json") == REPORT
    files.write_json(make_hostile(), tmp_path / "r.json")
    assert files.read_json(tmp_path / "r.json") == make_hostile()
    assert listing(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON: Expecting value: line 1 column 1"),
        (b'{"format": "realalloc report 1",\n "rows" 3}', "not JSON: Expecting ':' delimiter: line 2 column 9"),
        (b"\x93NUMPY\xff\xfe", "not JSON: no text at byte"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1, 2]", "not a report of realalloc: it has no 'format'"),
        (json.dumps(REPORT.as_dict()).encode()[:-200], "not JSON"),
        (json.dumps(REPORT.as_dict() | {"rows": [{}]}).encode(), r"rows\[0\].workload is missing"),
    ],
)
def test_what_is_no_report_is_refused_with_its_name(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad\n.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{tmp_path}/bad\\n.json: ")


def test_csv_is_one_line_per_row_and_peer(tmp_path: Path) -> None:
    files.write_csv(REPORT, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(row.entries) for row in REPORT.rows)
    assert tuple(lines[0])[: len(files.COLUMNS)] == files.COLUMNS
    row = REPORT.rows[2]
    line = next(line for line in lines if (line["case"], line["peer"]) == (row.case, "glibc"))
    entry = row.entry("glibc")
    assert float(line["ns"]) == entry.ns.value
    assert [float(line[f"ratio{end}"]) for end in ("", "_low", "_high")] == [
        pytest.approx(value) for value in files._ends(row.ratio("glibc", row.best.peer))
    ]
    for latency in entry.latencies:
        assert int(line[f"{latency.operation}_count"]) == latency.count
        assert float(line[f"{latency.operation}_clock_ns"]) == 8.2
        for name, ns in latency.percentiles().items():
            assert float(line[f"{latency.operation}_{name}_ns"]) == ns
    assert [line["best"] for line in lines].count("1") == len(REPORT.rows)
    untimed = next(line for line in lines if line["case"] == "64 B")
    assert untimed["alloc_p50_ns"] == "" and untimed["migrations"] == ""


def test_csv_of_hostile_names_has_its_columns(tmp_path: Path) -> None:
    files.write_csv(make_hostile(), tmp_path / "r.csv")
    text = (tmp_path / "r.csv").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len({len(line) for line in lines}) == 1
    assert any(HOSTILE[:8] in cell for line in lines for cell in line)


@pytest.mark.parametrize(("name", "report"), make_odd().items())
def test_odd_reports(tmp_path: Path, name: str, report: Report) -> None:
    save(report, json=tmp_path / "r.json", csv=tmp_path / "r.csv")
    assert json.loads((tmp_path / "r.json").read_text())["command"] == "realalloc bench"
    back = files.read_json(tmp_path / "r.json")
    assert back.as_dict() == report.as_dict()
    assert (tmp_path / "r.csv").read_text().count("\n") == 1 + sum(len(row.entries) for row in report.rows)


def test_stdout() -> None:
    done = run_child(
        "import sys; from realalloc.lab.report.files import write_bytes; print('first'); write_bytes('-', b'then\\n')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\nthen\n", "")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.check_writable(tmp_path / "no" / "r.json")
    assert caught.value.filename == str(tmp_path / "no")
    with pytest.raises(IsADirectoryError):
        files.check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.check_writable(tmp_path / "file" / "r.json")
    assert listing(tmp_path) == ["file"]


def test_a_file_system_that_refuses() -> None:
    with pytest.raises(OSError):
        files.check_writable("/proc/r.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
@pytest.mark.parametrize("what", ["directory", "file"])
def test_no_permission(tmp_path: Path, what: str) -> None:
    (tmp_path / "r.json").write_bytes(b"before")
    target = tmp_path if what == "directory" else tmp_path / "r.json"
    target.chmod(stat.S_IMODE(target.stat().st_mode) & ~0o222)
    try:
        with pytest.raises(PermissionError):
            files.check_writable(tmp_path / "r.json")
        with pytest.raises(PermissionError):
            files.write_json(REPORT, tmp_path / "r.json")
        assert (tmp_path / "r.json").read_bytes() == b"before"
    finally:
        target.chmod(0o755)


def test_checking_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"before")
    files.check_writable(tmp_path / "old")
    files.check_writable("-")
    assert listing(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"before"


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "r.json").write_bytes(b"before")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(REPORT, tmp_path / "r.json")
    assert listing(tmp_path) == ["r.json"]
    assert (tmp_path / "r.json").read_bytes() == b"before"


def test_links_modes_and_devices_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"before")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    files.write_bytes(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"after"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600
    files.write_bytes(os.devnull, b"gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_pipe_is_written_to_and_checking_it_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files.check_writable(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_bytes(tmp_path / "pipe", b"data")
        assert os.read(reader, 100) == b"data"
    finally:
        os.close(reader)
    assert listing(tmp_path) == ["pipe"]


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / ("x" * 255), b"data")
    assert listing(tmp_path) == ["x" * 255]


def test_destinations_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="json and csv cannot both go to stdout"):
        check_destinations(json="-", csv="-")
    with pytest.raises(ValueError, match="json and html cannot both go to"):
        check_destinations(json=tmp_path / "r", html=tmp_path / "." / "r")
    for what in ("html", "png"):
        with pytest.raises(ValueError, match=f"{what} cannot go to stdout"):
            check_destinations(**{what: "-"})
    assert listing(tmp_path) == []


def test_one_bad_destination_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(REPORT, json=tmp_path / "r.json", csv=tmp_path / "no" / "r.csv")
    assert listing(tmp_path) == []
