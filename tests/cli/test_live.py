"""The live view: on a terminal, on one without rich, in a pipe."""

from __future__ import annotations

import io
import sys

import pytest
from commands import is_plain

from realalloc.cli import live
from realalloc.cli.live import LiveView, cells
from realalloc.lab.stress import Tick

TICK = Tick(12.0, 60.0, 1_234_567, 400_000.0, 300 << 20, 30 << 20, 20 << 20, 0.91, 3, 2, 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, times: int = 3) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with LiveView() as view:
        for _ in range(times):
            view.update(TICK)
    return stream.getvalue()


def test_every_number_is_named() -> None:
    shown = dict(cells(TICK))
    assert shown["RSS"] == "300 MiB" and shown["fragmentation"] == "0.91" and shown["waiters"] == "3"
    assert {"committed", "allocated", "a second", "verified"} <= shown.keys()
    assert shown["seconds"] == "12 of 60"


def test_a_pipe_gets_a_plain_line_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(io.StringIO(), monkeypatch) == ""
    monkeypatch.setattr(live, "LINE_SECONDS", 0.0)
    text = show(io.StringIO(), monkeypatch)
    assert text.count("\n") == 3 and is_plain(text) and "verified 1,234,567" in text


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    text = show(Terminal(), monkeypatch)
    assert "fragmentation" in text and "300 MiB" in text


def test_a_terminal_without_rich_gets_a_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "use_rich", lambda _stream: False)
    monkeypatch.setattr(live, "DRAW_SECONDS", 0.0)
    text = show(Terminal(), monkeypatch)
    assert text.count("\r") == 4 and text.endswith("\r\x1b[K") and "RSS 300 MiB" in text
