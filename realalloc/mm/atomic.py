"""Atomic access to a word of the arena, and the arena lock.

The lock guards every structure in ``mm``. It is held for one operation and never across Python code, so its holder
always makes progress, with or without the GIL; a waiter yields the processor instead of spinning on.
Invariant: ``words[H_LOCK] in (0, 1)``, and 0 whenever no kernel runs.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from realalloc.mm.jit import JIT, Words, entry, kernel, native, pointer_of
from realalloc.mm.layout import H_LOCK
from realalloc.mm.prim import sched_yield

SPINS = 64

_twin_lock = threading.Lock()


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.gep(pointer_of(context, builder, signature.args[0], args[0]), [args[1]])


def _emit_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load_atomic(_pointer(context, builder, signature, args), "acquire", 8)


def _emit_store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store_atomic(args[2], _pointer(context, builder, signature, args), "release", 8)
    return args[2]


def _emit_cas(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = _pointer(context, builder, signature, args)
    pair = builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), ir.IntType(64))


def _emit_add(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = _pointer(context, builder, signature, args)
    return builder.add(builder.atomic_rmw("add", pointer, args[2], "acq_rel"), args[2])


def _emit_address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.ptrtoint(pointer_of(context, builder, signature.args[0], args[0]), cgutils.intp_t)


@native(_emit_load)
def atomic_load(words: Words, index: int) -> int:
    """Load with acquire order."""
    return int(words[index])


@native(_emit_store)
def atomic_store(words: Words, index: int, value: int) -> int:
    """Store with release order; return the value."""
    words[index] = value
    return value


@native(_emit_cas)
def compare_and_swap(words: Words, index: int, expected: int, value: int) -> int:
    """Store ``value`` if the word is ``expected``; return 1 if it was."""
    with _twin_lock:
        if words[index] != expected:
            return 0
        words[index] = value
        return 1


@native(_emit_add)
def atomic_add(words: Words, index: int, value: int) -> int:
    """Add and return the new value."""
    with _twin_lock:
        words[index] += value
        return int(words[index])


@native(_emit_address)
def address_of(words: Words) -> int:
    """Return the address of word 0, for system calls only: it is never stored."""
    return int(words.ctypes.data)


@entry
def lock_contended(words: Words) -> int:
    """Wait for the arena lock and take it."""
    while True:
        for _ in range(SPINS):
            if atomic_load(words, H_LOCK) == 0 and compare_and_swap(words, H_LOCK, 0, 1) == 1:
                return 0
        sched_yield()


if JIT:

    @kernel
    def lock(words: Words) -> None:
        """Take the arena lock."""
        if compare_and_swap(words, H_LOCK, 0, 1) == 0:
            lock_contended(words)

    @kernel
    def unlock(words: Words) -> None:
        """Release the arena lock."""
        atomic_store(words, H_LOCK, 0)

else:
    # Plain Python can be interrupted by the collector while it holds the lock, and a finalizer may free a block: it
    # would wait for its own thread. So the collector waits instead.
    class _Collector(threading.local):
        """Whether the collector was on before each lock that this thread holds."""

        def __init__(self) -> None:
            self.was_on: list[bool] = []

    _collector = _Collector()

    def lock(words: Words) -> None:
        """Take the arena lock."""
        _collector.was_on.append(gc.isenabled())
        gc.disable()
        if compare_and_swap(words, H_LOCK, 0, 1) == 0:
            lock_contended(words)

    def unlock(words: Words) -> None:
        """Release the arena lock."""
        atomic_store(words, H_LOCK, 0)
        if _collector.was_on.pop():
            gc.enable()


@entry
def hold(words: Words) -> int:
    """Take the arena lock from above: for ``fork()``, which must not copy a lock that another thread holds."""
    lock(words)
    return 0


@entry
def let_go(words: Words) -> int:
    """Release the arena lock from above."""
    unlock(words)
    return 0
