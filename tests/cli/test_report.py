"""``realalloc report``: a saved run shown again, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from commands import RICH_LESS, child, is_plain, on_terminal, run
from reports import make_hostile, make_report

from realalloc.lab.report import NEEDED, need_plot, save

BLOCKED = "import sys; sys.modules[{!r}] = None; from realalloc.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def saved(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    save(make_report(3, 4, 500), json=tmp_path / "in" / "run.json")
    return str(tmp_path / "in" / "run.json")


def test_a_saved_run_is_shown_again(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {kind: str(tmp_path / f"out.{kind}") for kind in ("html", "png", "csv")}
    code, out, err = run(
        capsys, "report", saved, *(part for kind, name in names.items() for part in (f"--{kind}", name))
    )
    assert code == 0
    assert "realalloc against the best other peer" in out and is_plain(out)
    assert err.splitlines() == [f"wrote {names[kind]}" for kind in ("html", "png", "csv")]
    assert Path(names["html"]).read_text().startswith("<!doctype html>")
    assert Path(names["png"]).read_bytes().startswith(b"\x89PNG")
    assert Path(names["csv"]).read_text().startswith("workload,case,")


def test_csv_to_a_pipe_is_csv_and_nothing_else(saved: str) -> None:
    code, out, err = child("report", saved, "--csv", "-")
    assert (code, err) == (0, "")
    assert {line["peer"] for line in csv.DictReader(io.StringIO(out))} == {"realalloc", "glibc", "jemalloc"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b'{"a": 1}', "not a report of realalloc"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"format": "realalloc report 1", "command": "x"}', "machine is missing"),
    ],
)
def test_what_is_no_report_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, says: str
) -> None:
    path = tmp_path / "bad\x1b.json"
    path.write_bytes(data)
    code, out, err = run(capsys, "report", str(path), "--csv", str(tmp_path / "out.csv"))
    assert (code, out) == (2, "")
    assert says in err and r"bad\x1b.json" in err and err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad\x1b.json"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("{in}/none.json",), "none.json: No such file or directory"),
        (("{in}",), "Is a directory"),
        (("{file}", "--html", "{in}/no/r.html"), "no: No such file or directory"),
        (("{file}", "--png", "/proc/r.png"), "/proc"),
        (("{file}", "--html", "-"), "html cannot go to stdout"),
        (("{file}", "--html", "{in}/x", "--png", "{in}/x"), "cannot both go to"),
        ((), "FILE.json"),
    ],
)
def test_refused_with_one_line_and_2(
    saved: str, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str
) -> None:
    where = Path(saved).parent
    code, out, err = run(capsys, "report", *(part.format(**{"in": where, "file": saved}) for part in argv))
    assert (code, out) == (2, "")
    assert says in err and err.startswith("realalloc report: error: ") == bool(argv) and err.count("\n") == 1
    assert [entry.name for entry in where.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_extra_is_named(saved: str, tmp_path: Path, name: str) -> None:
    code, out, err = child("report", saved, "--html", str(tmp_path / "r.html"), code=BLOCKED.format(name), fresh=True)
    assert (code, out) == (2, "")
    assert err == f"realalloc report: error: charts need {name}: pip install 'realalloc[plot]'\n"
    assert not (tmp_path / "r.html").exists()
    code, out, err = child("report", saved, "--csv", str(tmp_path / "r.csv"), code=BLOCKED.format(name), fresh=True)
    assert code == 0 and "realalloc against" in out, err


def test_nothing_is_missing_here() -> None:
    need_plot()


@pytest.mark.parametrize("code", [None, RICH_LESS])
def test_on_a_terminal(saved: str, code: str | None) -> None:
    status, seen = on_terminal("report", saved, code=code)
    assert status == 0, seen
    assert "realalloc against the best other peer" in seen and "Traceback" not in seen
    assert ("\x1b[1;32m" in seen) == (code is None)


def test_hostile_names_in_a_pipe(tmp_path: Path) -> None:
    save(make_hostile(), json=tmp_path / "r.json")
    code, out, err = child("report", str(tmp_path / "r.json"), env={"FORCE_COLOR": "1"})
    assert (code, err) == (0, "")
    assert is_plain(out) and r"\x1b[31m" in out


def test_an_interrupted_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report(2, 3, 0)
    report.interrupted = True
    save(report, json=tmp_path / "r.json")
    code, out, _ = run(capsys, "report", str(tmp_path / "r.json"))
    assert code == 0 and "interrupted: what was measured until then is shown" in out
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"] is True
