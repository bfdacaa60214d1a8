"""Jitted loops that replay a trace, made as those of ``basic`` are: one call a recorded thread.

A *hand-over* is an event on a slot whose last event was another thread's: the earlier one posts a number for the slot, the
later one waits for it. So blocks live as long as they did in the program, and are freed by the thread that freed them.
Guarantee: threads that wait for each other end when one of them fails: the last word of ``turns`` says so.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from realalloc.lab.loops.basic import FAILED
from realalloc.lab.loops.waits import SPINS, fill
from realalloc.lab.trace.format import FREE, REALLOC
from realalloc.mm.atomic import atomic_load, atomic_store
from realalloc.mm.prim import sched_yield


@njit(nogil=True)
def wait_turn(turns: Any, slot: int, least: int) -> int:
    """Wait until a slot's number is reached; FAILED if another thread has failed."""
    spins = 0
    while atomic_load(turns, slot) < least:
        spins += 1
        if spins % SPINS == 0:
            if atomic_load(turns, len(turns) - 1) != 0:
                return FAILED
            sched_yield()
    return 0


def make(f: Any) -> dict[str, Any]:
    """Make the loops over one kind of allocator."""
    store, at = f.store, f.at

    @njit(forceinline=True)
    def write_first(how: Any, block: int, _size: int, value: int, op: int) -> None:
        if op != REALLOC:
            store(how, block, value)

    @njit(forceinline=True)
    def write_whole(how: Any, block: int, size: int, value: int, _op: int) -> None:
        fill(at(how, block), size, value)

    return {"replay_events": _make_replay(f, write_first), "replay_whole": _make_replay(f, write_whole)}


def _make_replay(f: Any, write: Any) -> Any:
    """Make a loop that does a thread's events, and writes what it gets: the first word of an object, or all its bytes, as a
    program does that uses what it asked for.
    """
    alloc, free, realloc = f.alloc, f.free, f.realloc

    @njit(nogil=True)
    def replay(
        how: Any,
        blocks: Any,
        turns: Any,
        ops: Any,
        slots: Any,
        sizes: Any,
        waits: Any,
        posts: Any,
        begin: int,
        end: int,
    ) -> int:
        total = 0
        for k in range(begin, end):
            slot, size, op = slots[k], sizes[k], ops[k]
            if waits[k] != 0 and wait_turn(turns, slot, waits[k]) != 0:
                return FAILED
            if op == FREE:
                free(how, blocks[slot])
                blocks[slot] = 0
            else:
                block = realloc(how, blocks[slot], size) if op == REALLOC else alloc(how, size)
                if block == 0:
                    atomic_store(turns, len(turns) - 1, 1)
                    return FAILED
                write(how, block, size, slot + k, op)
                blocks[slot] = block
                total += size
            if posts[k] != 0:
                atomic_store(turns, slot, posts[k])
        return total

    return replay
