"""The few system calls that jitted code makes, each with a plain Python twin.

pre: addresses and lengths are page multiples inside the arena's range. Each returns 0 or a negative errno.
"""

from __future__ import annotations

import ctypes
import os
import platform
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
MAP_NONE_FIXED = 0x02 | 0x20 | 0x10 | 0x4000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
FUTEX_WAKE_PRIVATE = 1 | 128
FUTEX_WAIT_PRIVATE = 0 | 128
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 202)
ALL_WAITERS = 1 << 30
SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine(), 324)
MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3
MEMBARRIER_REGISTER_PRIVATE_EXPEDITED = 1 << 4

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


# What a waiter does between two looks at a lock: a function pointer, so that the room above can replace sched_yield(2) by
# something that also lets go of what only it knows of. Reached by symbol: machine code on disk may hold no address.
_relax = (ctypes.c_int64 * 1)(ctypes.cast(_libc.sched_yield, ctypes.c_void_p).value or 0)
_RELAX_SYMBOL = "realalloc_relax"
llvmlite.binding.add_symbol(_RELAX_SYMBOL, ctypes.addressof(_relax))


def set_relax(address: int) -> None:
    """Let waiters call another C function, ``int f(void)``, for the life of the process."""
    _relax[0] = address


def _emit_relax(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    slot = builder.module.globals.get(_RELAX_SYMBOL) or ir.GlobalVariable(builder.module, _I64, _RELAX_SYMBOL)
    function = builder.inttoptr(builder.load(slot), ir.FunctionType(_I32, []).as_pointer())
    return builder.sext(builder.call(function, []), _I64)


def _emit_madvise(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _call(builder, "madvise", _I32, [_I64, _I64, _I32], list(args))


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


def _emit_wake(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [_constant(SYS_FUTEX), args[0], _constant(FUTEX_WAKE_PRIVATE), _constant(ALL_WAITERS)]
    return _call(builder, "syscall", _I64, [_I64, _I64, _I64, _I64], given)


def _emit_membarrier(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    given = [_constant(SYS_MEMBARRIER), args[0], _constant(0), _constant(0)]
    return _call(builder, "syscall", _I64, [_I64, _I64, _I64, _I64], given)


@native(_emit_membarrier)
def membarrier(command: int) -> int:
    """Make every running thread of this process execute a full memory barrier (membarrier(2))."""
    return _twin(_libc.syscall(ctypes.c_long(SYS_MEMBARRIER), ctypes.c_long(int(command)), 0, 0))


@native(_emit_yield)
def sched_yield() -> int:
    """Let another thread run."""
    os.sched_yield()
    return 0


@native(_emit_relax)
def relax() -> int:
    """Let others run: the holder of a lock, above all."""
    os.sched_yield()
    return 0


@native(_emit_madvise)
def madvise(address: int, length: int, advice: int) -> int:
    """madvise(2)."""
    return _twin(_libc.madvise(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(length)), int(advice)))


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


@native(_emit_wake)
def futex_wake_all(address: int) -> int:
    """Wake every thread that sleeps on the 32-bit word at ``address``."""
    wake = (ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(int(address)), FUTEX_WAKE_PRIVATE, ALL_WAITERS)
    return _twin(_libc.syscall(*wake))
