"""What an exporter consists of, and the dead ones, which wait for the next lease.

PyObject_New and PyObject_Free, and counting their type, took, with a call less in its destructor, a sixth of a lease's life
(ADR 18). The GIL guards the list. Its links are in E_LENGTH, so that all else of an exporter can be filled in before it is
taken off (bulk.py).

Invariant: SPARES_COUNT exporters are linked from SPARES_FIRST on, MAX_SPARES at most; nobody else knows of them.
"""

from __future__ import annotations

import ctypes
from typing import Final

import llvmlite.binding

from realalloc.lease.capi import (
    address_of_symbol,
    decref,
    immortal,
    load_at,
    memoryview_of,
    object_free,
    object_new,
    store_at,
)
from realalloc.mm.jit import kernel, native

# Exporter: PyObject head, then words.
E_TYPE: Final = 8
E_BASE: Final = 16
E_OFFSET: Final = 24
E_LENGTH: Final = 32
E_TAG: Final = 40
E_BYTES: Final = 48  # one pymalloc size class, no slack

SPARES_FIRST: Final = 0
SPARES_COUNT: Final = 8
SPARES_WORDS: Final = 2
MAX_SPARES: Final = 1000

_spares = immortal((ctypes.c_int64 * SPARES_WORDS)())
_SYMBOL = "realalloc_spares"
llvmlite.binding.add_symbol(_SYMBOL, ctypes.addressof(_spares))


@native(address_of_symbol(_SYMBOL))
def spares_address() -> int:
    """Return where the list begins."""
    return ctypes.addressof(_spares)


@kernel
def may_retire() -> int:
    """Tell whether the list takes one more."""
    return 1 if load_at(spares_address() + SPARES_COUNT) < MAX_SPARES else 0


@kernel
def push_spare(exporter: int) -> None:
    """Put a dead exporter onto the list."""
    spares = spares_address()
    store_at(exporter + E_LENGTH, load_at(spares + SPARES_FIRST))
    store_at(spares + SPARES_FIRST, exporter)
    store_at(spares + SPARES_COUNT, load_at(spares + SPARES_COUNT) + 1)


@kernel
def retire(exporter: int) -> None:
    """Keep a dead exporter for the next lease, or free it."""
    if may_retire() == 1:
        push_spare(exporter)
    else:
        kind = load_at(exporter + E_TYPE)
        object_free(exporter)
        decref(kind)


@kernel
def cut_spares(first: int, count: int) -> None:
    """Leave the list from ``first`` on; the ``count`` before it are the caller's."""
    spares = spares_address()
    store_at(spares + SPARES_FIRST, first)
    store_at(spares + SPARES_COUNT, load_at(spares + SPARES_COUNT) - count)


@kernel
def new_exporter(kind: int) -> int:
    """Return an exporter with one reference; 0 with MemoryError set."""
    exporter = load_at(spares_address() + SPARES_FIRST)
    if exporter == 0:
        return object_new(kind)
    cut_spares(load_at(exporter + E_LENGTH), 1)
    store_at(exporter, 1)
    return exporter


@kernel
def have_spares(kind: int, count: int) -> int:
    """Make the list hold ``count`` exporters; 0 with MemoryError set if it cannot."""
    while load_at(spares_address() + SPARES_COUNT) < count:
        exporter = object_new(kind)
        if exporter == 0:
            return 0
        push_spare(exporter)
    return 1


@kernel
def view_of(exporter: int) -> int:
    """Make a view that has the caller's reference of an exporter; 0 with an error set, and the reference dropped."""
    view = memoryview_of(exporter)
    if view != 0:
        store_at(exporter, load_at(exporter) - 1)  # not the last one: the view has one of its own
    else:
        decref(exporter)  # this gives the block back
    return view
