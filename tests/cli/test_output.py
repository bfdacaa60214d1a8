"""What commands put on stdout and stderr while they run."""

from __future__ import annotations

import io
import json
import sys

import pytest
from commands import is_plain

from realalloc.cli import output
from realalloc.cli.output import CLEAR_LINE, ProgressLine, print_json


def test_progress_in_a_pipe_is_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine() as line:
        for stage in ("one", "two"):
            for done in range(5):
                line.update(stage, done, 4)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "one: 4 files\ntwo: 4 files\n")
    assert is_plain(err)


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(quiet=True) as line:
        line.update("one", 1, 2)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream on a terminal, so wide."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of stderr: in the test itself, since pytest has put its own there by then."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    return made


def test_a_line_is_overwritten_as_much_as_fits_and_goes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(output, "use_rich", lambda _stream: False)
    with ProgressLine(unit="rows") as line:
        assert terminal.getvalue() == ""  # nothing before the first update
        line.update("stage", 1, 3)
        line.update("a stage with a name that is longer than the line", 2, 3)
    parts = terminal.getvalue().split(CLEAR_LINE)
    assert parts == ["", "stage: 1/3 rows", "a stage with a name that is longer than the line"[:39], ""]


def test_with_rich_there_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    pytest.importorskip("rich")
    with ProgressLine() as line:
        for stage in ("one", "two"):
            for done in range(3):
                line.update(stage, done, 2)
    assert "two" in terminal.getvalue() and "2/2" in terminal.getvalue()


def test_nothing_that_was_not_drawn_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with ProgressLine(), ProgressLine(quiet=True) as quiet:
        quiet.update("one", 1, 2)
    assert terminal.getvalue() == ""


def test_an_error_inside_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(output, "use_rich", lambda _stream: False)
    with pytest.raises(ZeroDivisionError), ProgressLine() as line:
        line.update("one", 1, 2)
        raise ZeroDivisionError
    assert terminal.getvalue().endswith(CLEAR_LINE)


def test_a_terminal_that_went_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(output, "use_rich", lambda _stream: False)
    with ProgressLine() as line:
        line.update("one", 1, 2)

        def gone(_text: str) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(terminal, "write", gone)


def test_json_is_indented_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1, None], "é": 0.5})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [1, None], "é": 0.5} and out.startswith('{\n  "a"') and out.endswith("}\n")
