"""Starting again with room for jemalloc: once, only from the real command line, and only where it would help."""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Callable

import pytest

from realalloc.cli import again, main
from realalloc.cli.again import AGAIN, STATIC_TLS, TUNABLES, start_again


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str]]]:
    """Return what would have been executed: program, arguments, environment."""
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    environ = {key: value for key, value in os.environ.items() if key not in (AGAIN, TUNABLES)}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.2")
    monkeypatch.setattr(os, "execv", lambda path, args: calls.append((path, args, dict(environ))))
    return calls


def test_the_same_command_with_room(execs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "-m", "realalloc", "bench", "--quick"])
    start_again()
    start_again()
    ((path, args, environ),) = execs
    assert path == sys.executable and args == [sys.executable, "-X", "dev", "-m", "realalloc", "bench", "--quick"]
    assert environ[TUNABLES] == STATIC_TLS and environ[AGAIN] == "1"


def test_other_tunables_stay(execs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, TUNABLES, "glibc.malloc.arena_max=1")
    start_again()
    assert execs[0][2][TUNABLES] == f"glibc.malloc.arena_max=1:{STATIC_TLS}"


@pytest.mark.parametrize("key, value", [(TUNABLES, "glibc.rtld.optional_static_tls=999"), (AGAIN, "1")])
def test_not_where_there_is_room_already(key: str, value: str, execs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, key, value)
    start_again()
    assert execs == []


def test_not_without_a_jemalloc(execs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    start_again()
    assert execs == [] and AGAIN not in os.environ


def test_where_it_cannot_be_it_goes_on_without(execs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str, _args: list[str]) -> None:
        raise FileNotFoundError(2, "gone", sys.executable)

    monkeypatch.setattr(again.os, "execv", refuse)
    start_again()


def _from_a_program() -> int:
    return main(["bench", "--list"])


def _from_the_command_line() -> int:
    return main()


@pytest.mark.parametrize(("how", "times"), [(_from_a_program, 0), (_from_the_command_line, 1)])
def test_only_a_process_of_its_own(
    how: Callable[[], int], times: int, execs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["realalloc", "bench", "--list"])
    assert how() == 0
    assert len(execs) == times
    assert "jemalloc" in capsys.readouterr().out
