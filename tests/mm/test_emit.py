"""The machine code of the system calls, compiled by itself: each does what the call does, and says why it does not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from llvmlite import binding, ir
from support import PAGE

from realalloc.memory import Memory
from realalloc.mm import emit

I64 = ir.IntType(64)
NUMBERS = itertools.count()
ENGINES: list[Any] = []  # own the code that was made
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def built() -> Callable[..., Callable[..., int]]:
    """Make a function of int64 out of what emits one."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()

    def build(emitter: Any, count: int, thread_key: int = -1) -> Callable[..., int]:
        name = f"emitted_{next(NUMBERS)}"
        module = ir.Module(name)
        module.triple = binding.get_default_triple()
        key = ir.GlobalVariable(module, I64, emit.THREAD_KEY_SYMBOL)
        key.initializer, key.linkage = ir.Constant(I64, thread_key), "internal"
        function = ir.Function(module, ir.FunctionType(I64, [I64] * count), name)
        builder = ir.IRBuilder(function.append_basic_block())
        builder.ret(emitter(None, builder, None, function.args))
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        engine = binding.create_mcjit_compiler(parsed, binding.Target.from_default_triple().create_target_machine())
        engine.finalize_object()
        ENGINES.append(engine)
        return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(engine.get_function_address(name))

    return build


@pytest.fixture
def memory() -> Memory:
    made = Memory(32 * PAGE, PAGE, 16 * PAGE)  # the upper half is a window: nothing may be touched there
    made.words[: 16 * 512 : 512] = np.arange(1, 17)
    return made


def firsts(memory: Memory, page: int, count: int) -> list[int]:
    return [int(value) for value in memory.words[page * 512 : (page + count) * 512 : 512]]


def test_madvise(built: Any, memory: Memory) -> None:
    madvise = built(emit.madvise, 3)
    assert madvise(memory.address + 2 * PAGE, 3 * PAGE, mmap.MADV_DONTNEED) == 0
    assert firsts(memory, 0, 8) == [1, 2, 0, 0, 0, 6, 7, 8]
    assert madvise(memory.address + 1, PAGE, mmap.MADV_DONTNEED) == -errno.EINVAL
    assert madvise(memory.address, PAGE, 9999) == -errno.EINVAL
    assert madvise(1 << 46, PAGE, mmap.MADV_DONTNEED) == -errno.ENOMEM


def test_mincore(built: Any, memory: Memory) -> None:
    mincore, seen = built(emit.mincore, 3), np.full(16, 7, np.uint8)
    memory.purge(4 * PAGE, 3 * PAGE)
    assert mincore(memory.address, 16 * PAGE, seen.ctypes.data) == 0
    assert [bool(value & 1) for value in seen] == [not 4 <= page < 7 for page in range(16)]
    assert mincore(memory.address, PAGE, 1) == -errno.EFAULT
    assert mincore(memory.address + 1, PAGE, seen.ctypes.data) == -errno.EINVAL


def test_pages_move_and_back(built: Any, memory: Memory) -> None:
    move = built(emit.move_pages, 3)
    window = memory.address + 16 * PAGE
    assert move(memory.address + 3 * PAGE, window, 4 * PAGE) == 0
    assert firsts(memory, 16, 4) == [4, 5, 6, 7] and firsts(memory, 2, 6) == [3, 0, 0, 0, 0, 8]
    assert move(window, memory.address + 3 * PAGE, 4 * PAGE) == 0
    assert firsts(memory, 0, 16) == list(range(1, 17))
    assert move(memory.address, memory.address, PAGE) == -errno.EINVAL
    assert move(1 << 46, window, PAGE) == -errno.EFAULT


def protection(address: int) -> str:
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, how = line.split()[:2]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= address < high:
                return how
    return ""


def test_a_range_is_forgotten_or_renewed(built: Any, memory: Memory) -> None:
    forget, renew = built(emit.forget, 2), built(emit.renew, 2)
    assert forget(memory.address + PAGE, 2 * PAGE) == 0
    assert protection(memory.address + PAGE) == protection(memory.address + 2 * PAGE) == "---p"
    assert renew(memory.address + PAGE, 2 * PAGE) == 0
    assert protection(memory.address + PAGE) == "rw-p"
    assert firsts(memory, 0, 4) == [1, 0, 0, 4]
    for call in (forget, renew):
        assert call(memory.address + 8, PAGE) == -errno.EINVAL
        assert call(memory.address, 0) == -errno.EINVAL
    assert firsts(memory, 0, 1) == [1]


def test_several_mappings_are_told_from_one(built: Any, memory: Memory) -> None:
    is_several, renew = built(emit.is_several, 2), built(emit.renew, 2)
    for pages in range(1, 17):  # the window has another protection: another mapping
        assert [is_several(memory.address + first * PAGE, pages * PAGE) for first in range(33 - pages)] == [
            int(first < 16 < first + pages) for first in range(33 - pages)
        ]
    assert renew(memory.address + 20 * PAGE, PAGE) == 0
    assert is_several(memory.address + 16 * PAGE, 4 * PAGE) == 0
    assert is_several(memory.address + 16 * PAGE, 5 * PAGE) == 1
    assert firsts(memory, 0, 16) == list(range(1, 17))  # asking moves nothing


@contextlib.contextmanager
def bound(which: int, nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@pytest.mark.parametrize("which", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_whether_a_limit_would_refuse_a_move(built: Any, which: int) -> None:
    may_move = built(emit.may_move, 1)
    limits = [resource.getrlimit(one)[0] for one in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if limits == [resource.RLIM_INFINITY] * 2:
        assert may_move(1 << 60) == 0  # nobody is asked where there is no limit
    with bound(which, 1 << 45), open("/proc/self/maps") as maps:
        before = len(maps.readlines())
        assert may_move(1 << 46) == -errno.ENOMEM
        for _ in range(100):
            assert may_move(1 << 20) == 0
        maps.seek(0)
        assert len(maps.readlines()) < before + 50  # what was tried is unmapped again
    assert may_move(1 << 20) == 0


def test_a_futex_sleeps_until_its_word_changes_its_time_is_over_or_somebody_wakes_it(built: Any) -> None:
    sleep, wake_one, wake_all = (
        built(emit.futex_sleep, 3),
        built(emit.futex_wake(1), 1),
        built(emit.futex_wake(1 << 30), 1),
    )
    word = np.zeros(2, np.int64)
    at = int(word.ctypes.data)
    assert sleep(at, 1, -1) == -errno.EAGAIN
    begun = time.monotonic_ns()
    assert sleep(at, 0, 20_000_000) == -errno.ETIMEDOUT
    assert time.monotonic_ns() - begun >= 20_000_000
    assert sleep(at + 1, 0, 1) == -errno.EINVAL
    assert wake_one(at) == wake_all(at) == 0
    answers: list[int] = []
    sleepers = [threading.Thread(target=lambda: answers.append(sleep(at, 0, -1))) for _ in range(3)]
    for thread in sleepers:
        thread.start()
    while wake_one(at) == 0:
        pass
    woken = 1
    while woken < 3:
        woken += wake_all(at)
    for thread in sleepers:
        thread.join()
    assert woken == 3 and answers == [0, 0, 0]


def test_a_timeout_longer_than_a_second_is_seconds_and_the_rest(built: Any) -> None:
    sleep, word = built(emit.futex_sleep, 3), np.zeros(1, np.int64)
    begun = time.monotonic_ns()
    assert sleep(int(word.ctypes.data), 0, 1_050_000_000) == -errno.ETIMEDOUT
    assert time.monotonic_ns() - begun >= 1_050_000_000


def test_an_eventfd_is_written(built: Any) -> None:
    write, fd = built(emit.eventfd_write, 1), os.eventfd(0, os.EFD_NONBLOCK)
    assert write(fd) == write(fd) == 0
    assert os.eventfd_read(fd) == 2
    os.close(fd)
    assert write(fd) == -errno.EBADF


def test_the_clock_is_pythons(built: Any) -> None:
    monotonic = built(emit.monotonic, 0)
    for _ in range(1000):
        before, now, after = time.monotonic_ns(), monotonic(), time.monotonic_ns()
        assert before <= now <= after


def test_small_calls(built: Any) -> None:
    assert built(emit.sched_yield, 0)() == 0
    assert built(emit.membarrier, 1)(0) > 0  # MEMBARRIER_CMD_QUERY: a mask
    assert built(emit.membarrier, 1)(1 << 30) == -errno.EINVAL
    word = np.array([5, 9, 7], np.int64)
    assert built(emit.raise_flag, 1)(int(word[1:].ctypes.data)) == 9  # what was there
    assert word.tolist() == [5, 1, 7]


def test_a_thread_is_started_without_signals_and_joined(built: Any) -> None:
    start, join = built(emit.thread_start, 1), built(emit.thread_join, 1)
    seen: list[Any] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def body(_argument: Any) -> None:
        seen.append((threading.get_ident(), signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    mine = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    made = start(ctypes.cast(body, ctypes.c_void_p).value)
    assert made > 0 and join(made) == 0
    ((who, blocked),) = seen
    assert who == made != threading.get_ident()
    wanted = {one for one in signal.valid_signals() if one not in (signal.SIGKILL, signal.SIGSTOP)}
    assert blocked >= wanted
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mine


def test_a_thread_is_watched_through_its_key(built: Any) -> None:
    key = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), None) == 0
    libc.pthread_getspecific.restype = ctypes.c_void_p
    built(emit.thread_watch, 1, thread_key=-1)(77)
    assert libc.pthread_getspecific(key) is None
    built(emit.thread_watch, 1, thread_key=key.value)(77)
    assert libc.pthread_getspecific(key) == 77
    assert libc.pthread_key_delete(key) == 0
