"""The machine code of the primitives in :mod:`realalloc.mm.prim`, as LLVM IR: calls of the C library.

Each function is named after what it emits, and makes an i64: what the call returns, or the negative errno where that is -1.
"""

from __future__ import annotations

import errno
import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils

MREMAP_MAYMOVE_FIXED_DONTUNMAP = 1 | 2 | 4
PROT_NONE = 0
PROT_BOTH = 1 | 2
MAP_PRIVATE_NORESERVE = 0x02 | 0x20 | 0x4000
RLIMIT_DATA = 2
RLIMIT_AS = 9
MAP_NONE_FIXED = 0x02 | 0x20 | 0x10 | 0x4000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
FUTEX_WAKE_PRIVATE = 1 | 128
FUTEX_WAIT_PRIVATE = 0 | 128
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 202)
NS = 1_000_000_000
CLOCK_MONOTONIC = 1
SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine(), 324)
PTHREAD_ATTR_BYTES = 64
SIGSET_BYTES = 128
SIG_BLOCK = 0
SIG_SETMASK = 2
THREAD_STACK_BYTES = 256 << 10
I32 = ir.IntType(32)
I64 = ir.IntType(64)
THREAD_KEY_SYMBOL = "realalloc_thread_key"


def _call(builder: Any, name: str, result: Any, arg_types: list[Any], args: list[Any]) -> Any:
    """Call a C function by name and return its result, or the negative errno where it is -1, as i64."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arg_types), name)
    narrowed = [builder.trunc(a, t) if t == I32 else a for a, t in zip(args, arg_types, strict=True)]
    value = builder.call(function, narrowed)
    location_type = ir.FunctionType(I32.as_pointer(), [])
    location = cgutils.get_or_insert_function(builder.module, location_type, "__errno_location")
    failed = builder.icmp_signed("==", value, ir.Constant(result, -1))
    out = cgutils.alloca_once(builder, I64)
    builder.store(builder.sext(value, I64) if result == I32 else value, out)
    with builder.if_then(failed, likely=False):
        builder.store(builder.sext(builder.neg(builder.load(builder.call(location, []))), I64), out)
    return builder.load(out)


def _constant(value: int) -> Any:
    return ir.Constant(I64, value)


def sched_yield(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    return _call(builder, "sched_yield", I32, [], [])


def _global(builder: Any, name: str) -> Any:
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, I64, name)


def thread_watch(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    key = builder.load(_global(builder, THREAD_KEY_SYMBOL))
    with builder.if_then(builder.icmp_signed(">=", key, _constant(0))):
        kind = ir.FunctionType(I32, [I32, I64])
        function = cgutils.get_or_insert_function(builder.module, kind, "pthread_setspecific")
        builder.call(function, [builder.trunc(key, I32), args[0]])
    return _constant(0)


def madvise(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "madvise", I32, [I64, I64, I32], list(args))


def mincore(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "mincore", I32, [I64, I64, I64], list(args))


def move_pages(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    source, target, length = args
    given = [source, length, length, _constant(MREMAP_MAYMOVE_FIXED_DONTUNMAP), target]
    result = _call(builder, "mremap", I64, [I64, I64, I64, I32, I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def forget(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [args[0], args[1], _constant(PROT_NONE), _constant(MAP_NONE_FIXED), _constant(-1), _constant(0)]
    result = _call(builder, "mmap", I64, [I64, I64, I32, I32, I32, I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def renew(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [args[0], args[1], _constant(PROT_BOTH), _constant(MAP_NONE_FIXED), _constant(-1), _constant(0)]
    result = _call(builder, "mmap", I64, [I64, I64, I32, I32, I32, I64], given)
    negative = builder.icmp_signed("<", result, _constant(0))
    return builder.select(negative, result, _constant(0))


def is_several(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    longer = builder.add(args[1], _constant(1 << 12))
    given = [args[0], args[1], longer, _constant(0), _constant(0)]
    result = _call(builder, "mremap", I64, [I64, I64, I64, I32, I64], given)
    return builder.zext(builder.icmp_signed("==", result, _constant(-errno.EFAULT)), I64)


def may_move(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    limits = _timespec(builder)  # two words: soft and hard
    at = builder.ptrtoint(limits, I64)
    out = cgutils.alloca_once_value(builder, _constant(0))
    endless = ir.Constant(ir.IntType(1), 1)
    for which in (RLIMIT_AS, RLIMIT_DATA):
        _call(builder, "getrlimit", I32, [I32, I64], [_constant(which), at])
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
        tried = _call(builder, "mmap", I64, [I64, I64, I32, I32, I32, I64], given)
        failed = builder.icmp_unsigned(">=", tried, _constant(-4095))
        with builder.if_else(failed) as (no, yes):
            with no:
                builder.store(tried, out)
            with yes:
                _call(builder, "munmap", I32, [I64, I64], [tried, args[0]])
    return builder.load(out)


def futex_wake(count: int) -> Any:
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        given = [_constant(SYS_FUTEX), args[0], _constant(FUTEX_WAKE_PRIVATE), _constant(count)]
        return _call(builder, "syscall", I64, [I64] * 4, given)

    return emit


def eventfd_write(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "eventfd_write", I32, [I32, I64], [args[0], _constant(1)])


def _timespec(builder: Any) -> Any:
    with builder.goto_entry_block():
        return builder.alloca(ir.ArrayType(I64, 2))


def _part(builder: Any, timespec: Any, index: int) -> Any:
    return builder.gep(timespec, [ir.Constant(I32, 0), ir.Constant(I32, index)])


def futex_sleep(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    address, expected, timeout_ns = args
    timespec = _timespec(builder)
    builder.store(builder.sdiv(timeout_ns, _constant(NS)), _part(builder, timespec, 0))
    builder.store(builder.srem(timeout_ns, _constant(NS)), _part(builder, timespec, 1))
    endless = builder.icmp_signed("<", timeout_ns, _constant(0))
    limit = builder.select(endless, _constant(0), builder.ptrtoint(timespec, I64))
    given = [_constant(SYS_FUTEX), address, _constant(FUTEX_WAIT_PRIVATE), expected, limit]
    return _call(builder, "syscall", I64, [I64] * 5, given)


def monotonic(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    timespec = _timespec(builder)
    _call(builder, "clock_gettime", I32, [I32, I64], [_constant(CLOCK_MONOTONIC), builder.ptrtoint(timespec, I64)])
    seconds, rest = (builder.load(_part(builder, timespec, k)) for k in (0, 1))
    return builder.add(builder.mul(seconds, _constant(NS)), rest)


def membarrier(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [_constant(SYS_MEMBARRIER), args[0], _constant(0), _constant(0)]
    return _call(builder, "syscall", I64, [I64, I64, I64, I64], given)


def thread_start(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    with builder.goto_entry_block():
        sizes = (PTHREAD_ATTR_BYTES, SIGSET_BYTES, SIGSET_BYTES, 8)
        attr, every, before, made = (
            builder.ptrtoint(builder.alloca(ir.ArrayType(ir.IntType(64), (size + 7) // 8)), I64) for size in sizes
        )
    _call(builder, "sigfillset", I32, [I64], [every])
    _call(builder, "pthread_sigmask", I32, [I32, I64, I64], [_constant(SIG_BLOCK), every, before])
    _call(builder, "pthread_attr_init", I32, [I64], [attr])
    _call(builder, "pthread_attr_setstacksize", I32, [I64, I64], [attr, _constant(THREAD_STACK_BYTES)])
    status = _call(builder, "pthread_create", I32, [I64] * 4, [made, attr, args[0], _constant(0)])
    _call(builder, "pthread_attr_destroy", I32, [I64], [attr])
    _call(builder, "pthread_sigmask", I32, [I32, I64, I64], [_constant(SIG_SETMASK), before, _constant(0)])
    failed = builder.icmp_signed("!=", status, _constant(0))
    identity = builder.load(builder.inttoptr(made, I64.as_pointer()))
    return builder.select(failed, builder.neg(status), identity)


def thread_join(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "pthread_join", I32, [I64, I64], [args[0], _constant(0)])


def raise_flag(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    at = builder.inttoptr(args[0], I64.as_pointer())
    return builder.atomic_rmw("xchg", at, _constant(1), "seq_cst")
