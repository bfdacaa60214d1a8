"""What the C library tells us: that the process forks, and that a thread ends.

A child must not inherit an arena in the middle of an operation of another thread.

The locks of all open arenas are held while the process forks, and no other thread is at its sheaves. Python's own hooks run
too early for that: between them and ``fork()`` other hooks and the collector run Python code, which may free a block and then
wait for ever for a lock that its own thread holds. So with machine code these are the C library's handlers, which run inside
``fork()``, with the GIL held throughout; nothing of Python runs between prepare and parent or child.

A thread that ends gives up its slot in every arena: the destructor of a pthread key, which each thread that gets a slot sets,
runs in it, without the GIL, maybe long after Python has forgotten it. An arena may be closed meanwhile, and unmapped; so the
table has a lock of its own, held while an arena is taken off it and while the destructor walks it.

Invariant: the table names every open arena, 0 is a free slot. It is written under T_LOCK, which comes
before any arena's lock.
"""

from __future__ import annotations

import ctypes
from typing import Final

import llvmlite.binding
import numpy as np

from realalloc.lease.capi import address_of_symbol, immortal, load_at, store_at, words_at
from realalloc.mm.atomic import atomic_store, compare_and_swap
from realalloc.mm.jit import Words, entry, kernel, native
from realalloc.mm.layout import DECAY, H_TOTAL_WORDS, WORD_BYTES, Y_SERVED
from realalloc.mm.mempool_wait import after_fork
from realalloc.mm.pressure import forget_triggers
from realalloc.mm.prim import sched_yield, set_thread_key
from realalloc.mm.thread_exit import forget_other_threads, freeze, thaw, thaw_in_child, thread_ends

T_BASES: Final = 0  # address of an array of bases
T_WORDS: Final = H_TOTAL_WORDS  # how many words the table has, where an arena says it too
T_LENGTH: Final = 2  # of the array
T_LOCK: Final = 3
T_THREAD: Final = 4  # pthread_t of kswapd, 0 while it does not run (kswapd.py)
T_STOP: Final = 5  # 1: it is to end
T_GUARD: Final = 6  # 1 while it is started or stopped
T_AGAIN: Final = 7  # 1: it was stopped for a fork
T_FUNCTION: Final = 8  # address of its machine code
T_BELL: Final = 9  # what it sleeps on; 1: it is to look again
TABLE_WORDS: Final = 10
FIRST_SLOTS: Final = 64

_SYMBOL = "realalloc_forks"
table: Words = immortal(np.zeros(TABLE_WORDS, np.int64))
table[T_WORDS] = TABLE_WORDS
llvmlite.binding.add_symbol(_SYMBOL, table.ctypes.data)


@native(address_of_symbol(_SYMBOL))
def table_address() -> int:
    """Return where the table is."""
    return int(table.ctypes.data)


@entry
def take_table(words: Words) -> int:
    """Take the table's lock; its holder never needs the GIL."""
    while compare_and_swap(words, T_LOCK, 0, 1) == 0:
        sched_yield()
    return 0


@entry
def release_table(words: Words) -> int:
    """Release the table's lock."""
    return atomic_store(words, T_LOCK, 0)


@kernel
def base_in(table: Words, k: int) -> int:
    """Return an entry of the table: 0 or the address of an open arena."""
    return load_at(table[T_BASES] + k * WORD_BYTES)


@entry
def replace_base(words: Words, old: int, new: int) -> int:
    """Replace the first ``old`` in the table by ``new``; 0 if there is none. One step for signal handlers, as is the next."""
    take_table(words)
    found = 0
    for k in range(words[T_LENGTH]):
        if found == 0 and base_in(words, k) == old:
            store_at(words[T_BASES] + k * WORD_BYTES, new)
            found = 1
    release_table(words)
    return found


@entry
def set_bases(words: Words, array: int, length: int) -> int:
    """Give the table a longer array of bases, into which the old ones are copied; 0 if it is not longer any more."""
    take_table(words)
    longer = 1 if length > words[T_LENGTH] else 0
    if longer == 1:
        for k in range(words[T_LENGTH]):
            store_at(array + k * WORD_BYTES, base_in(words, k))
        words[T_BASES] = array
        words[T_LENGTH] = length
    release_table(words)
    return longer


def thread_exits(identity: int) -> None:
    """Give up the slots of the thread that ends."""
    table = words_at(table_address())
    take_table(table)
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            thread_ends(words_at(base_in(table, k)), identity)
    release_table(table)


def prepare() -> None:
    """Take the table's lock and that of every open arena."""
    table = words_at(table_address())
    take_table(table)
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            freeze(words_at(base_in(table, k)))


def in_parent() -> None:
    """Release them."""
    table = words_at(table_address())
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            thaw(words_at(base_in(table, k)))
    release_table(table)


def in_child() -> None:
    """Release them, and forget the other threads, waiting or not, kswapd too: they do not exist here."""
    table = words_at(table_address())
    table[T_THREAD] = table[T_STOP] = table[T_GUARD] = table[T_BELL] = 0
    for k in range(table[T_LENGTH]):
        if base_in(table, k) != 0:
            words = words_at(base_in(table, k))
            thaw_in_child(words)
            after_fork(words)
            forget_other_threads(words)
            words[DECAY + Y_SERVED] = 0
            forget_triggers(words)
    release_table(table)


CALLED = (
    take_table,
    release_table,
    replace_base,
    set_bases,
    freeze,
    thaw,
    thaw_in_child,
    after_fork,
    thread_ends,
    forget_other_threads,
)


def register(handlers: list[int], destructor: int) -> None:
    """Give the compiled handlers (prepare, parent, child) and the destructor of threads to the C library, for the life of
    the process.
    """
    library = ctypes.CDLL(None)
    atfork = library["__register_atfork"]  # all that glibc exports of pthread_atfork
    atfork.argtypes = [ctypes.c_void_p] * 4
    key = ctypes.c_uint()
    if atfork(*handlers, None) != 0 or library.pthread_key_create(ctypes.byref(key), ctypes.c_void_p(destructor)) != 0:
        raise MemoryError("the C library has no room for fork handlers, or for one more key")
    set_thread_key(key.value)


def watch(base: int) -> None:
    """Hold the lock of the arena at ``base`` across every fork from now on, and hear of its threads' ends."""
    while replace_base(table, 0, base) == 0:
        grown = immortal((ctypes.c_int64 * max(FIRST_SLOTS, 2 * int(table[T_LENGTH])))())
        set_bases(table, ctypes.addressof(grown), len(grown))


def ignore(base: int) -> None:
    """Forget an arena that closes."""
    replace_base(table, base, 0)
