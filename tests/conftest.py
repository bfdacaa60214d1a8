"""Fixtures: a small arena that must be whole again when a test ends.

The words of an arena end in pages that fault when read, so a failed assertion must not try to print them.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import tests/support.py under --import-mode=importlib

import zygote
from support import MIB, PAGE, RawArena

import realalloc as ra

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job; children would ignore Ctrl-C, and never end
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _repr(array: Any) -> str:
    if array.size > 1 << 14:
        return f"<{array.size} elements of {array.dtype}>"
    return f"array({np.array2string(array, separator=', ')})"


with contextlib.suppress(TypeError):  # NumPy 2.0 has no such option
    np.set_printoptions(override_repr=_repr)


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


@pytest.fixture
def small() -> Iterator[ra.Arena]:
    """An arena of 1 MiB with blocks up to 64 KiB, soon exhausted; at the end all must be free, and go back with one trim."""
    with ra.Arena(MIB, max_order=4) as made:
        yield made
        gc.collect()
        made.validate()
        made.trim()
        stats = made.stats()
        assert (stats.leases, stats.allocated, stats.committed) == (0, 0, 0)


@pytest.fixture(params=["one zone", "two zones", "tall", "limited"])
def busy(request: Any) -> Iterator[ra.Arena]:
    """Arenas of different shapes with something of everything in use."""
    shapes: dict[str, dict[str, Any]] = {
        "one zone": {}, "two zones": {"lock": MIB}, "tall": {"max_order": 13}, "limited": {"limit": 12 * MIB}
    }  # fmt: skip
    with ra.Arena(16 * MIB + 5 * PAGE, **shapes[request.param]) as arena:
        cache = arena.kmem_cache("a_rather_long_name_of_a_cache", 700)
        flags = ra.GFP_KERNEL | (ra.GFP_DMA if request.param == "two zones" else 0)
        held: list[Any] = [arena.kmalloc(size) for size in (8, 96, 5000, 70_000, 3, 9000)]
        held += [arena.alloc_pages(3), arena.alloc_pages(0, flags), arena.kmalloc(200, flags), arena.vmalloc(3 * PAGE)]
        held += cache.alloc_bulk(30)
        arena.vfree(arena.vmalloc(17 * PAGE))
        arena.kfree(arena.kmalloc(8192))
        arena.free_pages(arena.alloc_pages(2))
        del held[12:20]
        yield arena
        arena.validate()
        held.clear()
        cache.destroy()
