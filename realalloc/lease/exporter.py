"""The exporter type and the builtins made of machine code: :class:`Jitted`, the maker of leases.

Types, method tables and code are made once, and never freed: objects that refer to them may die last.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from numba import types

from realalloc.lease import forks
from realalloc.lease.blocks import give_back, linger, take, take_charged
from realalloc.lease.bulk import cache_alloc_bulk
from realalloc.lease.capi import bound_to, immortal
from realalloc.lease.slots import (
    X_LONG_TYPE,
    X_TYPE,
    attempt_fast,
    cache_alloc,
    dealloc,
    dealloc_slow,
    getbuffer,
    kmalloc_builtin,
    pool_alloc_fast,
    pool_reserved_fast,
)
from realalloc.lease.spares import E_BASE, E_BYTES, E_LENGTH, E_OFFSET, E_TAG
from realalloc.mm.drain import cached_objects
from realalloc.mm.jit import Entry, c_function
from realalloc.mm.kmalloc import kfree_slow, kmalloc_slow
from realalloc.mm.layout import WORD_BYTES
from realalloc.mm.mempool import pool_alloc, pool_alloc_reserved, pool_return
from realalloc.mm.mempool_wait import pool_claim, pool_nap, pool_request, pool_wait_end, wake_pools
from realalloc.mm.objects import cache_alloc_slow
from realalloc.mm.thread_exit import retire_threads


class Slot(ctypes.Structure):
    """PyType_Slot."""

    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class Spec(ctypes.Structure):
    """PyType_Spec."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(Slot)),
    ]


class Member(ctypes.Structure):
    """PyMemberDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


class Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


PY_BF_GETBUFFER = 1
PY_TP_DEALLOC = 52
PY_TP_DOC = 56
PY_TP_MEMBERS = 72
T_PYSSIZET = 19
READONLY = 1
BASETYPE = 1 << 10
DISALLOW_INSTANTIATION = 1 << 7
METH_FASTCALL = 0x80
METH_KEYWORDS = 0x02


def compiled(body: Callable[..., Any], result: Any, count: int) -> int:
    """Compile a C function of ``count`` words and return its address."""
    return int(immortal(c_function(body, result(*[types.int64] * count))).address)


def make_type(slots: list[tuple[int, int]], flags: int) -> Any:
    """Make the exporter type with the given slots; its fields are readable attributes."""
    fields = {b"base": E_BASE, b"offset": E_OFFSET, b"length": E_LENGTH, b"tag": E_TAG}
    members = (Member * (len(fields) + 1))(*[Member(n, T_PYSSIZET, at, READONLY, None) for n, at in fields.items()])
    doc = ctypes.create_string_buffer(b"The owner of one block of an arena; it gives the block back when it dies.")
    given = [*slots, (PY_TP_MEMBERS, ctypes.addressof(members)), (PY_TP_DOC, ctypes.addressof(doc)), (0, 0)]
    table = (Slot * len(given))(*[Slot(slot, function) for slot, function in given])
    spec = Spec(b"realalloc.Lease", E_BYTES, 0, flags, table)
    ctypes.pythonapi.PyType_FromSpec.restype = ctypes.py_object
    made = ctypes.pythonapi.PyType_FromSpec(ctypes.byref(spec))
    immortal([members, doc, table, spec])
    return immortal(made)


class Jitted:
    """Exporter type and builtins made of machine code."""

    def __init__(self) -> None:
        at_exit = (
            linger,
            wake_pools,
            pool_wait_end,
            retire_threads,
            cached_objects,
        )  # when it may be too late to compile
        for callee in (
            take,
            take_charged,
            give_back,
            kmalloc_slow,
            kfree_slow,
            cache_alloc_slow,
            pool_alloc,
            pool_alloc_reserved,
            pool_return,
            pool_request,
            pool_nap,
            pool_claim,
            dealloc_slow,
            *forks.CALLED,
            *at_exit,
        ):
            if isinstance(callee, Entry):
                callee.compile()
        handlers = [compiled(body, types.void, 0) for body in (forks.prepare, forks.in_parent, forks.in_child)]
        forks.register(handlers, compiled(forks.thread_exits, types.void, 1))
        slots = [
            (PY_BF_GETBUFFER, compiled(getbuffer, types.int32, 3)),
            (PY_TP_DEALLOC, compiled(dealloc, types.void, 1)),
        ]
        self.type = make_type(slots, DISALLOW_INSTANTIATION)
        fast = METH_FASTCALL | METH_KEYWORDS
        self._cache = self._method(b"alloc", compiled(cache_alloc, types.int64, 4), fast, b"gfp=GFP_KERNEL")
        bulk = compiled(cache_alloc_bulk, types.int64, 4)
        self._cache_bulk = self._method(b"alloc_bulk", bulk, fast, b"n, gfp=GFP_KERNEL")
        pool = compiled(pool_alloc_fast, types.int64, 4)
        self._pool = self._method(b"alloc", pool, fast, b"gfp=GFP_KERNEL, timeout=None")
        reserved = compiled(pool_reserved_fast, types.int64, 4)
        self._reserved = self._method(b"alloc_preallocated", reserved, fast, b"")
        self._kmalloc = self._method(
            b"kmalloc", compiled(kmalloc_builtin, types.int64, 4), fast, b"size, gfp=GFP_KERNEL"
        )
        attempt = self._method(b"attempt", compiled(attempt_fast, types.int64, 3), METH_FASTCALL, b"*args")
        self.attempt = self._builtin(attempt, id(self.type))

    def _method(self, name: bytes, function: int, flags: int, parameters: bytes) -> Any:
        doc = name + b"(" + parameters + b")\n--\n\nAllocate and lease a block."
        return immortal(Method(name, function, flags, doc))

    def _builtin(self, method: Any, bound: Any) -> Callable[..., Any]:
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype = ctypes.py_object
        made: Callable[..., Any] = make(ctypes.byref(method), ctypes.py_object(bound), None)
        return made

    def _bind(self, method: Any, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        context[X_TYPE // WORD_BYTES] = id(self.type)
        context[X_LONG_TYPE // WORD_BYTES] = id(int)
        return self._builtin(method, bound_to(context, slow))

    def bind_cache(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc``: no arguments are served by machine code, all else by ``slow``."""
        return self._bind(self._cache, context, slow)

    def bind_cache_bulk(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc_bulk``: one exact int > 0 is served by machine code, all else by ``slow``."""
        return self._bind(self._cache_bulk, context, slow)

    def bind_pool(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc``."""
        return self._bind(self._pool, context, slow)

    def bind_pool_reserve(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc_preallocated``."""
        return self._bind(self._reserved, context, slow)

    def bind_kmalloc(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``arena.kmalloc``: one exact int > 0 is served by machine code, all else by ``slow``."""
        return self._bind(self._kmalloc, context, slow)
