"""kswapd: one thread of machine code for the process. In every arena it gives back what outstays its decay time, and brings
free pages that have fallen below the low mark up to the high one.

It never needs the GIL, runs no Python and gets no signal, so it can neither hold up a program nor run its finalizers. It does
one bounded step of one arena at a time, under the lock of the table that names the open arenas: one that closes waits for no
longer than a step, and is not looked at again. While nothing is dirty it looks four times a second.

``fork`` stops it and starts it again on both sides, so that a fork is never one of a process with a thread that its author
does not know of; it stops before the interpreter goes. Where it does not run, who frees memory gives it back (backlog.py).
Invariant: T_THREAD is 0 or the one thread that runs; it is written under T_GUARD. Y_SERVED is 0 in every arena if it is 0.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
from typing import Any

from numba import types

from realalloc.lease.capi import immortal, words_at
from realalloc.lease.forks import (
    T_AGAIN,
    T_BELL,
    T_FUNCTION,
    T_GUARD,
    T_LENGTH,
    T_STOP,
    T_THREAD,
    base_in,
    release_table,
    table,
    table_address,
    take_table,
)
from realalloc.mm.atomic import address_of, atomic_load, atomic_store, compare_and_swap
from realalloc.mm.balance import balance_tick
from realalloc.mm.decay import IDLE_NS, decay_tick
from realalloc.mm.jit import JIT, Words, c_function, entry, kernel
from realalloc.mm.layout import DECAY, WORD_BYTES, Y_SERVED
from realalloc.mm.prim import (
    futex_sleep,
    futex_wake_all,
    monotonic_ns,
    raise_flag,
    sched_yield,
    thread_join,
    thread_start,
)


@kernel
def bell_in(table: Words) -> int:
    """Return the address of what kswapd sleeps on."""
    return address_of(table) + T_BELL * WORD_BYTES


@kernel
def _step(table: Words, k: int) -> int:
    """Do one step for an arena of the table; return in how many ns the next one is due."""
    if base_in(table, k) == 0:
        return IDLE_NS
    take_table(table)
    base = base_in(table, k)
    due = IDLE_NS
    if base != 0:
        due = min(balance_tick(words_at(base)), decay_tick(words_at(base), monotonic_ns()))
    release_table(table)
    return due


@kernel
def _leave_all(table: Words) -> None:
    """Tell the arenas that nobody serves them now."""
    take_table(table)
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            words_at(base_in(table, k))[DECAY + Y_SERVED] = 0
    release_table(table)


def kswapd(_argument: int) -> int:
    """The thread."""
    table = words_at(table_address())
    while True:
        compare_and_swap(table, T_BELL, 1, 0)  # before the look at what it rings for
        if atomic_load(table, T_STOP) != 0:
            break
        due = IDLE_NS
        for k in range(table[T_LENGTH]):
            due = min(due, _step(table, k))
        if due > 0:
            futex_sleep(bell_in(table), 0, due)
        else:
            sched_yield()  # who closes an arena may wait for the table
    _leave_all(table)
    return 0


@kernel
def _guard(words: Words) -> None:
    while compare_and_swap(words, T_GUARD, 0, 1) == 0:
        sched_yield()


@kernel
def _has_arenas(table: Words) -> int:
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            return 1
    return 0


@entry
def start_thread(words: Words, function: int, again: int) -> int:
    """Start kswapd at ``function`` unless it runs, ``again`` if a fork stopped it and an arena is open; return 0 if it does
    not run now. One step for signal handlers, as is the next.
    """
    _guard(words)
    if words[T_THREAD] == 0 and (again == 0 or (words[T_AGAIN] != 0 and _has_arenas(words) == 1)):
        made = thread_start(function)
        words[T_THREAD] = max(0, made)
    words[T_AGAIN] = 0
    running = words[T_THREAD]
    atomic_store(words, T_GUARD, 0)
    return running


@entry
def stop_thread(words: Words, again: int) -> int:
    """Stop kswapd and wait for its end, to start it ``again``; return 0 if it did not run."""
    _guard(words)
    running = words[T_THREAD]
    if running != 0:
        atomic_store(words, T_STOP, 1)
        raise_flag(bell_in(words))
        futex_wake_all(bell_in(words))
        thread_join(running)
        words[T_THREAD] = 0
        words[T_AGAIN] = again
        atomic_store(words, T_STOP, 0)
    atomic_store(words, T_GUARD, 0)
    return running


def restart(_argument: int) -> int:
    """Start kswapd again after a fork: what the interpreter is asked to call as soon as it can."""
    table = words_at(table_address())
    if table[T_FUNCTION] != 0:
        start_thread(table, table[T_FUNCTION], 1)
    return 0


class _Process:
    """What this process knows of its kswapd."""

    function = 0  # address of the machine code, 0 before it is compiled
    is_over = False  # the interpreter goes


def start() -> bool:
    """Start kswapd unless it runs; False where it cannot: without machine code, at exit, or if the system has no thread."""
    if not JIT or _Process.is_over:
        return False
    if _Process.function == 0:
        made: Any = (balance_tick, decay_tick, start_thread, stop_thread, take_table, release_table)
        for callee in made:
            callee.compile()
        again = ctypes.c_void_p(immortal(c_function(restart, types.int32(types.int64))).address)
        # CPython 3.13 counts the parent's threads after the hooks of a fork. So this hook runs no bytecode, after which
        # pending calls would be made, and registered this late it is most likely the last: kswapd starts when fork() is over.
        os.register_at_fork(after_in_parent=functools.partial(ctypes.pythonapi.Py_AddPendingCall, again, None))
        _Process.function = int(immortal(c_function(kswapd, types.int64(types.int64))).address)
        table[T_FUNCTION] = _Process.function
    return start_thread(table, _Process.function, 0) != 0


def bell() -> int:
    """Return the address of what kswapd sleeps on: an arena that it serves rings there."""
    return int(table.ctypes.data) + T_BELL * WORD_BYTES


def stop() -> bool:
    """Stop kswapd; return whether it ran."""
    return JIT and _Process.function != 0 and stop_thread(table, 0) != 0


def is_running() -> bool:
    """Tell whether this process has a kswapd now."""
    return int(table[T_THREAD]) != 0


def _before_fork() -> None:
    if _Process.function != 0:
        stop_thread(table, 1)


def _after_fork_in_child() -> None:
    if _Process.function != 0 and not _Process.is_over:
        start_thread(table, _Process.function, 1)


def _at_exit() -> None:
    _Process.is_over = True
    table[T_FUNCTION] = 0
    stop()


atexit.register(_at_exit)
os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
