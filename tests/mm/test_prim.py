"""The system calls of jitted code, and their twins: what they do to a range, and what they say when refused."""

from __future__ import annotations

import errno
import threading

import numba
import numpy as np
import pytest
from support import PAGE

from realalloc.memory import Memory, futex_wait
from realalloc.mm.prim import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    forget,
    futex_wake_all,
    madvise,
    move_pages,
    sched_yield,
)


@numba.njit
def jitted(what, a, b, c):
    if what == 0:
        return madvise(a, b, c)
    if what == 1:
        return move_pages(a, b, c)
    if what == 2:
        return forget(a, b)
    if what == 3:
        return futex_wake_all(a)
    return sched_yield()


def plain(what, a, b, c):
    return (
        lambda: madvise(a, b, c),
        lambda: move_pages(a, b, c),
        lambda: forget(a, b),
        lambda: futex_wake_all(a),
        sched_yield,
    )[what]()


CALLS = pytest.mark.parametrize("call", [jitted, plain], ids=["jitted", "plain"])


def make(pages: int = 32) -> Memory:
    return Memory(pages * PAGE, PAGE, (pages - 16) * PAGE)


@CALLS
def test_pages_that_are_given_back_read_as_zero(call) -> None:
    memory = make()
    memory.words[: 8 * 512] = 7
    assert call(0, memory.address + 2 * PAGE, 3 * PAGE, MADV_DONTNEED) == 0
    values = memory.words[: 8 * 512 : 512].tolist()
    assert values == [7, 7, 0, 0, 0, 7, 7, 7]


@CALLS
def test_moved_pages_leave_zeroes_behind(call) -> None:
    memory = make()
    for page in range(4):
        memory.words[page * 512] = page + 1
    window = memory.address + 16 * PAGE
    assert call(1, memory.address + PAGE, window, 2 * PAGE) == 0
    assert [int(memory.words[(16 + k) * 512]) for k in range(2)] == [2, 3]
    assert [int(memory.words[k * 512]) for k in range(4)] == [1, 0, 0, 4]
    assert memory.resident_pages(PAGE, 2 * PAGE) <= 2
    assert call(1, window, memory.address + PAGE, 2 * PAGE) == 0
    assert [int(memory.words[k * 512]) for k in range(4)] == [1, 2, 3, 4]


@CALLS
def test_a_forgotten_range_holds_nothing(call) -> None:
    memory = make()
    memory.words[: 4 * 512] = 1
    assert call(2, memory.address + PAGE, 2 * PAGE, 0) == 0
    assert memory.resident_pages(PAGE, 2 * PAGE) == 0
    assert memory.words[0] == memory.words[3 * 512] == 1


@CALLS
def test_failures_are_negative_errno_values(call) -> None:
    memory = make()
    assert call(0, memory.address + 8, PAGE, MADV_DONTNEED) == -errno.EINVAL
    assert call(0, memory.address, PAGE, 9999) == -errno.EINVAL
    assert call(1, memory.address + 8, memory.address + 16 * PAGE, PAGE) == -errno.EINVAL
    assert call(1, memory.address, memory.address, PAGE) == -errno.EINVAL
    assert call(2, memory.address + 8, PAGE, 0) == -errno.EINVAL
    assert call(3, 1, 0, 0) in (-errno.EINVAL, -errno.EFAULT)
    assert call(1, 1 << 46, memory.address + 16 * PAGE, PAGE) == -errno.EFAULT


@CALLS
def test_yielding_and_advising_succeed(call) -> None:
    memory = Memory(4 << 20, 2 << 20, 2 << 20)
    assert call(4, 0, 0, 0) == 0
    for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE):
        assert call(0, memory.address, 2 << 20, advice) in (0, -errno.EINVAL)  # a kernel may be built without


@CALLS
def test_a_wake_reaches_whoever_sleeps_on_the_word(call) -> None:
    words = np.zeros(8, np.int64)
    address = int(words.ctypes.data)
    assert call(3, address, 0, 0) == 0
    sleepers = [threading.Thread(target=futex_wait, args=(address, 0, 60.0)) for _ in range(2)]
    for thread in sleepers:
        thread.start()
    woken = 0
    while woken < 2:
        woken += call(3, address, 0, 0)
    for thread in sleepers:
        thread.join()
    assert woken == 2
    futex_wait(address, 1, 60.0)  # returns at once: the word is not 1
