"""Views that are built before they are needed: a shelf beside the reserve of a pool, for ``views="ready"``.

To make a view costs three quarters of an allocation from Python. A pool with a shelf pays for it when an element comes back:
its exporter, instead of dying, gets a new view, and that waits at the element's place of the reserve until ``alloc`` takes
both.

What is on the shelf owns nothing. Whose an element is, says the reserve alone, so waiters, jitted code, resize, forks and
walkers need not know of shelves: who takes an element without its view leaves one that matches no longer, and is dropped
when that place is used again. A view is only handed out where its exporter has the very element of that place.

The GIL guards shelves; between reading P_SHELF and the last use of what it names it is not let go. They are memory of the
process, freed after P_SHELF was set to 0: never while an exporter could still find them there.

Invariant: an exporter on a shelf has VERB_READY, one reference, its view's, and is no lease (H_LEASES does not count it).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from typing import Any, Final

from realalloc.lease.blocks import VERB_READY
from realalloc.lease.capi import (
    decref,
    error_clear,
    error_occurred,
    immortal,
    load_at,
    memoryview_of,
    store_at,
)
from realalloc.mm.atomic import lock, unlock
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    ORDER_ALLOC_FIRST,
    P_CAPACITY,
    P_CURR_NR,
    P_ORDER,
    P_SHELF,
    P_STATE,
    P_WAITERS,
    P_WIPE,
    POOL_LIVE,
    WORD_BYTES,
)
from realalloc.mm.mempool import pop_reserved
from realalloc.mm.reserve import elements_at
from realalloc.mm.waiters import spare_elements

# A shelf: how many places it has, then for each the address of a view, 0 for none, and of its exporter.
SHELF_ROOM: Final = 0
SHELF_FIRST: Final = 8
PLACE_BYTES: Final = 16
PLACE_VIEW: Final = 0
PLACE_EXPORTER: Final = 8


@kernel
def place_on(shelf: int, k: int) -> int:
    """Return the address of a place."""
    return shelf + SHELF_FIRST + k * PLACE_BYTES


@kernel
def take_ready(words: Words, p: int, offset_at: int) -> int:
    """Take the top element of a pool's reserve with its view, and return the address of the place, where exporter and view
    stay until the caller has them; 0 if one of the two is not there, or not for this caller. ``offset_at`` is where an
    exporter has its offset.
    """
    shelf = words[p + P_SHELF]
    if shelf == 0:
        return 0
    found = 0
    lock(words)
    k = words[p + P_CURR_NR] - 1
    mine = words[p + P_STATE] == POOL_LIVE and words[p + P_WAITERS] == 0 and spare_elements(words, p) > 0
    if mine and words[p + P_ORDER] != ORDER_ALLOC_FIRST and words[p + P_WIPE] == 0 and k < load_at(shelf + SHELF_ROOM):
        place = place_on(shelf, k)
        exporter = load_at(place + PLACE_EXPORTER)
        if load_at(place + PLACE_VIEW) != 0 and load_at(exporter + offset_at) == words[elements_at(words, p) + k]:
            pop_reserved(words, p)
            found = place
    unlock(words)
    return found


@kernel
def new_view(exporter: int, tag_at: int) -> int:
    """Make a view of an exporter that dies, which lives on by it; 0 if there is none, with nothing changed.

    Not while an exception is on its way: making a view may run the collector, which would take it for its own.
    """
    if error_occurred() != 0:
        return 0
    tag = load_at(exporter + tag_at)
    store_at(exporter, 1)
    store_at(exporter + tag_at, VERB_READY)
    view = memoryview_of(exporter)
    if view == 0:
        error_clear()
        store_at(exporter + tag_at, tag)
        return 0
    decref(exporter)  # the view holds it
    return view


@kernel
def put_ready(shelf: int, k: int, exporter: int, view: int) -> int:
    """Put a view at a place of a shelf, 0 for none; return what is to be dropped: what was there, or this view."""
    if shelf == 0 or k < 0 or k >= load_at(shelf + SHELF_ROOM):
        return view
    place = place_on(shelf, k)
    before = load_at(place + PLACE_VIEW)
    store_at(place + PLACE_EXPORTER, exporter)
    store_at(place + PLACE_VIEW, view)
    return before


_shelves: dict[tuple[int, int], Any] = {}  # by arena and pool
_turn = threading.RLock()  # of who puts shelves up and takes them down; machine code needs the GIL only
os.register_at_fork(after_in_child=_turn._at_fork_reinit)  # type: ignore[attr-defined]  # as the standard library does


def _drop(memory: Any, first: int = 0) -> None:
    """Drop the views of a shelf that nobody finds any more, and the shelf."""
    for k in range(first, int(memory[0])):
        view, memory[1 + 2 * k] = memory[1 + 2 * k], 0
        if view != 0:
            decref(int(view))
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(memory))


def put_up_shelf(base: int, p: int) -> None:
    """Give a pool a shelf of as many places as its reserve has now; views of one that it had move there."""
    with _turn:
        store_at(base + (p + P_SHELF) * WORD_BYTES, 0)
        old = _shelves.pop((base, p), None)
        room = load_at(base + (p + P_CAPACITY) * WORD_BYTES)
        fresh = immortal((ctypes.c_int64 * (1 + 2 * room))(room))
        both = 0 if old is None else min(room, int(old[0]))
        if both:
            ctypes.memmove(
                ctypes.addressof(fresh) + SHELF_FIRST, ctypes.addressof(old) + SHELF_FIRST, both * PLACE_BYTES
            )
        other = _shelves.pop((base, p), None)  # a finalizer or a signal's handler resized the pool meanwhile
        _shelves[base, p] = fresh
        store_at(base + (p + P_SHELF) * WORD_BYTES, ctypes.addressof(fresh))
        if old is not None:
            _drop(old, both)
        if other is not None:
            _drop(other)


def take_down_shelf(base: int, p: int) -> None:
    """Drop the shelf of a pool that is destroyed: machine code has set P_SHELF to 0."""
    with _turn:
        memory = _shelves.pop((base, p), None)
        if memory is not None:
            _drop(memory)


def take_down_shelves(base: int) -> None:
    """Drop all shelves of an arena, which is mapped still."""
    for where in [where for where in list(_shelves) if where[0] == base]:
        store_at(base + (where[1] + P_SHELF) * WORD_BYTES, 0)
        take_down_shelf(*where)


@atexit.register
def _take_down_all() -> None:
    for base in {where[0] for where in list(_shelves)}:
        take_down_shelves(base)


assert SHELF_FIRST == WORD_BYTES
