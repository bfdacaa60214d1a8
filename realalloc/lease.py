"""The memoryview is the lease: exporters that give their block back when the last view of it is gone.

A block reaches Python as ``memoryview(exporter)``. Slices, casts and ``np.frombuffer`` arrays share that view's managed
buffer, which holds the exporter; when the last of them dies, the exporter's ``tp_dealloc`` frees the block: once, on
whatever thread, inside a collection or at interpreter exit. This is the only file that knows CPython's C API, all of it
stable ABI; the slots of the exporter type and the allocating builtins are numba cfuncs, made when the first arena is.

Guarantees: between taking a block and owning it there is no Python bytecode, so no signal can lose it. H_LEASES counts
live exporters; the mapping stays while there are any. Machine code, type and method tables are never freed.
Invariant: H_LEASES = live exporters, H_LINGERING = those with TAG_LINGERS.
Without jit the same exporter type is a Python subclass with ``__del__``, and the builtins are closures.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from realalloc.mm.atomic import address_of, atomic_add, hold, let_go
from realalloc.mm.jit import JIT, POINTERS, Entry, Words, entry, in_cache, kernel, native
from realalloc.mm.kmalloc import kfree, kmalloc, vmalloc, zero_words
from realalloc.mm.kmem_cache import construct_put
from realalloc.mm.layout import (
    ENOMEM,
    GFP_ZERO_BIT,
    H_BAD_FREES,
    H_CLOSED,
    H_LEASES,
    H_LINGERING,
    H_OWNER,
    H_TOTAL_WORDS,
    OK,
    PAGE_SHIFT,
    WORD_BYTES,
)
from realalloc.mm.mempool import after_fork, pool_alloc, pool_alloc_reserved, pool_free, wake_pools
from realalloc.mm.page_alloc import alloc_pages, alloc_run
from realalloc.mm.prim import sched_yield, set_relax
from realalloc.mm.slab import kmem_cache_alloc, kmem_cache_free

# A tag says how a block goes back:  verb 0..3 | lingers 4 | owner 8.. (word index of the cache or pool)
VERB_NONE: Final = 0  # nothing to give back: zero-size blocks
VERB_KMALLOC: Final = 1
VERB_CACHE: Final = 2
VERB_PAGES: Final = 3
VERB_RUN: Final = 4
VERB_VMALLOC: Final = 5
VERB_POOL: Final = 6
VERB_POOL_RESERVE: Final = 7  # taking only
VERB_CONSTRUCT: Final = 8  # an object that is with its constructor
VERB_MASK: Final = 15
TAG_LINGERS: Final = 16
OWNER_SHIFT: Final = 8

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

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_VOID = ir.VoidType()


# -- C calls and raw loads as intrinsics ------------------------------------------------------------------------------


def _c_function(name: str, result: Any, parameters: list[Any]) -> Callable[[Any, Any, Any, Any], Any]:
    """Emit a call of a CPython function; pointers travel as i64."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)
        given = [builder.trunc(a, t) if t == _I32 else a for a, t in zip(args, parameters, strict=True)]
        value = builder.call(function, given)
        if result == _VOID:
            return ir.Constant(_I64, 0)
        return builder.sext(value, _I64) if result == _I32 else value

    return emit


def _emit_load_at(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.load(builder.inttoptr(args[0], _I64.as_pointer()))


def _emit_store_at(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()))
    return args[1]


@native(_emit_load_at)
def load_at(address: int) -> int:
    """Load a word."""
    return ctypes.c_int64.from_address(int(address)).value


@native(_emit_store_at)
def store_at(address: int, value: int) -> int:
    """Store a word."""
    ctypes.c_int64.from_address(int(address)).value = int(value)
    return value


@native(_c_function("_PyObject_New", _I64, [_I64]))
def _object_new(kind: int) -> int:
    """Allocate an exporter; 0 with MemoryError set."""
    raise NotImplementedError


@native(_c_function("PyObject_Free", _VOID, [_I64]))
def _object_free(exporter: int) -> int:
    """Free an exporter's memory."""
    raise NotImplementedError


@native(_c_function("PyMemoryView_FromObject", _I64, [_I64]))
def _memoryview_of(exporter: int) -> int:
    """Make a view; 0 with an error set."""
    raise NotImplementedError


@native(_c_function("PyBuffer_FillInfo", _I32, [_I64, _I64, _I64, _I64, _I32, _I32]))
def _fill_info(view: int, exporter: int, start: int, length: int, readonly: int, flags: int) -> int:
    """Fill a Py_buffer in; -1 with an error set."""
    raise NotImplementedError


@native(_c_function("PyTuple_GetItem", _I64, [_I64, _I64]))
def _tuple_item(items: int, index: int) -> int:
    """Borrow an item."""
    raise NotImplementedError


@native(_c_function("PyLong_AsSsize_t", _I64, [_I64]))
def _as_ssize(number: int) -> int:
    """Read an int; -1 with an error set if it does not fit."""
    raise NotImplementedError


@native(_c_function("PyLong_FromSsize_t", _I64, [_I64]))
def _long_of(value: int) -> int:
    """Make an int."""
    raise NotImplementedError


@native(_c_function("PyErr_Clear", _VOID, []))
def _error_clear() -> int:
    """Forget the error that is set."""
    raise NotImplementedError


@native(_c_function("PyObject_Vectorcall", _I64, [_I64, _I64, _I64, _I64]))
def _vectorcall(function: int, args: int, count: int, names: int) -> int:
    """Call a Python function."""
    raise NotImplementedError


@native(_c_function("PyGILState_Check", _I32, []))
def _have_gil() -> int:
    """Return 1 if the calling thread holds the GIL."""
    raise NotImplementedError


@native(_c_function("PyEval_SaveThread", _I64, []))
def _gil_release() -> int:
    """Release the GIL; return what takes it back."""
    raise NotImplementedError


@native(_c_function("PyEval_RestoreThread", _VOID, [_I64]))
def _gil_take(state: int) -> int:
    """Take the GIL back."""
    raise NotImplementedError


@native(_c_function("Py_DecRef", _VOID, [_I64]))
def _decref(address: int) -> int:
    """Drop a reference."""
    ctypes.pythonapi.Py_DecRef(ctypes.c_void_p(int(address)))
    return 0


def _make_words_at() -> Callable[[int], Words]:
    """Make ``words_at``: the words of an arena from its address, in the form that kernels take them."""
    if not JIT:

        def plain(base: int) -> Words:
            total = load_at(base + H_TOTAL_WORDS * WORD_BYTES)
            return np.ctypeslib.as_array((ctypes.c_int64 * total).from_address(int(base)))

        return plain

    def pointer(_context: Any, base: Any) -> Any:  # noqa: ARG001  # intrinsics are typed by their parameters
        def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], _I64.as_pointer())

        return types.CPointer(types.int64)(types.int64), emit

    as_pointer: Any = intrinsic(pointer)
    if POINTERS:
        return cast("Callable[[int], Words]", as_pointer)
    carray: Any = vars(numba)["carray"]

    def with_bounds(base: int) -> Words:
        words: Words = carray(as_pointer(base), (load_at(base + H_TOTAL_WORDS * WORD_BYTES),))
        return words

    return kernel(with_bounds)


words_at = _make_words_at()


# -- taking and giving back ---------------------------------------------------------------------------------------------


@entry
def take(words: Words, verb: int, argument: int, gfp: int) -> int:
    """Allocate by verb; return an offset or a status. What ``argument`` means depends on the verb: bytes, order, pages,
    word index of the cache or pool, or the offset itself (VERB_NONE and VERB_CONSTRUCT).
    """
    if verb == VERB_KMALLOC:
        return kmalloc(words, argument, gfp)
    if verb == VERB_CACHE:
        return kmem_cache_alloc(words, argument)
    if verb == VERB_POOL:
        return pool_alloc(words, argument, gfp)
    if verb == VERB_POOL_RESERVE:
        return pool_alloc_reserved(words, argument)
    if verb == VERB_VMALLOC:
        return vmalloc(words, argument, gfp)
    if verb == VERB_PAGES or verb == VERB_RUN:
        pfn = alloc_pages(words, argument, gfp) if verb == VERB_PAGES else alloc_run(words, argument, gfp)
        return pfn << PAGE_SHIFT if pfn > 0 else pfn
    return argument if words[H_CLOSED] == 0 else ENOMEM


@entry
def give_back(words: Words, tag: int, offset: int) -> int:
    """Free the block of a dead exporter. A refused free is counted: it would be damage, and nobody is there to raise to."""
    verb = tag & VERB_MASK
    owner = tag >> OWNER_SHIFT
    words[H_LEASES] -= 1
    if tag & TAG_LINGERS:
        atomic_add(words, H_LINGERING, -1)
    status = OK
    if verb == VERB_CACHE:
        status = kmem_cache_free(words, owner, offset)
    elif verb == VERB_POOL:
        status = pool_free(words, owner, offset)
    elif verb == VERB_CONSTRUCT:
        status = construct_put(words, offset)
    elif verb != VERB_NONE:
        status = kfree(words, offset)
    if status != OK:
        words[H_BAD_FREES] += 1
    return words[H_OWNER] if words[H_CLOSED] != 0 and words[H_LEASES] == 0 else 0


@entry
def linger(words: Words) -> int:
    """Count a lease whose handle was freed while other views live."""
    return atomic_add(words, H_LINGERING, 1)


# -- C functions: slots of the exporter type, bodies of the builtins -----------------------------------------------------


def _relax() -> int:
    """Wait a moment for the arena lock. Its holder may be about to fork and need the GIL for that: do not sit on it."""
    if _have_gil() == 0:
        return sched_yield()
    state = _gil_release()
    sched_yield()
    _gil_take(state)
    return 0


def _getbuffer(exporter: int, view: int, flags: int) -> int:
    start = load_at(exporter + E_BASE) + load_at(exporter + E_OFFSET)
    return _fill_info(view, exporter, start, load_at(exporter + E_LENGTH), 0, flags)


def _dealloc(exporter: int) -> None:
    words = words_at(load_at(exporter + E_BASE))
    owner = give_back(words, load_at(exporter + E_TAG), load_at(exporter + E_OFFSET))
    kind = load_at(exporter + E_TYPE)
    _object_free(exporter)
    _decref(kind)
    if owner != 0:
        _decref(owner)  # the last lease of a closed arena: this unmaps it


@kernel
def _lease(words: Words, kind: int, offset: int, length: int, tag: int) -> int:
    """Make exporter and view; return the view, or 0 with MemoryError set and the block given back."""
    words[H_LEASES] += 1
    exporter = _object_new(kind)
    if exporter == 0:
        give_back(words, tag, offset)
        return 0
    store_at(exporter + E_BASE, address_of(words))
    store_at(exporter + E_OFFSET, offset)
    store_at(exporter + E_LENGTH, length)
    store_at(exporter + E_TAG, tag)
    view = _memoryview_of(exporter)
    _decref(exporter)  # the view holds it; without a view this gives the block back
    return view


def _cache_alloc(bound: int, args: int, count: int, names: int) -> int:
    if count == 0 and names == 0:
        context = _as_ssize(_tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        if base != 0:
            words = words_at(base)
            offset = kmem_cache_alloc(words, load_at(context + X_OWNER))
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
    return _vectorcall(_tuple_item(bound, 1), args, count, names)


def _pool_alloc(bound: int, args: int, count: int, names: int) -> int:
    if count == 0 and names == 0:
        context = _as_ssize(_tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        if base != 0 and load_at(context + X_OWNER) != 0:
            words = words_at(base)
            offset = pool_alloc(words, load_at(context + X_OWNER), 0)
            if offset > 0:
                kind = load_at(context + X_TYPE)
                return _lease(words, kind, offset, load_at(context + X_LENGTH), load_at(context + X_TAG))
    return _vectorcall(_tuple_item(bound, 1), args, count, names)


def _kmalloc(bound: int, args: int, count: int, names: int) -> int:
    if count == 1 and names == 0:
        context = _as_ssize(_tuple_item(bound, 0))
        base = load_at(load_at(context + X_GATE))
        number = load_at(args)
        if base != 0 and load_at(number + E_TYPE) == load_at(context + X_LONG_TYPE):
            nbytes = _as_ssize(number)
            if nbytes > 0:
                words = words_at(base)
                offset = kmalloc(words, nbytes, 0)
                if offset > 0:
                    return _lease(words, load_at(context + X_TYPE), offset, nbytes, VERB_KMALLOC)
            elif nbytes < 0:
                _error_clear()  # too large for a word; the slow path says so
    return _vectorcall(_tuple_item(bound, 1), args, count, names)


def _attempt(bound: int, args: int, _count: int) -> int:
    """``attempt(base, verb, argument, gfp, length, tag)``: a view, or the status as an int. For every slow path."""
    words = words_at(_as_ssize(load_at(args)))
    gfp = _as_ssize(load_at(args + 24))
    length = _as_ssize(load_at(args + 32))
    offset = take(words, _as_ssize(load_at(args + 8)), _as_ssize(load_at(args + 16)), gfp)
    if offset <= 0:
        return _long_of(offset)
    if gfp & GFP_ZERO_BIT and _as_ssize(load_at(args + 8)) == VERB_CACHE:
        zero_words(words, offset, length)
    return _lease(words, _as_ssize(bound), offset, length, _as_ssize(load_at(args + 40)))


# -- the exporter type ----------------------------------------------------------------------------------------------------


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    ]


class _Member(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


class _Method(ctypes.Structure):
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


def immortal(value: Any) -> Any:
    """Keep an object for the life of the process; return it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


def _compiled(body: Callable[..., Any], result: Any, count: int) -> int:
    """Compile a cfunc of ``count`` words and return its address."""
    signature = result(*[types.int64] * count)
    with Entry.own_code():
        made = in_cache(lambda: numba.cfunc(signature, cache=True, error_model="numpy")(body))
    return int(immortal(made).address)


def _make_type(slots: list[tuple[int, int]], flags: int) -> Any:
    fields = {b"base": E_BASE, b"offset": E_OFFSET, b"length": E_LENGTH, b"tag": E_TAG}
    members = (_Member * (len(fields) + 1))(*[_Member(n, T_PYSSIZET, at, READONLY, None) for n, at in fields.items()])
    doc = ctypes.create_string_buffer(b"The owner of one block of an arena; it gives the block back when it dies.")
    given = [*slots, (PY_TP_MEMBERS, ctypes.addressof(members)), (PY_TP_DOC, ctypes.addressof(doc)), (0, 0)]
    table = (_Slot * len(given))(*[_Slot(slot, function) for slot, function in given])
    spec = _Spec(b"realalloc.Lease", E_BYTES, 0, flags, table)
    ctypes.pythonapi.PyType_FromSpec.restype = ctypes.py_object
    made = ctypes.pythonapi.PyType_FromSpec(ctypes.byref(spec))
    immortal([members, doc, table, spec])
    return immortal(made)


class _Jitted:
    """Exporter type and builtins made of machine code."""

    def __init__(self) -> None:
        at_exit = (linger, wake_pools)  # when it may be too late to compile
        for callee in (take, give_back, kmalloc, kmem_cache_alloc, pool_alloc, hold, let_go, after_fork, *at_exit):
            if isinstance(callee, Entry):
                callee.compile()
        set_relax(_compiled(_relax, types.int32, 0))
        slots = [
            (PY_BF_GETBUFFER, _compiled(_getbuffer, types.int32, 3)),
            (PY_TP_DEALLOC, _compiled(_dealloc, types.void, 1)),
        ]
        self.type = _make_type(slots, DISALLOW_INSTANTIATION)
        fast = METH_FASTCALL | METH_KEYWORDS
        self._cache = self._method(b"alloc", _compiled(_cache_alloc, types.int64, 4), fast, b"gfp=GFP_KERNEL")
        pool = _compiled(_pool_alloc, types.int64, 4)
        self._pool = self._method(b"alloc", pool, fast, b"gfp=GFP_KERNEL, timeout=None")
        self._kmalloc = self._method(b"kmalloc", _compiled(_kmalloc, types.int64, 4), fast, b"size, gfp=GFP_KERNEL")
        attempt = self._method(b"attempt", _compiled(_attempt, types.int64, 3), METH_FASTCALL, b"*args")
        self.attempt = self._builtin(attempt, id(self.type))

    def _method(self, name: bytes, function: int, flags: int, parameters: bytes) -> Any:
        doc = name + b"(" + parameters + b")\n--\n\nAllocate and lease a block."
        return immortal(_Method(name, function, flags, doc))

    def _builtin(self, method: Any, bound: Any) -> Callable[..., Any]:
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype = ctypes.py_object
        made: Callable[..., Any] = make(ctypes.byref(method), ctypes.py_object(bound), None)
        return made

    def _bind(self, method: Any, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        context[X_TYPE // WORD_BYTES] = id(self.type)
        context[X_LONG_TYPE // WORD_BYTES] = id(int)
        return self._builtin(method, (ctypes.addressof(context), slow, context))

    def bind_cache(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc``: no arguments are served by machine code, all else by ``slow``."""
        return self._bind(self._cache, context, slow)

    def bind_pool(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc``."""
        return self._bind(self._pool, context, slow)

    def bind_kmalloc(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``arena.kmalloc``: one exact int > 0 is served by machine code, all else by ``slow``."""
        return self._bind(self._kmalloc, context, slow)


class _Plain:
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
        base = _make_type([(PY_BF_GETBUFFER, address)], BASETYPE)

        def finish(exporter: Any, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            if finalizing():  # NumPy may be half gone, and a daemon thread may have died with the lock
                return
            owner = give_back(words_at(exporter.base), exporter.tag, exporter.offset)
            if owner != 0:
                _decref(int(owner))

        body = {"__slots__": (), "__del__": finish, "__module__": "realalloc"}
        self.type = immortal(type("Lease", (base,), body))

    def _lease(self, words: Words, offset: int, length: int, tag: int) -> memoryview:
        exporter = self.type.__new__(self.type)
        store_at(id(exporter) + E_OFFSET, offset)
        store_at(id(exporter) + E_LENGTH, length)
        store_at(id(exporter) + E_TAG, tag)
        words[H_LEASES] += 1
        store_at(id(exporter) + E_BASE, address_of(words))
        return memoryview(exporter)

    def attempt(self, base: int, verb: int, argument: int, gfp: int, length: int, tag: int) -> Any:
        """Take a block and lease it, or return the status."""
        words = words_at(base)
        offset = int(take(words, verb, argument, gfp))
        if offset <= 0:
            return offset
        if gfp & GFP_ZERO_BIT and verb == VERB_CACHE:
            zero_words(words, offset, length)
        return self._lease(words, offset, length, tag)

    def _bind(self, context: Any, verb: int, slow: Callable[..., Any]) -> Callable[..., Any]:
        def alloc(*args: Any, **kwargs: Any) -> Any:
            base = load_at(context[X_GATE // WORD_BYTES])
            owner = context[X_OWNER // WORD_BYTES]
            if not args and not kwargs and base != 0 and owner != 0:
                found = self.attempt(base, verb, owner, 0, context[X_LENGTH // 8], context[X_TAG // 8])
                if type(found) is memoryview:
                    return found
            return slow(*args, **kwargs)

        return alloc

    def bind_cache(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``cache.alloc``."""
        return self._bind(context, VERB_CACHE, slow)

    def bind_pool(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``pool.alloc``."""
        return self._bind(context, VERB_POOL, slow)

    def bind_kmalloc(self, context: Any, slow: Callable[..., Any]) -> Callable[..., Any]:
        """Make ``arena.kmalloc``."""

        def kmalloc(*args: Any, **kwargs: Any) -> Any:
            base = load_at(context[X_GATE // WORD_BYTES])
            if len(args) == 1 and not kwargs and base != 0 and type(args[0]) is int and 0 < args[0] < 1 << 63:
                found = self.attempt(base, VERB_KMALLOC, args[0], 0, args[0], VERB_KMALLOC)
                if type(found) is memoryview:
                    return found
            return slow(*args, **kwargs)

        return kmalloc


_made: list[_Jitted | _Plain] = []


def factory() -> _Jitted | _Plain:
    """Return the one maker of leases, built (and compiled) at the first call."""
    if not _made:
        _made.append(_Jitted() if JIT else _Plain())
    return _made[0]


def make_context(gate: Any, owner: int, length: int, tag: int) -> Any:
    """Make the context words of an allocating builtin."""
    context = (ctypes.c_int64 * CONTEXT_WORDS)()
    context[X_GATE // WORD_BYTES] = ctypes.addressof(gate)
    context[X_OWNER // WORD_BYTES] = owner
    context[X_LENGTH // WORD_BYTES] = length
    context[X_TAG // WORD_BYTES] = tag
    return context


_shut_gate = immortal((ctypes.c_int64 * 1)(0))


def shut(context: Any) -> None:
    """Make a builtin refuse its fast path for ever: its cache or pool is gone."""
    context[X_GATE // WORD_BYTES] = ctypes.addressof(_shut_gate)


def tag_of(verb: int, owner: int = 0) -> int:
    """Return the tag of a block that goes back by ``verb`` to ``owner``."""
    return verb | owner << OWNER_SHIFT


def exporter_of(view: memoryview) -> Any:
    """Return the exporter behind a view, None if it is not one of ours or the view was released."""
    try:
        exporter = view.obj
    except ValueError:
        return None
    return exporter if type(exporter) is factory().type else None


def set_length(exporter: Any, length: int) -> None:
    """Change the length that views made from now on will have."""
    store_at(id(exporter) + E_LENGTH, length)


def _references(_first: Any, exporter: Any, _last: Any) -> int:
    return sys.getrefcount(exporter)


_ALONE = _references(None, object(), None)  # what a call of release_handle sees of an exporter without views


def release_handle(view: memoryview, exporter: Any, words: Words) -> None:
    """Release a handle that was freed; if other views of the block live on, mark the lease as lingering.

    ``exporter`` must be an expression of the call, not a name of the caller. Raises BufferError, with nothing changed,
    where somebody holds an export of this very view.
    """
    view.release()
    if sys.getrefcount(exporter) > _ALONE:
        store_at(id(exporter) + E_TAG, exporter.tag | TAG_LINGERS)
        linger(words)


def pin(words: Words, mapping: Any) -> None:
    """Make the arena own its mapping, until :func:`unpin` or until its last lease after that."""
    immortal(mapping)
    words[H_OWNER] = id(mapping)


def unpin(words: Words) -> None:
    """Let a closed arena's mapping go, now or with its last lease; views that outlive the call keep it."""
    if words[H_LEASES] == 0:
        ctypes.pythonapi.Py_DecRef(ctypes.c_void_p(int(words[H_OWNER])))
