"""One line of progress while kernels are compiled; silence where nothing is compiled or nobody looks."""

from __future__ import annotations

import io
import sys

import pytest
from support import JIT

from realalloc import progress
from realalloc.mm.jit import Entry

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count prunings instead of pruning this machine's caches."""
    calls: list[int] = []
    monkeypatch.setattr(progress, "prune_caches", lambda: calls.append(1))
    return calls


def compile_two() -> None:
    assert Entry.on_compile is not None
    Entry.on_compile("first")
    Entry.on_compile("second")


def test_a_terminal_sees_each_name_on_one_line_that_is_wiped(
    monkeypatch: pytest.MonkeyPatch, pruned: list[int]
) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.compile_progress():
        compile_two()
    parts = screen.getvalue().split("\r\x1b[K")
    assert len(parts) == 4 and parts[0] == parts[3] == ""
    assert parts[1].startswith("realalloc: first use, compiling (1) first into ")
    assert parts[2].startswith("realalloc: first use, compiling (2) second into ")
    assert Entry.on_compile is None and pruned == [1]


def test_a_terminal_sees_nothing_when_all_is_cached(monkeypatch: pytest.MonkeyPatch, pruned: list[int]) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.compile_progress():
        pass
    assert screen.getvalue() == "" and pruned == []


@pytest.mark.parametrize("kind", ["file", "none"])
def test_without_a_terminal_nothing_is_written(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen if kind == "file" else None)
    with progress.compile_progress():
        compile_two()
    assert screen.getvalue() == ""


def test_nested_progress_leaves_the_outer_one_in_charge(monkeypatch: pytest.MonkeyPatch, pruned: list[int]) -> None:
    monkeypatch.setattr(sys, "stderr", Screen(terminal=True))
    with progress.compile_progress():
        outer = Entry.on_compile
        with progress.compile_progress():
            assert Entry.on_compile is outer
        assert Entry.on_compile is outer
        compile_two()
    assert pruned == [1]


def test_an_error_while_compiling_wipes_the_line_and_forgets_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(KeyboardInterrupt), progress.compile_progress():
        compile_two()
        raise KeyboardInterrupt
    assert screen.getvalue().endswith("\r\x1b[K") and Entry.on_compile is None
