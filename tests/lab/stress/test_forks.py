"""A fork whose child looks at the arena."""

from __future__ import annotations

import os
import time

import pytest

import realalloc as ra
from realalloc.lab.stress.forks import fork_and_check
from realalloc.mm import layout


def test_a_child_of_a_whole_arena_says_nothing(arena: ra.Arena) -> None:
    held = [arena.kmalloc(100 * k) for k in range(20)]
    fds = len(os.listdir("/proc/self/fd"))
    assert fork_and_check(arena) is None
    assert len(os.listdir("/proc/self/fd")) == fds and held


def test_a_child_of_a_damaged_arena_says_what_is_wrong(arena: ra.Arena) -> None:
    arena.words[layout.H_BAD_FREES] += 1
    found = fork_and_check(arena)
    arena.words[layout.H_BAD_FREES] -= 1
    assert found is not None and "exit 1" in found and "the header is damaged" in found


def test_a_child_that_hangs_is_killed(arena: ra.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ra.Arena, "validate", lambda _arena: time.sleep(60))
    found = fork_and_check(arena, child_seconds=0.2)
    assert found is not None and "killed, it hung" in found
