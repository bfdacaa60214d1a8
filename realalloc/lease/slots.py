"""The C functions of the exporter type and of the allocating builtins, as functions that numba compiles to cfuncs.

A builtin serves the plain call in machine code and passes everything else on to the Python function in its bound tuple.
It counts its lease before it asks for the block: a wait for the lock lets go of the GIL, and an arena that is closed
meanwhile must stay mapped. Between taking a block and owning it there is no Python bytecode, so no signal can lose it.
"""

from __future__ import annotations

from typing import Final

from realalloc.lease.blocks import VERB_CACHE, VERB_KMALLOC, count_lease, drop_lease, give_back, take
from realalloc.lease.capi import (
    as_ssize,
    decref,
    error_clear,
    fill_info,
    gil_release,
    gil_take,
    have_gil,
    load_at,
    long_of,
    memoryview_of,
    object_free,
    object_new,
    store_at,
    tuple_item,
    vectorcall,
    words_at,
)
from realalloc.mm.atomic import address_of
from realalloc.mm.jit import Words, kernel
from realalloc.mm.kmalloc import kmalloc, zero_words
from realalloc.mm.layout import GFP_ZERO_BIT
from realalloc.mm.mempool import pool_alloc
from realalloc.mm.prim import sched_yield
from realalloc.mm.slab import kmem_cache_alloc

# Exporter: PyObject head, then words.
E_TYPE: Final = 8
E_BASE: Final = 16
E_OFFSET: Final = 24
E_LENGTH: Final = 32
E_TAG: Final = 40
E_BYTES: Final = 48  # one pymalloc size class, no slack

# Context of an allocating builtin: a block of words that lives as long as the builtin.
X_GATE: Final = 0  # address of the arena's gate: a word with the arena's base, 0 once it is closed
X_OWNER: Final = 8
X_LENGTH: Final = 16
X_TAG: Final = 24
X_TYPE: Final = 32
X_LONG_TYPE: Final = 40
CONTEXT_WORDS: Final = 6


def relax() -> int:
    """Wait a moment for the arena lock without sitting on the GIL."""
    if have_gil() == 0:
        return sched_yield()
    state = gil_release()
    sched_yield()
    gil_take(state)
    return 0


def getbuffer(exporter: int, view: int, flags: int) -> int:
    """bf_getbuffer: the whole block, writable bytes."""
    start = load_at(exporter + E_BASE) + load_at(exporter + E_OFFSET)
    return fill_info(view, exporter, start, load_at(exporter + E_LENGTH), 0, flags)


def dealloc(exporter: int) -> None:
    """tp_dealloc: give the block back, then the exporter."""
    words = words_at(load_at(exporter + E_BASE))
    owner = give_back(words, load_at(exporter + E_TAG), load_at(exporter + E_OFFSET))
    kind = load_at(exporter + E_TYPE)
    object_free(exporter)
    decref(kind)
    if owner != 0:
        decref(owner)  # the last lease of a closed arena: this unmaps it


@kernel
def _lease(words: Words, kind: int, offset: int, length: int, tag: int) -> int:
    """Make exporter and view of a block whose lease is counted; 0 with MemoryError set and the block given back."""
    exporter = object_new(kind)
    if exporter == 0:
        _let_go(give_back(words, tag, offset))
        return 0
    store_at(exporter + E_BASE, address_of(words))
    store_at(exporter + E_OFFSET, offset)
    store_at(exporter + E_LENGTH, length)
    store_at(exporter + E_TAG, tag)
    view = memoryview_of(exporter)
    decref(exporter)  # the view holds it; without a view this gives the block back
    return view


@kernel
def _let_go(owner: int) -> None:
    """Drop the mapping of a closed arena whose last lease this was."""
    if owner != 0:
        decref(owner)


def cache_alloc(bound: int, args: int, count: int, names: int) -> int:
    """``cache.alloc``."""
    if count == 0 and names == 0:
        context = as_ssize(tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        if base != 0:
            words = words_at(base)
            count_lease(words, 1)
            offset = kmem_cache_alloc(words, load_at(context + X_OWNER))
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
            _let_go(drop_lease(words))
    return vectorcall(tuple_item(bound, 1), args, count, names)


def pool_alloc_fast(bound: int, args: int, count: int, names: int) -> int:
    """``pool.alloc``."""
    if count == 0 and names == 0:
        context = as_ssize(tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        if base != 0:
            words = words_at(base)
            count_lease(words, 1)
            offset = pool_alloc(words, load_at(context + X_OWNER), 0)
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
            _let_go(drop_lease(words))
    return vectorcall(tuple_item(bound, 1), args, count, names)


def kmalloc_fast(bound: int, args: int, count: int, names: int) -> int:
    """``arena.kmalloc``."""
    if count == 1 and names == 0:
        context = as_ssize(tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        number = load_at(args)
        if base != 0 and load_at(number + E_TYPE) == load_at(context + X_LONG_TYPE):
            nbytes = as_ssize(number)
            if nbytes > 0:
                words = words_at(base)
                count_lease(words, 1)
                offset = kmalloc(words, nbytes, 0)
                if offset > 0:
                    return _lease(words, load_at(context + X_TYPE), offset, nbytes, VERB_KMALLOC)
                _let_go(drop_lease(words))
            elif nbytes < 0:
                error_clear()  # too large for a word; the slow path says so
    return vectorcall(tuple_item(bound, 1), args, count, names)


def attempt_fast(bound: int, args: int, _count: int) -> int:
    """``attempt(base, verb, argument, gfp, length, tag)``: a view, or the status as an int. For every slow path."""
    words = words_at(as_ssize(load_at(args)))
    count_lease(words, 1)
    gfp = as_ssize(load_at(args + 24))
    length = as_ssize(load_at(args + 32))
    offset = take(words, as_ssize(load_at(args + 8)), as_ssize(load_at(args + 16)), gfp)
    if offset <= 0:
        _let_go(drop_lease(words))
        return long_of(offset)
    if gfp & GFP_ZERO_BIT and as_ssize(load_at(args + 8)) == VERB_CACHE:
        zero_words(words, offset, length)
    return _lease(words, as_ssize(bound), offset, length, as_ssize(load_at(args + 40)))
