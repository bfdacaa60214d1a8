"""Atomic access to a word of the arena, a prefetch, and the arena lock.

The lock guards every structure in ``mm``. It is held for one operation and never across Python code, so its holder
always makes progress, with or without the GIL; a waiter looks for a moment, then sleeps (Drepper, Futexes are tricky: mutex2).

A locked instruction is half of what a pair of kmalloc and kfree costs, so the lock starts *biased* to the thread that made
the arena: that thread enters with two plain stores and two plain loads. The first other thread revokes the bias for ever:

    owner                                    revoker
    INSIDE = 1                               LOCK: owner -> REVOKING   (compare and swap)
    compiler fence                           membarrier: a full barrier on every running thread
    LOCK still me? enter : INSIDE = 0        wait for INSIDE = 0;  LOCK = HELD

Either the owner's load comes after the barrier and sees REVOKING, or its store came before and the revoker sees INSIDE.
Invariant: at most one thread is inside: LOCK is HELD or WAITED, INSIDE touched in passing only; or it is neither, INSIDE = 1.
"""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from realalloc.mm.jit import JIT, Words, entry, kernel, native, pointer_of
from realalloc.mm.layout import H_INSIDE, H_LOCK, LOCK_FREE, LOCK_HELD, LOCK_REVOKING, LOCK_WAITED, WORD_BYTES
from realalloc.mm.prim import (
    MEMBARRIER_PRIVATE_EXPEDITED,
    MEMBARRIER_REGISTER_PRIVATE_EXPEDITED,
    futex_sleep,
    futex_wake_one,
    membarrier,
    sched_yield,
)

SPINS = 3000  # looks: about as long as going to sleep and back takes, many times what a refill holds the lock

_twin_lock = threading.Lock()
os.register_at_fork(before=_twin_lock.acquire, after_in_parent=_twin_lock.release, after_in_child=_twin_lock.release)


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.gep(pointer_of(context, builder, signature.args[0], args[0]), [args[1]])


def _emit_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load_atomic(_pointer(context, builder, signature, args), "acquire", 8)


def _emit_relaxed_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load_atomic(_pointer(context, builder, signature, args), "monotonic", 8)


def _emit_plain_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load_atomic(_pointer(context, builder, signature, args), "unordered", 8)


def _emit_relaxed_store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store_atomic(args[2], _pointer(context, builder, signature, args), "monotonic", 8)
    return args[2]


def _emit_compiler_fence(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    builder.fence("seq_cst", targetscope="singlethread")
    return ir.Constant(ir.IntType(64), 0)


def _emit_thread_identity(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    byte = ir.IntType(8).as_pointer()
    name = "llvm.thread.pointer.p0" if llvmlite.binding.llvm_version_info[0] >= 20 else "llvm.thread.pointer"
    intrinsic = cgutils.get_or_insert_function(builder.module, ir.FunctionType(byte, []), name)
    return builder.ptrtoint(builder.call(intrinsic, []), ir.IntType(64))


def _emit_prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    base = builder.bitcast(pointer_of(context, builder, signature.args[0], args[0]), byte)
    name = "llvm.prefetch.p0" if llvmlite.binding.llvm_version_info[0] >= 20 else "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    intrinsic = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(intrinsic, [builder.gep(base, [args[1]]), flag(1), flag(3), flag(1)])  # for writing, to stay, data
    return ir.Constant(ir.IntType(64), 0)


def _thread_word(context: Any, builder: Any, signature: Any, at: Any) -> Any:
    where = builder.add(_emit_thread_identity(context, builder, signature, ()), at)
    return builder.inttoptr(where, ir.IntType(64).as_pointer())


def _emit_thread_word(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load(_thread_word(context, builder, signature, args[0]))


def _emit_set_thread_word(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store(args[1], _thread_word(context, builder, signature, args[0]))
    return args[1]


def _emit_store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store_atomic(args[2], _pointer(context, builder, signature, args), "release", 8)
    return args[2]


def _emit_cas(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = _pointer(context, builder, signature, args)
    pair = builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), ir.IntType(64))


def _emit_exchange(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.atomic_rmw("xchg", _pointer(context, builder, signature, args), args[2], "acq_rel")


def _emit_add(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = _pointer(context, builder, signature, args)
    return builder.add(builder.atomic_rmw("add", pointer, args[2], "acq_rel"), args[2])


def _emit_address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.ptrtoint(pointer_of(context, builder, signature.args[0], args[0]), cgutils.intp_t)


@native(_emit_load)
def atomic_load(words: Words, index: int) -> int:
    """Load with acquire order."""
    return int(words[index])


@native(_emit_thread_word)
def thread_word(at: int) -> int:
    """Load the word of the calling thread that is ``at`` bytes from its thread pointer; 0 without machine code."""
    return 0 * at


@native(_emit_set_thread_word)
def set_thread_word(at: int, value: int) -> int:
    """Store it; return the value."""
    return 0 * at + value


@native(_emit_store)
def atomic_store(words: Words, index: int, value: int) -> int:
    """Store with release order; return the value."""
    words[index] = value
    return value


@native(_emit_relaxed_load)
def relaxed_load(words: Words, index: int) -> int:
    """Load without order, but exactly here and once."""
    return int(words[index])


@native(_emit_plain_load)
def unordered_load(words: Words, index: int) -> int:
    """Load whole, as any variable: the compiler may do it earlier, or take what an earlier load found."""
    return int(words[index])


@native(_emit_relaxed_store)
def relaxed_store(words: Words, index: int, value: int) -> int:
    """Store without order, but exactly here and once; return the value."""
    words[index] = value
    return value


@native(_emit_compiler_fence)
def compiler_fence() -> int:
    """Keep the compiler, not the processor, from moving accesses across."""
    return 0


@native(_emit_thread_identity)
def thread_identity() -> int:
    """Return what tells the calling thread from all others that live now: its thread pointer."""
    return threading.get_ident()


@native(_emit_prefetch)
def prefetch_for_write(words: Words, offset: int) -> int:  # noqa: ARG001
    """Ask for the cache line of a byte offset, any, as its first store would; nothing waits for it, and it never faults."""
    return 0


@native(_emit_cas)
def compare_and_swap(words: Words, index: int, expected: int, value: int) -> int:
    """Store ``value`` if the word is ``expected``; return 1 if it was."""
    with _twin_lock:
        if words[index] != expected:
            return 0
        words[index] = value
        return 1


@native(_emit_exchange)
def exchange_word(words: Words, index: int, value: int) -> int:
    """Store a value and return what was there."""
    with _twin_lock:
        old = int(words[index])
        words[index] = value
        return old


@native(_emit_add)
def atomic_add(words: Words, index: int, value: int) -> int:
    """Add and return the new value."""
    with _twin_lock:
        words[index] += value
        return int(words[index])


@native(_emit_address)
def address_of(words: Words) -> int:
    """Return the address of word 0, for system calls only: it is never stored."""
    return int(words.__array_interface__["data"][0])


@kernel
def _revoke(words: Words) -> None:
    """Wait for the thread that the lock was biased to; the caller has made the lock LOCK_REVOKING."""
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED)
    membarrier(MEMBARRIER_PRIVATE_EXPEDITED)
    while atomic_load(words, H_INSIDE) != 0:
        sched_yield()
    atomic_store(words, H_LOCK, LOCK_HELD)


@entry
def lock_contended(words: Words) -> int:
    """Wait for the arena lock and take it, revoking another thread's bias. Looks SPINS times, then sleeps."""
    spins = 0
    state = LOCK_HELD
    while True:
        seen = atomic_load(words, H_LOCK)
        if seen == LOCK_FREE:
            if compare_and_swap(words, H_LOCK, LOCK_FREE, state) == 1:
                return 0
        elif seen > LOCK_WAITED:
            if compare_and_swap(words, H_LOCK, seen, LOCK_REVOKING) == 1:
                _revoke(words)
                return 0
        elif seen == LOCK_REVOKING:
            sched_yield()
        elif spins < SPINS:
            spins += 1
        elif seen == LOCK_WAITED or compare_and_swap(words, H_LOCK, LOCK_HELD, LOCK_WAITED) == 1:
            state = LOCK_WAITED  # others may sleep, too: who takes it like this wakes the next one
            futex_sleep(address_of(words) + H_LOCK * WORD_BYTES, LOCK_WAITED, -1)


@kernel
def _release(words: Words) -> None:
    """Release a lock that is LOCK_HELD or LOCK_WAITED."""
    if exchange_word(words, H_LOCK, LOCK_FREE) == LOCK_WAITED:
        futex_wake_one(address_of(words) + H_LOCK * WORD_BYTES)


if JIT:

    @kernel
    def quiet() -> None:
        """Let nothing of this thread interrupt what follows: nothing of Python runs in machine code anyway."""

    @kernel
    def loud() -> None:
        """End what :func:`quiet` began."""

    @kernel
    def lock(words: Words) -> None:
        """Take the arena lock."""
        me = thread_identity()
        if relaxed_load(words, H_LOCK) == me:
            relaxed_store(words, H_INSIDE, 1)
            compiler_fence()
            if atomic_load(words, H_LOCK) == me:
                return
            atomic_store(words, H_INSIDE, 0)
        if compare_and_swap(words, H_LOCK, LOCK_FREE, LOCK_HELD) == 0:
            lock_contended(words)

    @kernel
    def unlock(words: Words) -> None:
        """Release the arena lock: only a holder without bias finds LOCK_HELD or LOCK_WAITED."""
        seen = relaxed_load(words, H_LOCK)
        if seen == LOCK_HELD or seen == LOCK_WAITED:
            _release(words)
        else:
            atomic_store(words, H_INSIDE, 0)

else:
    # Plain Python can be interrupted by the collector while it holds the lock or is at its sheaves, and a finalizer may
    # free a block: it would wait for its own thread, or find a sheaf half changed. So the collector waits instead.
    class _Collector(threading.local):
        """Whether the collector was on before each :func:`quiet` of this thread."""

        def __init__(self) -> None:
            self.was_on: list[bool] = []

    _collector = _Collector()

    def quiet() -> None:
        """Keep the collector out."""
        _collector.was_on.append(gc.isenabled())
        gc.disable()

    def loud() -> None:
        """Let it in again."""
        if _collector.was_on.pop():
            gc.enable()

    def lock(words: Words) -> None:
        """Take the arena lock."""
        quiet()
        if compare_and_swap(words, H_LOCK, 0, 1) == 0:
            lock_contended(words)

    def unlock(words: Words) -> None:
        """Release the arena lock."""
        _release(words)
        loud()


@entry
def bias(words: Words) -> int:
    """Bias a free lock to the calling thread, where the system can revoke it; 1 if it did."""
    if not JIT or membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED) != 0:
        return 0
    return compare_and_swap(words, H_LOCK, LOCK_FREE, thread_identity())


@kernel
def unlock_in_child(words: Words) -> None:
    """Release the arena lock in the child of a fork, where who sleeps for it or revokes its bias does not exist."""
    if relaxed_load(words, H_LOCK) != thread_identity():
        atomic_store(words, H_LOCK, LOCK_FREE)
    atomic_store(words, H_INSIDE, 0)
    loud()
