"""The few calls that jitted code makes, of the system and of a user's machine code, each with a plain Python twin.

pre: addresses and lengths are page multiples inside the arena's range. Each returns 0 or a negative errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from typing import Any

import llvmlite.binding
from llvmlite import ir

from realalloc.mm import emit
from realalloc.mm.emit import (
    FUTEX_WAIT_PRIVATE,
    FUTEX_WAKE_PRIVATE,
    I64,
    MAP_NONE_FIXED,
    MAP_PRIVATE_NORESERVE,
    MREMAP_MAYMOVE_FIXED_DONTUNMAP,
    NS,
    PROT_BOTH,
    PROT_NONE,
    RLIMIT_AS,
    RLIMIT_DATA,
    SYS_FUTEX,
    SYS_MEMBARRIER,
    THREAD_KEY_SYMBOL,
)
from realalloc.mm.jit import native

EFAULT = errno.EFAULT
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
ALL_WAITERS = 1 << 30
MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3
MEMBARRIER_REGISTER_PRIVATE_EXPEDITED = 1 << 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_ssize_t
_libc.mmap.restype = ctypes.c_ssize_t
_libc.syscall.restype = ctypes.c_ssize_t


def _twin(value: int) -> int:
    return -ctypes.get_errno() if value == -1 else value


# The key under which a thread tells the C library that it has slots: its destructor runs when the thread ends. -1: none yet.
_thread_key = (ctypes.c_int64 * 1)(-1)
llvmlite.binding.add_symbol(THREAD_KEY_SYMBOL, ctypes.addressof(_thread_key))


def set_thread_key(key: int) -> None:
    """Let threads that get a slot store their identity under this pthread key, for the life of the process."""
    _thread_key[0] = key


def emit_call(result: Any) -> Any:
    """Make what emits a call of the machine code at the address that is the first argument."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        link = ir.FunctionType(result, [I64] * (len(args) - 1))
        value = builder.call(builder.inttoptr(args[0], link.as_pointer()), args[1:])
        return value if result == I64 else ir.Constant(I64, 0)

    return emit


def _futex(address: int, operation: int, value: int, timeout_ns: int = -1) -> int:
    limit = ctypes.byref((ctypes.c_long * 2)(*divmod(int(timeout_ns), NS))) if timeout_ns >= 0 else ctypes.c_void_p(0)
    word = ctypes.c_uint(int(value) & 0xFFFFFFFF)
    return _twin(_libc.syscall(ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(int(address)), operation, word, limit))


@native(emit.thread_start)
def thread_start(function: int) -> int:
    """Start a thread of machine code at ``function`` that no signal is delivered to; its pthread_t, or a negative errno.
    Without machine code there is nothing that could run.
    """
    return -errno.ENOSYS + 0 * function


@native(emit.thread_join)
def thread_join(identity: int) -> int:
    """Wait until such a thread has ended."""
    return 0 * identity


@native(emit.membarrier)
def membarrier(command: int) -> int:
    """Make every running thread of this process execute a full memory barrier (membarrier(2))."""
    return _twin(_libc.syscall(ctypes.c_long(SYS_MEMBARRIER), ctypes.c_long(int(command)), 0, 0))


@native(emit.sched_yield)
def sched_yield() -> int:
    """Let another thread run."""
    time.sleep(1e-6)  # sched_yield(2) alone hardly ever gives the GIL away
    return 0


@native(emit.thread_watch)
def thread_watch(identity: int) -> int:
    """Have the C library say when the calling thread ends (pthread_setspecific(3)); nothing without machine code."""
    return 0 * identity


@native(emit.madvise)
def madvise(address: int, length: int, advice: int) -> int:
    """madvise(2)."""
    return _twin(_libc.madvise(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), int(advice)))


@native(emit.mincore)
def mincore(address: int, length: int, vector: int) -> int:
    """Write a byte for each page at ``vector``, odd if the page is resident (mincore(2))."""
    return _twin(
        _libc.mincore(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), ctypes.c_void_p(int(vector)))
    )


@native(emit.move_pages)
def move_pages(source: int, target: int, length: int) -> int:
    """Move the page-table entries of a range; the source stays mapped and empty (mremap(2), MREMAP_DONTUNMAP)."""
    source, target, length = int(source), int(target), int(length)
    result = _libc.mremap(
        ctypes.c_void_p(source), ctypes.c_size_t(length), ctypes.c_size_t(length),
        MREMAP_MAYMOVE_FIXED_DONTUNMAP, ctypes.c_void_p(target),
    )  # fmt: skip
    return -ctypes.get_errno() if result == -1 else 0


@native(emit.forget)
def forget(address: int, length: int) -> int:
    """Replace a range by one that faults when touched, dropping its pages (mmap(2), PROT_NONE)."""
    address, length = int(address), int(length)
    result = _libc.mmap(
        ctypes.c_void_p(address), ctypes.c_size_t(length), PROT_NONE, MAP_NONE_FIXED, -1, ctypes.c_long(0)
    )
    return -ctypes.get_errno() if result == -1 else 0


@native(emit.renew)
def renew(address: int, length: int) -> int:
    """Replace a range by fresh memory, which reads as zero (mmap(2))."""
    address, length = int(address), int(length)
    result = _libc.mmap(
        ctypes.c_void_p(address), ctypes.c_size_t(length), PROT_BOTH, MAP_NONE_FIXED, -1, ctypes.c_long(0)
    )
    return -ctypes.get_errno() if result == -1 else 0


@native(emit.is_several)
def is_several(address: int, length: int) -> int:
    """Tell whether a range, behind which something is mapped, is several mappings: why it cannot grow in place says so."""
    result = _libc.mremap(
        ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), ctypes.c_size_t(int(length) + (1 << 12)), 0, None
    )
    return 1 if result == -1 and ctypes.get_errno() == errno.EFAULT else 0


@native(emit.may_move)
def may_move(length: int) -> int:
    """Tell whether a limit on address space or data (setrlimit(2)) leaves room for so much more, by trying; else -ENOMEM."""
    endless = all(resource.getrlimit(which)[0] == resource.RLIM_INFINITY for which in (RLIMIT_AS, RLIMIT_DATA))
    if endless:
        return 0
    size = ctypes.c_size_t(int(length))
    tried = _libc.mmap(ctypes.c_void_p(0), size, PROT_BOTH, MAP_PRIVATE_NORESERVE, -1, ctypes.c_long(0))
    if tried == -1:
        return -ctypes.get_errno()
    _libc.munmap(ctypes.c_void_p(tried), size)
    return 0


@native(emit.raise_flag)
def raise_flag(address: int) -> int:
    """Store 1 into the word at ``address``, behind all stores before; return what was there."""
    word = ctypes.c_int64.from_address(int(address))
    before, word.value = word.value, 1
    return before


@native(emit.futex_wake(ALL_WAITERS))
def futex_wake_all(address: int) -> int:
    """Wake every thread that sleeps on the 32-bit word at ``address``."""
    return _futex(address, FUTEX_WAKE_PRIVATE, ALL_WAITERS)


@native(emit.futex_wake(1))
def futex_wake_one(address: int) -> int:
    """Wake one of them."""
    return _futex(address, FUTEX_WAKE_PRIVATE, 1)


@native(emit.eventfd_write)
def eventfd_signal(fd: int) -> int:
    """Add 1 to an eventfd (eventfd(2)): an event loop that watches it wakes."""
    os.eventfd_write(int(fd), 1)
    return 0


@native(emit.futex_sleep)
def futex_sleep(address: int, expected: int, timeout_ns: int) -> int:
    """Sleep while the 32-bit word at ``address`` is ``expected``, until woken or for ``timeout_ns``, < 0: without limit. It
    may also end for no reason.
    """
    return _futex(address, FUTEX_WAIT_PRIVATE, expected, timeout_ns)


@native(emit_call(I64))
def call_alloc_fn(address: int, start: int, data: int, gfp: int) -> int:
    """Call ``int64 alloc_fn(int64 *words, int64 data, int64 gfp)`` at an address."""
    link = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    called: int = link(int(address))(int(start), int(data), int(gfp))
    return called


@native(emit_call(ir.VoidType()))
def call_free_fn(address: int, start: int, element: int) -> int:
    """Call ``void free_fn(int64 *words, int64 element)`` at an address."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(int(address))(int(start), int(element))
    return 0


@native(emit.monotonic)
def monotonic_ns() -> int:
    """Return the monotonic clock."""
    return time.monotonic_ns()
