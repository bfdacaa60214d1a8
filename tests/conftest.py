"""Fixtures: a small arena that must be whole again when a test ends."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import tests/support.py under --import-mode=importlib

import zygote
from support import MIB, RawArena

import realalloc as ra

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job; children would ignore Ctrl-C, and never end
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def loaded() -> None:
    """Load what the first arena loads."""
    ra.Arena(MIB).close()


@pytest.fixture(scope="module", autouse=True)
def frozen(loaded: None) -> None:
    """Let the collector look past what is there, what the last file has compiled too: it would walk it after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """End the parent of forked children with the session."""
    yield
    zygote.ZYGOTE.close()


@pytest.fixture
def raw() -> Iterator[RawArena]:
    """A raw arena of 1 MiB with blocks up to 64 KiB; validated at the end."""
    made = RawArena(MIB, max_order=4)
    yield made
    made.validate()


@pytest.fixture
def arena() -> Iterator[ra.Arena]:
    """An arena of 16 MiB; at the end everything must be free, and one trim must leave nothing committed."""
    with ra.Arena("16MiB") as made:
        yield made
        gc.collect()
        made.validate()
        made.trim()
        made.validate()
        stats = made.stats()
        assert (stats.leases, stats.lingering, stats.live_objects, stats.live_areas) == (0, 0, 0, 0)
        assert (stats.live_blocks, stats.allocated, stats.committed) == (0, 0, 0)
