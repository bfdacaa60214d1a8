"""What the loops of several threads share: waiting, exchanging, a lock; and words at addresses."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import njit

from realalloc.lease.capi import load_at, store_at
from realalloc.mm.atomic import atomic_load, atomic_store, compare_and_swap
from realalloc.mm.jit import Words, native
from realalloc.mm.prim import sched_yield

SPINS: Final = 1000  # looks before the processor is offered: a peer's thread may not be running
LINE: Final = 16  # words between two marks of different threads: two cache lines, as lines are fetched in pairs

_I64 = ir.IntType(64)
_MULTIPLIER, _INCREMENT, _STATE = 0x5DEECE66D, 11, (1 << 48) - 1  # those of drand48(3)


@njit(forceinline=True)
def wait_above(marks: Words, index: int, least: int) -> None:
    """Wait until a mark has reached ``least``."""
    spins = 0
    while atomic_load(marks, index) < least:
        spins += 1
        if spins % SPINS == 0:
            sched_yield()


@njit(forceinline=True)
def exchange(slots: Words, index: int, value: int) -> int:
    """Put a value into a slot and return what was there."""
    while True:
        old = atomic_load(slots, index)
        if compare_and_swap(slots, index, old, value) == 1:
            return old


@njit(forceinline=True)
def enter(marks: Words, index: int) -> None:
    """Take a lock."""
    spins = 0
    while compare_and_swap(marks, index, 0, 1) == 0:
        spins += 1
        if spins % SPINS == 0:
            sched_yield()


@njit(forceinline=True)
def leave(marks: Words, index: int) -> None:
    """Release a lock."""
    atomic_store(marks, index, 0)


@njit(forceinline=True)
def roll(state: int) -> int:
    """Return the next state of the dice; ``state >> 17`` is a number of 31 bits."""
    return (state * _MULTIPLIER + _INCREMENT) & _STATE


@njit(forceinline=True)
def fill(address: int, nbytes: int, value: int) -> None:
    """Write all whole words of a block."""
    for k in range(nbytes >> 3):
        store_at(address + 8 * k, value)


@njit(forceinline=True)
def total_of(address: int, nbytes: int) -> int:
    """Read all whole words of a block."""
    total = 0
    for k in range(nbytes >> 3):
        total += load_at(address + 8 * k)
    return total


def _emit_settled(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    kept = ir.InlineAsm(ir.FunctionType(_I64, [_I64]), "", "=r,0", side_effect=True)
    return builder.call(kept, [args[0]])


@native(_emit_settled)
def settled(address: int) -> int:
    """Return an address as one register, also where it is a sum of base and offset.

    A processor that renames memory (Intel since Golden Cove) forwards a store to the next load of ``[register]`` for
    nothing, and to one of ``[base + offset]`` in five cycles: 2.4 ns a write instead of 0.3, whoever allocated.
    """
    return address


def _emit_bump(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    pointer = builder.inttoptr(args[0], _I64.as_pointer())
    value = builder.add(builder.load_atomic(pointer, "monotonic", 8), ir.Constant(_I64, 1))
    builder.store_atomic(value, pointer, "monotonic", 8)
    return value


@native(_emit_bump)
def bump_at(address: int) -> int:
    """Load, add 1, store, each of them really done; not one locked instruction."""
    return store_at(address, load_at(address) + 1)
