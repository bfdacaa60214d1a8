"""Waiting, exchanging, the lock and words at addresses, of jitted loops."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest
from checks import some
from support import JIT

from realalloc.lab.crowd import crowd
from realalloc.lab.loops.waits import LINE, bump_at, enter, exchange, fill, leave, roll, settled, total_of, wait_above
from realalloc.mm.atomic import atomic_store


@numba.njit(nogil=True)
def _count(marks, number):
    for _ in range(number):
        enter(marks, 0)
        marks[LINE] = marks[LINE] + 1  # not atomic: the lock is
        leave(marks, 0)
    return number


@numba.njit(nogil=True)
def _wait(marks, least):
    wait_above(marks, 0, least)
    return marks[LINE]


@numba.njit(nogil=True)
def _publish(marks, value):
    marks[LINE] = value
    atomic_store(marks, 0, value)
    return 0


@numba.njit(nogil=True)
def _exchange(slots, first, number):
    total = 0
    for k in range(number):
        total += exchange(slots, 0, first + k)
    return total


@numba.njit(nogil=True)
def _settle(base, offset):
    return settled(base + offset)


@pytest.mark.parametrize("address", [0, 1, 8, 2**47 - 8, 2**62, -8])
def test_a_settled_address_is_the_same(address: int) -> None:
    assert _settle(address - 8, 8) == address


def test_the_lock_keeps_the_other_out() -> None:
    marks, number = np.zeros(2 * LINE, np.int64), some(200_000, 300)
    _count(marks, 0)
    assert crowd([lambda: _count(marks, number)] * 2) == [number] * 2
    assert marks[LINE] == 2 * number and marks[0] == 0


def test_who_waits_sees_what_was_written_before() -> None:
    here = np.full(2 * LINE, 5, np.int64)
    assert _wait(here, 5) == 5  # and does not wait for more
    _publish(here, 6)
    for value in range(1, some(300, 20)):
        marks = np.zeros(2 * LINE, np.int64)
        jobs = [lambda m=marks, v=value: _wait(m, v), lambda m=marks, v=value: _publish(m, v)]
        assert crowd(jobs) == [value, 0]


def test_exchange_loses_nothing() -> None:
    slots, number = np.zeros(1, np.int64), some(100_000, 300)
    _exchange(np.zeros(1, np.int64), 0, 0)
    sums = crowd([lambda k=k: _exchange(slots, 1 + k * number, number) for k in range(2)])
    assert sum(sums) + slots[0] == number * (2 * number + 1)  # 1 + ... + 2 * number


def test_roll_is_drand48() -> None:
    state, libc = 12345, ctypes.CDLL(None)
    words = (ctypes.c_ushort * 3)(*[(state >> shift) & 0xFFFF for shift in (0, 16, 32)])
    libc.nrand48.restype = ctypes.c_long
    rolled = numba.njit(lambda value: roll(value))
    for _ in range(100):
        state = int(rolled(state))
        assert state >> 17 == libc.nrand48(words)


def test_fill_and_total_of_write_whole_words() -> None:
    words = np.zeros(6, np.int64)
    address = words.ctypes.data
    numba.njit(lambda at, nbytes, value: fill(at, nbytes, value))(address, 39, 7)
    assert words.tolist() == [7, 7, 7, 7, 0, 0]
    assert numba.njit(lambda at, nbytes: total_of(at, nbytes))(address, 31) == 21


@pytest.mark.skipif(not JIT, reason="nothing is compiled without jit")
def test_the_intrinsic_compiles_to_a_load_and_a_store() -> None:
    compiled = numba.njit(lambda at: bump_at(at))
    compiled.compile((numba.int64,))
    (text,) = compiled.inspect_llvm().values()
    assert "load atomic" in text and "store atomic" in text and "atomicrmw" not in text


def test_bumping_adds_one_and_tells() -> None:
    words = np.array([41, 5], np.int64)
    bump = numba.njit(lambda at: bump_at(at))
    assert bump(words.ctypes.data) == 42
    assert bump_at(words.ctypes.data) == 43  # its twin
    assert words.tolist() == [43, 5]
