"""The few calls that jitted code makes, of the system and of a user's machine code, each with a plain Python twin.

pre: addresses and lengths are page multiples inside the arena's range. Each returns 0 or a negative errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import time
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from realalloc.mm.jit import native

MREMAP_MAYMOVE_FIXED_DONTUNMAP = 1 | 2 | 4
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
PROT_NONE = 0
PROT_BOTH = 1 | 2
MAP_PRIVATE_NORESERVE = 0x02 | 0x20 | 0x4000
RLIMIT_DATA = 2
RLIMIT_AS = 9
MAP_NONE_FIXED = 0x02 | 0x20 | 0x10 | 0x4000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
FUTEX_WAKE_PRIVATE = 1 | 128
FUTEX_WAIT_PRIVATE = 0 | 128
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 202)
ALL_WAITERS = 1 << 30
NS = 1_000_000_000
CLOCK_MONOTONIC = 1
SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine(), 324)
MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3
MEMBARRIER_REGISTER_PRIVATE_EXPEDITED = 1 << 4
PTHREAD_ATTR_BYTES = 64
SIGSET_BYTES = 128
SIG_BLOCK = 0
SIG_SETMASK = 2
THREAD_STACK_BYTES = 256 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_ssize_t
_libc.mmap.restype = ctypes.c_ssize_t
_libc.syscall.restype = ctypes.c_ssize_t

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


def _call(builder: Any, name: str, result: Any, arg_types: list[Any], args: list[Any]) -> Any:
    """Call a C function by name and return its result, or the negative errno where it is -1, as i64."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arg_types), name)
    narrowed = [builder.trunc(a, t) if t == _I32 else a for a, t in zip(args, arg_types, strict=True)]
    value = builder.call(function, narrowed)
    location_type = ir.FunctionType(_I32.as_pointer(), [])
    location = cgutils.get_or_insert_function(builder.module, location_type, "__errno_location")
    failed = builder.icmp_signed("==", value, ir.Constant(result, -1))
    out = cgutils.alloca_once(builder, _I64)
    builder.store(builder.sext(value, _I64) if result == _I32 else value, out)
    with builder.if_then(failed, likely=False):
        builder.store(builder.sext(builder.neg(builder.load(builder.call(location, []))), _I64), out)
    return builder.load(out)


def _constant(value: int) -> Any:
    return ir.Constant(_I64, value)


def _twin(value: int) -> int:
    return -ctypes.get_errno() if value == -1 else value


def _emit_yield(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    return _call(builder, "sched_yield", _I32, [], [])


# The key under which a thread tells the C library that it has slots: its destructor runs when the thread ends. -1: none yet.
_thread_key = (ctypes.c_int64 * 1)(-1)
_THREAD_KEY_SYMBOL = "realalloc_thread_key"
llvmlite.binding.add_symbol(_THREAD_KEY_SYMBOL, ctypes.addressof(_thread_key))


def set_thread_key(key: int) -> None:
    """Let threads that get a slot store their identity under this pthread key, for the life of the process."""
    _thread_key[0] = key


def _global(builder: Any, name: str) -> Any:
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, _I64, name)


def _emit_thread_watch(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    key = builder.load(_global(builder, _THREAD_KEY_SYMBOL))
    with builder.if_then(builder.icmp_signed(">=", key, _constant(0))):
        kind = ir.FunctionType(_I32, [_I32, _I64])
        function = cgutils.get_or_insert_function(builder.module, kind, "pthread_setspecific")
        builder.call(function, [builder.trunc(key, _I32), args[0]])
    return _constant(0)


def _emit_madvise(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "madvise", _I32, [_I64, _I64, _I32], list(args))


def _emit_mincore(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "mincore", _I32, [_I64, _I64, _I64], list(args))


def _emit_move(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    source, target, length = args
    given = [source, length, length, _constant(MREMAP_MAYMOVE_FIXED_DONTUNMAP), target]
    result = _call(builder, "mremap", _I64, [_I64, _I64, _I64, _I32, _I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def _emit_forget(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [args[0], args[1], _constant(PROT_NONE), _constant(MAP_NONE_FIXED), _constant(-1), _constant(0)]
    result = _call(builder, "mmap", _I64, [_I64, _I64, _I32, _I32, _I32, _I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def _emit_renew(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [args[0], args[1], _constant(PROT_BOTH), _constant(MAP_NONE_FIXED), _constant(-1), _constant(0)]
    result = _call(builder, "mmap", _I64, [_I64, _I64, _I32, _I32, _I32, _I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def _emit_is_several(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    longer = builder.add(args[1], _constant(1 << 12))
    given = [args[0], args[1], longer, _constant(0), _constant(0)]
    result = _call(builder, "mremap", _I64, [_I64, _I64, _I64, _I32, _I64], given)
    return builder.zext(builder.icmp_signed("==", result, _constant(-errno.EFAULT)), _I64)


def _emit_may_move(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    limits = _timespec(builder)  # two words: soft and hard
    at = builder.ptrtoint(limits, _I64)
    out = cgutils.alloca_once_value(builder, _constant(0))
    endless = ir.Constant(ir.IntType(1), 1)
    for which in (RLIMIT_AS, RLIMIT_DATA):
        _call(builder, "getrlimit", _I32, [_I32, _I64], [_constant(which), at])
        soft = builder.load(_part(builder, limits, 0))
        endless = builder.and_(endless, builder.icmp_signed("==", soft, _constant(-1)))
    with builder.if_then(builder.not_(endless), likely=False):
        given = [
            _constant(0),
            args[0],
            _constant(PROT_BOTH),
            _constant(MAP_PRIVATE_NORESERVE),
            _constant(-1),
            _constant(0),
        ]
        tried = _call(builder, "mmap", _I64, [_I64, _I64, _I32, _I32, _I32, _I64], given)
        failed = builder.icmp_unsigned(">=", tried, _constant(-4095))
        with builder.if_else(failed) as (no, yes):
            with no:
                builder.store(tried, out)
            with yes:
                _call(builder, "munmap", _I32, [_I64, _I64], [tried, args[0]])
    return builder.load(out)


def _emit_wake(count: int) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        given = [_constant(SYS_FUTEX), args[0], _constant(FUTEX_WAKE_PRIVATE), _constant(count)]
        return _call(builder, "syscall", _I64, [_I64] * 4, given)

    return emit


def _emit_eventfd(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "eventfd_write", _I32, [_I32, _I64], [args[0], _constant(1)])


def _timespec(builder: Any) -> Any:
    with builder.goto_entry_block():
        return builder.alloca(ir.ArrayType(_I64, 2))


def _part(builder: Any, timespec: Any, index: int) -> Any:
    return builder.gep(timespec, [ir.Constant(_I32, 0), ir.Constant(_I32, index)])


def _emit_sleep(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    address, expected, timeout_ns = args
    timespec = _timespec(builder)
    builder.store(builder.sdiv(timeout_ns, _constant(NS)), _part(builder, timespec, 0))
    builder.store(builder.srem(timeout_ns, _constant(NS)), _part(builder, timespec, 1))
    endless = builder.icmp_signed("<", timeout_ns, _constant(0))
    limit = builder.select(endless, _constant(0), builder.ptrtoint(timespec, _I64))
    given = [_constant(SYS_FUTEX), address, _constant(FUTEX_WAIT_PRIVATE), expected, limit]
    return _call(builder, "syscall", _I64, [_I64] * 5, given)


def _emit_monotonic(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    timespec = _timespec(builder)
    _call(builder, "clock_gettime", _I32, [_I32, _I64], [_constant(CLOCK_MONOTONIC), builder.ptrtoint(timespec, _I64)])
    seconds, rest = (builder.load(_part(builder, timespec, k)) for k in (0, 1))
    return builder.add(builder.mul(seconds, _constant(NS)), rest)


def emit_call(result: Any) -> Any:
    """Make what emits a call of the machine code at the address that is the first argument."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        link = ir.FunctionType(result, [_I64] * (len(args) - 1))
        value = builder.call(builder.inttoptr(args[0], link.as_pointer()), args[1:])
        return value if result == _I64 else _constant(0)

    return emit


def _futex(address: int, operation: int, value: int, timeout_ns: int = -1) -> int:
    limit = ctypes.byref((ctypes.c_long * 2)(*divmod(int(timeout_ns), NS))) if timeout_ns >= 0 else ctypes.c_void_p(0)
    word = ctypes.c_uint(int(value) & 0xFFFFFFFF)
    return _twin(_libc.syscall(ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(int(address)), operation, word, limit))


def _emit_membarrier(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [_constant(SYS_MEMBARRIER), args[0], _constant(0), _constant(0)]
    return _call(builder, "syscall", _I64, [_I64, _I64, _I64, _I64], given)


def _emit_thread_start(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    with builder.goto_entry_block():
        sizes = (PTHREAD_ATTR_BYTES, SIGSET_BYTES, SIGSET_BYTES, 8)
        attr, every, before, made = (
            builder.ptrtoint(builder.alloca(ir.ArrayType(ir.IntType(64), (size + 7) // 8)), _I64) for size in sizes
        )
    _call(builder, "sigfillset", _I32, [_I64], [every])
    _call(builder, "pthread_sigmask", _I32, [_I32, _I64, _I64], [_constant(SIG_BLOCK), every, before])
    _call(builder, "pthread_attr_init", _I32, [_I64], [attr])
    _call(builder, "pthread_attr_setstacksize", _I32, [_I64, _I64], [attr, _constant(THREAD_STACK_BYTES)])
    status = _call(builder, "pthread_create", _I32, [_I64] * 4, [made, attr, args[0], _constant(0)])
    _call(builder, "pthread_attr_destroy", _I32, [_I64], [attr])
    _call(builder, "pthread_sigmask", _I32, [_I32, _I64, _I64], [_constant(SIG_SETMASK), before, _constant(0)])
    failed = builder.icmp_signed("!=", status, _constant(0))
    identity = builder.load(builder.inttoptr(made, _I64.as_pointer()))
    return builder.select(failed, builder.neg(status), identity)


def _emit_thread_join(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "pthread_join", _I32, [_I64, _I64], [args[0], _constant(0)])


@native(_emit_thread_start)
def thread_start(function: int) -> int:
    """Start a thread of machine code at ``function`` that no signal is delivered to; its pthread_t, or a negative errno.
    Without machine code there is nothing that could run.
    """
    return -errno.ENOSYS + 0 * function


@native(_emit_thread_join)
def thread_join(identity: int) -> int:
    """Wait until such a thread has ended."""
    return 0 * identity


@native(_emit_membarrier)
def membarrier(command: int) -> int:
    """Make every running thread of this process execute a full memory barrier (membarrier(2))."""
    return _twin(_libc.syscall(ctypes.c_long(SYS_MEMBARRIER), ctypes.c_long(int(command)), 0, 0))


@native(_emit_yield)
def sched_yield() -> int:
    """Let another thread run."""
    time.sleep(1e-6)  # sched_yield(2) alone hardly ever gives the GIL away
    return 0


@native(_emit_thread_watch)
def thread_watch(identity: int) -> int:
    """Have the C library say when the calling thread ends (pthread_setspecific(3)); nothing without machine code."""
    return 0 * identity


@native(_emit_madvise)
def madvise(address: int, length: int, advice: int) -> int:
    """madvise(2)."""
    return _twin(_libc.madvise(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), int(advice)))


@native(_emit_mincore)
def mincore(address: int, length: int, vector: int) -> int:
    """Write a byte for each page at ``vector``, odd if the page is resident (mincore(2))."""
    return _twin(
        _libc.mincore(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), ctypes.c_void_p(int(vector)))
    )


@native(_emit_move)
def move_pages(source: int, target: int, length: int) -> int:
    """Move the page-table entries of a range; the source stays mapped and empty (mremap(2), MREMAP_DONTUNMAP)."""
    source, target, length = int(source), int(target), int(length)
    result = _libc.mremap(
        ctypes.c_void_p(source), ctypes.c_size_t(length), ctypes.c_size_t(length),
        MREMAP_MAYMOVE_FIXED_DONTUNMAP, ctypes.c_void_p(target),
    )  # fmt: skip
    return -ctypes.get_errno() if result == -1 else 0


@native(_emit_forget)
def forget(address: int, length: int) -> int:
    """Replace a range by one that faults when touched, dropping its pages (mmap(2), PROT_NONE)."""
    address, length = int(address), int(length)
    result = _libc.mmap(
        ctypes.c_void_p(address), ctypes.c_size_t(length), PROT_NONE, MAP_NONE_FIXED, -1, ctypes.c_long(0)
    )
    return -ctypes.get_errno() if result == -1 else 0


@native(_emit_renew)
def renew(address: int, length: int) -> int:
    """Replace a range by fresh memory, which reads as zero (mmap(2))."""
    address, length = int(address), int(length)
    result = _libc.mmap(
        ctypes.c_void_p(address), ctypes.c_size_t(length), PROT_BOTH, MAP_NONE_FIXED, -1, ctypes.c_long(0)
    )
    return -ctypes.get_errno() if result == -1 else 0


@native(_emit_is_several)
def is_several(address: int, length: int) -> int:
    """Tell whether a range, behind which something is mapped, is several mappings: why it cannot grow in place says so."""
    result = _libc.mremap(
        ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), ctypes.c_size_t(int(length) + (1 << 12)), 0, None
    )
    return 1 if result == -1 and ctypes.get_errno() == errno.EFAULT else 0


@native(_emit_may_move)
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


def _emit_raise(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    at = builder.inttoptr(args[0], _I64.as_pointer())
    return builder.atomic_rmw("xchg", at, _constant(1), "seq_cst")


@native(_emit_raise)
def raise_flag(address: int) -> int:
    """Store 1 into the word at ``address``, behind all stores before; return what was there."""
    word = ctypes.c_int64.from_address(int(address))
    before, word.value = word.value, 1
    return before


@native(_emit_wake(ALL_WAITERS))
def futex_wake_all(address: int) -> int:
    """Wake every thread that sleeps on the 32-bit word at ``address``."""
    return _futex(address, FUTEX_WAKE_PRIVATE, ALL_WAITERS)


@native(_emit_wake(1))
def futex_wake_one(address: int) -> int:
    """Wake one of them."""
    return _futex(address, FUTEX_WAKE_PRIVATE, 1)


@native(_emit_eventfd)
def eventfd_signal(fd: int) -> int:
    """Add 1 to an eventfd (eventfd(2)): an event loop that watches it wakes."""
    os.eventfd_write(int(fd), 1)
    return 0


@native(_emit_sleep)
def futex_sleep(address: int, expected: int, timeout_ns: int) -> int:
    """Sleep while the 32-bit word at ``address`` is ``expected``, until woken or for ``timeout_ns``, < 0: without limit. It
    may also end for no reason.
    """
    return _futex(address, FUTEX_WAIT_PRIVATE, expected, timeout_ns)


@native(emit_call(_I64))
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


@native(_emit_monotonic)
def monotonic_ns() -> int:
    """Return the monotonic clock."""
    return time.monotonic_ns()
