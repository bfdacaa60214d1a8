"""The C functions of the exporter type and of the allocating builtins, as functions that numba compiles to cfuncs.

A builtin serves the plain call in machine code and passes everything else on to the Python function in its bound tuple.
It counts its lease before it asks for the block: making the view may run the collector, which may close the arena, and that
must stay mapped. Between taking a block and owning it there is no Python bytecode, so no signal can lose it.
"""

from __future__ import annotations

from typing import Final

from realalloc.lease.blocks import (
    OWNER_SHIFT,
    TAG_KIND_MASK,
    VERB_CACHE,
    VERB_KMALLOC,
    VERB_POOL,
    VERB_READY,
    budget_of,
    count_lease,
    drop_lease,
    give_back,
    take,
    take_charged,
)
from realalloc.lease.capi import (
    as_ssize,
    check_signals,
    context_of,
    decref,
    error_clear,
    fill_info,
    incref,
    load_at,
    long_of,
    restore_thread,
    save_thread,
    slow_of,
    store_at,
    vectorcall,
    words_at,
)
from realalloc.lease.shelf import PLACE_EXPORTER, PLACE_VIEW, new_view, put_ready, take_ready
from realalloc.lease.spares import (
    E_BASE,
    E_LENGTH,
    E_OFFSET,
    E_TAG,
    E_TYPE,
    may_retire,
    new_exporter,
    push_spare,
    retire,
    view_of,
)
from realalloc.mm.atomic import address_of
from realalloc.mm.jit import Words, at_end, entry, kernel
from realalloc.mm.kmalloc import kmalloc_fast, zero_words
from realalloc.mm.layout import EBUSY, ENOMEM, GFP_ORDINARY, GFP_ZERO_BIT, H_BAD_FREES, H_CLOSED, H_OWNER, OK, P_SHELF
from realalloc.mm.mempool import OUT_OF_RESERVE, pool_alloc, pool_alloc_reserved, pool_return
from realalloc.mm.mempool_wait import SLICE_NS, pool_claim, pool_nap, pool_request, pool_wait_end
from realalloc.mm.objects import cache_alloc as take_object
from realalloc.mm.objects import free_fast

# Context of an allocating builtin: a block of words that lives as long as the builtin.
X_GATE: Final = 0  # address of the arena's gate: a word with the arena's base, 0 once it is closed
X_OWNER: Final = 8
X_LENGTH: Final = 16
X_TAG: Final = 24
X_TYPE: Final = 32
X_LONG_TYPE: Final = 40
CONTEXT_WORDS: Final = 6

INTERRUPTED: Final = -4  # EINTR


def getbuffer(exporter: int, view: int, flags: int) -> int:
    """bf_getbuffer: the whole block, writable bytes."""
    start = load_at(exporter + E_BASE) + load_at(exporter + E_OFFSET)
    return fill_info(view, exporter, start, load_at(exporter + E_LENGTH), 0, flags)


@kernel
def _return_ready(words: Words, exporter: int, p: int) -> int:
    """Return an element to a pool with a shelf, with a new view; then drop the lease, and return the mapping to let go of.

    The view is made first: the collector, which that may run, might destroy the pool, but for the element that is still out.
    """
    offset = load_at(exporter + E_OFFSET)
    view = new_view(exporter, E_TAG)
    shelf = words[p + P_SHELF]
    place = pool_return(words, p, offset)
    if place < 0 and place - OUT_OF_RESERVE != OK:
        words[H_BAD_FREES] += 1
    surplus = put_ready(shelf, place, exporter, view)
    owner = drop_lease(words)
    if view == 0:
        retire(exporter)
    if surplus != 0:
        decref(surplus)
    return owner


@entry
def dealloc_slow(exporter: int) -> int:
    """Give a dead exporter's block back, whatever it is, then keep the exporter for the next lease."""
    tag = load_at(exporter + E_TAG)
    if tag == VERB_READY:  # of a shelf; the arena may be gone
        retire(exporter)
        return OK
    words = words_at(load_at(exporter + E_BASE))
    if tag & TAG_KIND_MASK == VERB_POOL and words[(tag >> OWNER_SHIFT) + P_SHELF] != 0:
        let_go(_return_ready(words, exporter, tag >> OWNER_SHIFT))
        return OK
    owner = give_back(words, tag, load_at(exporter + E_OFFSET))
    retire(exporter)
    let_go(owner)  # the last lease of a closed arena: this unmaps it
    return OK


_dealloc_slow = at_end(dealloc_slow)


def dealloc(exporter: int) -> None:
    """tp_dealloc: ``dealloc_slow``, but for objects that go into a sheaf, of an open arena: no call, so no stack frame."""
    tag = load_at(exporter + E_TAG)
    if tag == VERB_KMALLOC or tag & TAG_KIND_MASK == VERB_CACHE:
        words = words_at(load_at(exporter + E_BASE))
        if words[H_CLOSED] == 0 and may_retire() == 1 and free_fast(words, 0, load_at(exporter + E_OFFSET)) == 1:
            count_lease(words, -1)
            push_spare(exporter)
            return
    _dealloc_slow(exporter)


@kernel
def _lease(words: Words, kind: int, offset: int, length: int, tag: int) -> int:
    """Make exporter and view of a block whose lease is counted; 0 with MemoryError set and the block given back."""
    exporter = new_exporter(kind)
    if exporter == 0:
        let_go(give_back(words, tag, offset))
        return 0
    store_at(exporter + E_BASE, address_of(words))
    store_at(exporter + E_OFFSET, offset)
    store_at(exporter + E_LENGTH, length)
    store_at(exporter + E_TAG, tag)
    return view_of(exporter)


@kernel
def let_go(owner: int) -> None:
    """Drop the mapping of a closed arena whose last lease this was."""
    if owner != 0:
        decref(owner)


def cache_alloc(bound: int, args: int, count: int, names: int) -> int:
    """``cache.alloc``."""
    if count == 0 and names == 0:
        context = context_of(bound)
        base = load_at(load_at(context + X_GATE))
        if base != 0:
            words = words_at(base)
            count_lease(words, 1)
            offset = take_object(words, load_at(context + X_OWNER), GFP_ORDINARY)
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
            let_go(drop_lease(words))
    return vectorcall(slow_of(bound), args, count, names)


@kernel
def _await_element(words: Words, p: int) -> int:
    """Wait for an element as ``MemPool.alloc`` does, and count its lease; <= 0 where Python must go on, INTERRUPTED where a
    signal's handler has raised.

    In machine code, since the hand-off of a pool's only element is a fifth of what it is with Python around the sleep. Who
    waits is no lease, which the child of a fork would have for ever: a reference keeps the range mapped.
    """
    owner = words[H_OWNER]
    incref(owner)
    request = pool_request(words, p)
    status = EBUSY if request > 0 else request
    while status == EBUSY:
        state = save_thread()
        status = pool_nap(words, p, request, SLICE_NS)
        restore_thread(state)
        if status == EBUSY and check_signals() != 0:
            status = INTERRUPTED
    offset = status if status != OK or words[H_CLOSED] == 0 else ENOMEM
    if offset == OK:
        count_lease(words, 1)
        offset = pool_claim(words, p, request)
        if offset <= 0:
            drop_lease(words)
    if offset <= 0 and request > 0:
        pool_wait_end(words, p, request)
    decref(owner)
    return offset


@kernel
def _from_pool(bound: int, args: int, count: int, names: int, reserved: int) -> int:
    if count == 0 and names == 0:
        context = context_of(bound)
        base = load_at(load_at(context + X_GATE))
        if base != 0:
            words = words_at(base)
            p = load_at(context + X_OWNER)
            place = take_ready(words, p, E_OFFSET)
            count_lease(words, 1)
            if place != 0:
                store_at(load_at(place + PLACE_EXPORTER) + E_TAG, load_at(context + X_TAG))
                view = load_at(place + PLACE_VIEW)
                store_at(place + PLACE_VIEW, 0)
                return view
            offset = pool_alloc_reserved(words, p) if reserved == 1 else pool_alloc(words, p, GFP_ORDINARY)
            if offset <= 0:
                let_go(drop_lease(words))
                offset = _await_element(words, p) if reserved == 0 else offset
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
            if offset == INTERRUPTED:
                return 0
    return vectorcall(slow_of(bound), args, count, names)


def pool_alloc_fast(bound: int, args: int, count: int, names: int) -> int:
    """``pool.alloc``."""
    return _from_pool(bound, args, count, names, 0)


def pool_reserved_fast(bound: int, args: int, count: int, names: int) -> int:
    """``pool.alloc_preallocated``."""
    return _from_pool(bound, args, count, names, 1)


def kmalloc_builtin(bound: int, args: int, count: int, names: int) -> int:
    """``arena.kmalloc``."""
    if count == 1 and names == 0:
        context = context_of(bound)
        base = load_at(load_at(context + X_GATE))
        number = load_at(args)
        if base != 0 and load_at(number + E_TYPE) == load_at(context + X_LONG_TYPE):
            nbytes = as_ssize(number)
            if nbytes > 0:
                words = words_at(base)
                count_lease(words, 1)
                offset = kmalloc_fast(words, nbytes, GFP_ORDINARY)
                if offset > 0:
                    return _lease(words, load_at(context + X_TYPE), offset, nbytes, VERB_KMALLOC)
                let_go(drop_lease(words))
            elif nbytes < 0:
                error_clear()  # too large for a word; the slow path says so
    return vectorcall(slow_of(bound), args, count, names)


def attempt_fast(bound: int, args: int, _count: int) -> int:
    """``attempt(base, verb, argument, gfp, length, tag)``: a view, or the status as an int. For every slow path."""
    words = words_at(as_ssize(load_at(args)))
    count_lease(words, 1)
    gfp = as_ssize(load_at(args + 24))
    length = as_ssize(load_at(args + 32))
    tag = as_ssize(load_at(args + 40))
    b = budget_of(tag)
    if b == 0:
        offset = take(words, as_ssize(load_at(args + 8)), as_ssize(load_at(args + 16)), gfp)
    else:
        offset = take_charged(words, as_ssize(load_at(args + 8)), as_ssize(load_at(args + 16)), gfp, b)
    if offset <= 0:
        let_go(drop_lease(words))
        return long_of(offset)
    if gfp & GFP_ZERO_BIT and as_ssize(load_at(args + 8)) == VERB_CACHE:
        zero_words(words, offset, length)
    return _lease(words, as_ssize(bound), offset, length, tag)
