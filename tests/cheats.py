"""Shared by the tests of loops: allocators that cheat, each in one way, around one that does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numba import njit

from realalloc.lab.loops import layers
from realalloc.lab.loops.kinds import NATIVE, Functions
from realalloc.lab.natives import find_natives

CALLS, MOST, OUT = 3, 4, 5  # words of ``how`` behind the three addresses: allocations, how many may succeed, blocks out
_alloc, _free, _store = NATIVE.alloc, NATIVE.free, NATIVE.store

honest = NATIVE


@njit(forceinline=True)
def _failing_alloc(how, nbytes):
    if how[CALLS] >= how[MOST]:
        return 0
    how[CALLS] += 1
    how[OUT] += 1
    return _alloc(how, nbytes)


@njit(forceinline=True)
def _counted_free(how, block):
    how[OUT] -= 1
    return _free(how, block)


# Has no memory after MOST allocations, and keeps the books of what is out.
failing = NATIVE._replace(alloc=_failing_alloc, free=_counted_free)


@njit(forceinline=True)
def _same_alloc(how, nbytes):
    how[CALLS] += 1
    if how[CALLS] % 2 == 0:
        return how[OUT]
    how[OUT] = _alloc(how, nbytes)
    return how[OUT]


@njit(forceinline=True)
def _leaking_free(_how, _block):
    return 0


# Hands every block out twice.
double = NATIVE._replace(alloc=_same_alloc, free=_leaking_free)


@njit(forceinline=True)
def _forgetful_store(how, block, value):
    how[CALLS] += 1
    _store(how, block, 0 if how[CALLS] % 100 == 0 else value)


# One write in a hundred is lost.
forgetful = NATIVE._replace(store=_forgetful_store)


def how(most: int = 1 << 60) -> np.ndarray:
    """Make what these take first."""
    (glibc,), _ = find_natives("glibc")
    return np.array([glibc.alloc, glibc.free, glibc.realloc, 0, most, 0], np.int64)


def loops(functions: Functions) -> SimpleNamespace:
    """Return plain loops."""
    return layers.loops(functions, layers.PLAIN)
