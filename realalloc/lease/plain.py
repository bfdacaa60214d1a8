"""Leases without machine code, for ``NUMBA_DISABLE_JIT=1``: the same exporter as a Python subclass with ``__del__``."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from realalloc.lease.blocks import (
    VERB_CACHE,
    VERB_KMALLOC,
    VERB_POOL,
    VERB_POOL_RESERVE,
    budget_of,
    count_lease,
    drop_lease,
    give_back,
    take,
    take_charged,
)
from realalloc.lease.capi import decref, immortal, load_at, store_at, words_at
from realalloc.lease.exporter import BASETYPE, PY_BF_GETBUFFER, make_type
from realalloc.lease.slots import X_GATE, X_LENGTH, X_OWNER, X_TAG
from realalloc.lease.spares import E_BASE, E_LENGTH, E_OFFSET, E_TAG
from realalloc.mm.atomic import address_of
from realalloc.mm.jit import Words
from realalloc.mm.kmalloc import zero_words
from realalloc.mm.layout import GFP_ORDINARY, GFP_ZERO_BIT, WORD_BYTES


class Plain:
    """The same without machine code: for ``NUMBA_DISABLE_JIT=1``."""

    def __init__(self) -> None:
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        fill = ctypes.pythonapi.PyBuffer_FillInfo
        fill.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_int]

        def getbuffer(exporter: int, view: int, flags: int) -> int:
            start = load_at(exporter + E_BASE) + load_at(exporter + E_OFFSET)
            return int(fill(view, exporter, start, load_at(exporter + E_LENGTH), 0, flags))

        slot = immortal(prototype(getbuffer))
        address = ctypes.cast(slot, ctypes.c_void_p).value or 0
        base = make_type([(PY_BF_GETBUFFER, address)], BASETYPE)

        def finish(exporter: Any, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            if finalizing():  # NumPy may be half gone, and a daemon thread may have died with the lock
                return
            owner = give_back(words_at(exporter.base), exporter.tag, exporter.offset)
            if owner != 0:
                decref(int(owner))

        body = {"__slots__": (), "__del__": finish, "__module__": "realalloc"}
        self.type = immortal(type("Lease", (base,), body))

    def _lease(self, words: Words, offset: int, length: int, tag: int) -> memoryview:
        exporter = self.type.__new__(self.type)
        store_at(id(exporter) + E_OFFSET, offset)
        store_at(id(exporter) + E_LENGTH, length)
        store_at(id(exporter) + E_TAG, tag)
        store_at(id(exporter) + E_BASE, address_of(words))
        return memoryview(exporter)

    def attempt(self, base: int, verb: int, argument: int, gfp: int, length: int, tag: int) -> Any:
        """Take a block and lease it, or return the status."""
        words = words_at(base)
        count_lease(words, 1)
        b = budget_of(tag)
        offset = int(take_charged(words, verb, argument, gfp, b) if b else take(words, verb, argument, gfp))
        if offset <= 0:
            owner = drop_lease(words)
            if owner != 0:
                decref(int(owner))
            return offset
        if gfp & GFP_ZERO_BIT and verb == VERB_CACHE:
            zero_words(words, offset, length)
        return self._lease(words, offset, length, tag)

    def _bind(self, context: Any, verb: int, gfp: int, slow: Callable[..., Any]) -> Callable[..., Any]:
        def alloc(*args: Any, **kwargs: Any) -> Any:
            base = load_at(context[X_GATE // WORD_BYTES])
            owner = context[X_OWNER // WORD_BYTES]
            if not args and not kwargs and base != 0 and owner != 0:
                found = self.attempt(base, verb, owner, gfp, context[X_LENGTH // 8], context[X_TAG // 8])
                if type(found) is memoryview:
                    return found
            return slow(*args, **kwargs)

        return alloc

    def bind_cache(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc``."""
        return self._bind(context, VERB_CACHE, GFP_ORDINARY, slow)

    def bind_cache_bulk(self, _context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc_bulk``: the slow path alone."""
        return slow

    def bind_pool(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc``."""
        return self._bind(context, VERB_POOL, GFP_ORDINARY, slow)

    def bind_pool_reserve(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc_preallocated``."""
        return self._bind(context, VERB_POOL_RESERVE, 0, slow)

    def bind_kmalloc(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``arena.kmalloc``."""

        def kmalloc(*args: Any, **kwargs: Any) -> Any:
            base = load_at(context[X_GATE // WORD_BYTES])
            if len(args) == 1 and not kwargs and base != 0 and type(args[0]) is int and 0 < args[0] < 1 << 63:
                found = self.attempt(base, VERB_KMALLOC, args[0], GFP_ORDINARY, args[0], VERB_KMALLOC)
                if type(found) is memoryview:
                    return found
            return slow(*args, **kwargs)

        return kmalloc
