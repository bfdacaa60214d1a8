"""Layers around an allocator, for the same loops: times of single operations, and proof of the work.

``timed`` takes ``how = (inner how, recorder)`` and records every second operation (:mod:`realalloc.lab.recorder`).
``checked`` takes ``how = (inner how, tally)`` and counts calls, bytes asked for and what the first words held when objects
were freed: the same numbers for every allocator that did the same work, others where an object was handed out twice.
Guarantees: a layer changes nothing that the loop sees.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from realalloc.lab.loops import basic, crowds, fills, pages, replays
from realalloc.lab.loops.kinds import Functions
from realalloc.lab.recorder import ALLOC, FREE, REALLOC, begin, end

PLAIN: Final = "plain"
TIMED: Final = "timed"
CHECKED: Final = "checked"
ALLOCATED, ASKED_BYTES, FREED, READ = range(4)  # words of a tally


def make_tally() -> npt.NDArray[np.int64]:
    """Return what ``checked`` counts in."""
    return np.zeros(4, np.int64)


def checksum(tallies: list[npt.NDArray[np.int64]]) -> int:
    """Make one number of what all threads counted. What they exchanged is in the sum, whoever freed it."""
    total = np.sum([make_tally(), *tallies], axis=0)
    mixed = 0
    for part in total.tolist():
        mixed = (mixed * 1_000_003 + part) & ((1 << 63) - 1)
    return mixed


def _inner(f: Functions) -> tuple[Any, Any, Any]:
    store, load, at = f.store, f.load, f.at

    @njit(forceinline=True)
    def inner_store(how: Any, block: int, value: int) -> None:
        store(how[0], block, value)

    @njit(forceinline=True)
    def inner_load(how: Any, block: int) -> int:
        return load(how[0], block)

    @njit(forceinline=True)
    def inner_at(how: Any, block: int) -> int:
        return at(how[0], block)

    return inner_store, inner_load, inner_at


def timed(f: Functions) -> Functions:
    """Record the times of operations."""
    alloc, free, realloc = f.alloc, f.free, f.realloc

    @njit(forceinline=True)
    def timed_alloc(how: Any, nbytes: int) -> int:
        begun = begin(how[1], ALLOC)
        block = alloc(how[0], nbytes)
        end(how[1], ALLOC, begun)
        return block

    @njit(forceinline=True)
    def timed_free(how: Any, block: int) -> int:
        begun = begin(how[1], FREE)
        free(how[0], block)
        end(how[1], FREE, begun)
        return 0

    @njit(forceinline=True)
    def timed_realloc(how: Any, block: int, nbytes: int) -> int:
        begun = begin(how[1], REALLOC)
        fresh = realloc(how[0], block, nbytes)
        end(how[1], REALLOC, begun)
        return fresh

    return Functions(timed_alloc, timed_free, *_inner(f), timed_realloc)


def checked(f: Functions) -> Functions:
    """Count what is done, and what objects hold when they are freed."""
    alloc, free, load, realloc = f.alloc, f.free, f.load, f.realloc

    @njit(forceinline=True)
    def checked_alloc(how: Any, nbytes: int) -> int:
        block = alloc(how[0], nbytes)
        if block != 0:
            how[1][ALLOCATED] += 1
            how[1][ASKED_BYTES] += nbytes
        return block

    @njit(forceinline=True)
    def checked_free(how: Any, block: int) -> int:
        if block != 0:
            how[1][FREED] += 1
            how[1][READ] += load(how[0], block)
        free(how[0], block)
        return 0

    @njit(forceinline=True)
    def checked_realloc(how: Any, block: int, nbytes: int) -> int:
        fresh = realloc(how[0], block, nbytes)
        if fresh != 0:
            how[1][ASKED_BYTES] += nbytes
            how[1][READ] += load(how[0], fresh)
        return fresh

    return Functions(checked_alloc, checked_free, *_inner(f), checked_realloc)


@functools.cache
def loops(f: Functions, layer: str) -> SimpleNamespace:
    """Return all loops over an allocator with a layer around it; each is compiled when it is first called."""
    layered = {PLAIN: lambda g: g, TIMED: timed, CHECKED: checked}[layer](f)
    parts = (basic, fills, crowds, pages, replays)
    return SimpleNamespace(**{name: loop for part in parts for name, loop in part.make(layered).items()})
