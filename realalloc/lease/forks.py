"""Locks across ``fork()``: a child must not inherit an arena in the middle of an operation of another thread.

The locks of all open arenas are held while the process forks. Python's own hooks run too early for that: between them and
``fork()`` other hooks and the collector run Python code, which may free a block and then wait for ever for a lock that its
own thread holds. So with machine code these are the C library's handlers, which run inside ``fork()``, with the GIL held
throughout; nothing of Python runs between prepare and parent or child.

Invariant: the table names every open arena, 0 is a free slot. It is written with the GIL held, an entry before the length.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir

from realalloc.lease.capi import immortal, load_at, store_at, words_at
from realalloc.mm import prim
from realalloc.mm.atomic import hold, let_go
from realalloc.mm.jit import native
from realalloc.mm.layout import WORD_BYTES
from realalloc.mm.mempool import after_fork

T_BASES: Final = 0  # address of an array of bases
T_LENGTH: Final = 8
T_RELAX: Final = 16  # address of the slot that says what a waiter for a lock calls
T_YIELD: Final = 24  # address of sched_yield(2): in here a waiter may not let go of the GIL
TABLE_WORDS: Final = 4
FIRST_SLOTS: Final = 64

_SYMBOL = "realalloc_forks"
_table = immortal((ctypes.c_int64 * TABLE_WORDS)())
_arrays: list[Any] = [()]
llvmlite.binding.add_symbol(_SYMBOL, ctypes.addressof(_table))


def _emit_table(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    word = ir.IntType(64)
    slot = builder.module.globals.get(_SYMBOL) or ir.GlobalVariable(builder.module, word, _SYMBOL)
    return builder.ptrtoint(slot, word)


@native(_emit_table)
def _table_address() -> int:
    return ctypes.addressof(_table)


def prepare() -> None:
    """Take the lock of every open arena, waiting without letting go of the GIL."""
    table = _table_address()
    relax = load_at(load_at(table + T_RELAX))
    store_at(load_at(table + T_RELAX), load_at(table + T_YIELD))
    for k in range(load_at(table + T_LENGTH)):
        base = load_at(load_at(table + T_BASES) + k * WORD_BYTES)
        if base != 0:
            hold(words_at(base))
    store_at(load_at(table + T_RELAX), relax)


def in_parent() -> None:
    """Release them."""
    table = _table_address()
    for k in range(load_at(table + T_LENGTH)):
        base = load_at(load_at(table + T_BASES) + k * WORD_BYTES)
        if base != 0:
            let_go(words_at(base))


def in_child() -> None:
    """Release them, and forget the waiters: their threads do not exist here."""
    table = _table_address()
    for k in range(load_at(table + T_LENGTH)):
        base = load_at(load_at(table + T_BASES) + k * WORD_BYTES)
        if base != 0:
            let_go(words_at(base))
            after_fork(words_at(base))


def register(handlers: list[int]) -> None:
    """Give the compiled handlers (prepare, parent, child) to the C library, for the life of the process."""
    yields = ctypes.CDLL(None).sched_yield
    _table[T_RELAX // WORD_BYTES] = ctypes.addressof(prim._relax)
    _table[T_YIELD // WORD_BYTES] = ctypes.cast(yields, ctypes.c_void_p).value or 0
    atfork = ctypes.CDLL(None)["__register_atfork"]  # all that glibc exports of pthread_atfork
    atfork.argtypes = [ctypes.c_void_p] * 4
    if atfork(*handlers, None) != 0:
        raise MemoryError("the C library has no room for fork handlers")


def watch(base: int) -> None:
    """Hold the lock of the arena at ``base`` across every fork from now on."""
    bases = _arrays[-1]
    for k in range(len(bases)):
        if bases[k] == 0:
            bases[k] = base
            return
    grown = immortal((ctypes.c_int64 * max(FIRST_SLOTS, 2 * len(bases)))(*bases, base))
    _arrays.append(grown)
    _table[T_BASES // WORD_BYTES] = ctypes.addressof(grown)  # longer than what the length still says
    _table[T_LENGTH // WORD_BYTES] = len(grown)


def ignore(base: int) -> None:
    """Forget an arena that closes."""
    bases = _arrays[-1]
    for k in range(len(bases)):
        if bases[k] == base:
            bases[k] = 0
