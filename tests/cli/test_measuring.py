"""How commands that measure end: exit codes, where reports go, and destinations are checked before anything is measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reports import make_report

from realalloc.cli.measuring import EXIT_INTERRUPTED, add_files, carry_out
from realalloc.cli.problems import BadInput
from realalloc.lab.results import Report


class Made:
    """A measurement that is told how to end."""

    def __init__(self, *, failed: bool = False, interrupted: bool = False) -> None:
        self.failed, self.ran = failed, 0
        self.report = make_report(3, 3, 200)
        self.report.interrupted = interrupted

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> Report:
        self.ran += 1
        assert on_progress is not None
        on_progress("stage", 0, 2)
        return self.report


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_files(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({}, 0),
        ({"failed": True}, 1),
        ({"interrupted": True}, EXIT_INTERRUPTED),
        ({"failed": True, "interrupted": True}, EXIT_INTERRUPTED),
    ],
)
def test_exit_codes(how: dict[str, bool], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(**how)
    assert carry_out(options(), "rows", lambda: made) == code
    out, err = capsys.readouterr()
    assert "larson" in out and err == "stage: 2 rows\n" and made.ran == 1


def test_what_was_measured_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "a.json", tmp_path / "a.csv"
    assert carry_out(options("--json", str(files[0]), "--csv", str(files[1])), "rows", Made) == 0
    out, err = capsys.readouterr()
    assert "larson" in out
    assert err.splitlines()[-2:] == [f"wrote {file}" for file in files]
    assert json.loads(files[0].read_text())["rows"] and files[1].read_text().count("\n") > 5


def test_stdout_gets_that_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(options("--json", "-"), "rows", Made) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"] and err == ""


def test_nothing_is_measured_for_a_place_that_is_not_there(tmp_path: Path) -> None:
    made: list[Any] = []
    with pytest.raises(BadInput, match="nowhere"):
        carry_out(options("--json", str(tmp_path / "nowhere" / "a.json")), "rows", lambda: made.append(1) or Made())
    assert made == []


@pytest.mark.parametrize("error", [ValueError("no such peer"), MemoryError("too large"), RuntimeError("not here")])
def test_options_that_are_refused_are_bad_input(error: Exception) -> None:
    def make() -> Made:
        raise error

    with pytest.raises(BadInput, match=str(error)):
        carry_out(options(), "rows", make)


def test_what_goes_wrong_while_measuring_stays_loud() -> None:
    made = Made()
    made.run = lambda _on_progress=None: 1 // 0  # type: ignore[assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        carry_out(options(), "rows", lambda: made)
