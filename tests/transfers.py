"""Shared by the tests of block I/O: system calls that misbehave."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

TRANSFERS = ["preadv", "pwritev"]


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, offset: int, code: int = errno.EIO) -> list[int]:
    """Make a transfer at ``offset`` fail; return the list of offsets that were asked for, which fills."""
    real: Callable[..., int] = getattr(os, name)
    asked: list[int] = []

    def transfer(fd: int, views: Any, at: int) -> int:
        asked.append(at)
        if at == offset:
            raise OSError(code, os.strerror(code))
        return real(fd, views, at)

    monkeypatch.setattr(os, name, transfer)
    return asked


def shorten(monkeypatch: pytest.MonkeyPatch, name: str, nbytes: int) -> None:
    """Let no transfer do more than ``nbytes``."""
    real: Callable[..., int] = getattr(os, name)

    def transfer(fd: int, views: list[memoryview], at: int) -> int:
        left, some = nbytes, []
        for view in views:
            if left > 0:
                some.append(view[:left])
            left -= len(view)
        return real(fd, some, at)

    monkeypatch.setattr(os, name, transfer)


def refuse_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a filesystem that does not know O_DIRECT."""
    real = fcntl.fcntl

    def control(fd: int, command: int, argument: Any = 0) -> Any:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", control)


class Gate:
    """Holds transfers until it is opened."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, holds: Callable[[int], bool] = lambda at: True
    ) -> None:
        self.reached = threading.Semaphore(0)
        self.opened = threading.Event()
        real: Callable[..., int] = getattr(os, name)

        def transfer(fd: int, views: Any, at: int) -> int:
            if holds(at):
                self.reached.release()
                assert self.opened.wait(30)
            return real(fd, views, at)

        monkeypatch.setattr(os, name, transfer)
