"""``cache.alloc_bulk`` as a C function: leases are counted, and blocks and exporters taken, once for each batch.

A batch is at most BATCH objects of one sheaf. Each goes straight into an exporter of the list of dead ones, which are taken
off it together, still linked: nothing of Python runs until each block of the batch has an owner. Then each gets its view,
and the collector may run, and with it anything.

Guarantees: all views or none; nobody sees the list before it is full. What has no view yet when an error comes is given back
by its exporter's destructor.
Invariant: exporters of a batch that have no view yet have one reference, and are linked by E_LENGTH.
"""

from __future__ import annotations

from typing import Final

from realalloc.lease.blocks import count_lease
from realalloc.lease.capi import (
    as_ssize,
    context_of,
    decref,
    error_clear,
    gc_track,
    gc_untrack,
    list_new,
    list_set,
    load_at,
    slow_of,
    store_at,
    vectorcall,
    words_at,
)
from realalloc.lease.slots import X_GATE, X_LENGTH, X_LONG_TYPE, X_OWNER, X_TAG, X_TYPE
from realalloc.lease.spares import (
    E_BASE,
    E_LENGTH,
    E_OFFSET,
    E_TAG,
    E_TYPE,
    SPARES_FIRST,
    cut_spares,
    have_spares,
    spares_address,
    view_of,
)
from realalloc.mm.atomic import address_of
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import C_SHEAF, D_TOP, GFP_ORDINARY
from realalloc.mm.objects import cache_alloc_slow
from realalloc.mm.sheaf import count_of
from realalloc.mm.threads import enter_near, leave, my_place, record_inside

MAX_BULK: Final = 1 << 16
BATCH: Final = 32


@kernel
def _own(base: int, exporter: int, offset: int, tag: int) -> int:
    """Make a dead exporter own a block, but for its length; return the next one."""
    store_at(exporter, 1)
    store_at(exporter + E_BASE, base)
    store_at(exporter + E_OFFSET, offset)
    store_at(exporter + E_TAG, tag)
    return load_at(exporter + E_LENGTH)


@kernel
def _take_batch(words: Words, c: int, most: int, tag: int) -> int:
    """Make up to ``most`` dead exporters, of which there are as many, own an object each; return how many do.

    They are off the list, and their leases are counted. 0: there is no memory.
    """
    base = address_of(words)
    exporter = load_at(spares_address() + SPARES_FIRST)
    taken = 0
    slot = enter_near(words, my_place())
    if slot != 0:
        d = record_inside(words, slot) + words[c + C_SHEAF]
        taken = min(most, count_of(words, d))
        top = words[d + D_TOP]
        words[d + D_TOP] = top - taken
        for k in range(taken):
            exporter = _own(base, exporter, words[top - k], tag)
        leave(words, slot)
    if taken == 0:
        offset = cache_alloc_slow(words, c, GFP_ORDINARY)
        if offset <= 0:
            return 0
        exporter = _own(base, exporter, offset, tag)
        taken = 1
    cut_spares(exporter, taken)
    count_lease(words, taken)  # the GIL was held: nobody closed the arena meanwhile
    return taken


@kernel
def _drop(exporter: int, count: int) -> None:
    """Give back what the rest of a batch owns."""
    for _ in range(count):
        following = load_at(exporter + E_LENGTH)
        decref(exporter)
        exporter = following


@kernel
def _fill(words: Words, context: int, items: int, wanted: int) -> int:
    """Fill a list with views; return how many there are, or -1 with an error set."""
    length = load_at(context + X_LENGTH)
    done = 0
    while done < wanted:
        most = min(wanted - done, BATCH)
        if have_spares(load_at(context + X_TYPE), most) == 0:
            return -1
        exporter = load_at(spares_address() + SPARES_FIRST)
        taken = _take_batch(words, load_at(context + X_OWNER), most, load_at(context + X_TAG))
        if taken == 0:
            break
        for k in range(taken):
            following = load_at(exporter + E_LENGTH)
            store_at(exporter + E_LENGTH, length)
            view = view_of(exporter)
            exporter = following
            if view == 0:
                _drop(exporter, taken - k - 1)
                return -1
            list_set(items, done + k, view)
        done += taken
    return done


def cache_alloc_bulk(bound: int, args: int, count: int, names: int) -> int:
    """``cache.alloc_bulk``: a list of views. What cannot be had in full is given up, and the slow path starts again."""
    if count == 1 and names == 0:
        context = context_of(bound)
        number = load_at(args)
        wanted = as_ssize(number) if load_at(number + E_TYPE) == load_at(context + X_LONG_TYPE) else 0
        if wanted < 0:
            error_clear()  # the slow path says what is wrong
        if 0 < wanted <= MAX_BULK:
            items = list_new(wanted)  # which may run the collector: only then is it known whether the arena is open
            if items == 0:
                return 0
            gc_untrack(items)  # a finalizer finds it among gc.get_objects(), and NULL in it
            base = load_at(load_at(context + X_GATE))
            done = _fill(words_at(base), context, items, wanted) if base != 0 else 0
            if done == wanted:
                gc_track(items)
                return items
            decref(items)
            if done < 0:
                return 0
    return vectorcall(slow_of(bound), args, count, names)
