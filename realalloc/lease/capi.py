"""CPython's C API for jitted code: calls of stable-ABI functions, raw loads and stores, words from an address.

The functions with a body that raises exist for machine code only; the others have a plain Python twin. Pointers travel as
int64. ``immortal`` keeps what machine code or the interpreter refers to by address.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from realalloc.mm.jit import JIT, POINTERS, Words, kernel, native
from realalloc.mm.layout import H_TOTAL_WORDS, WORD_BYTES

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_VOID = ir.VoidType()


def immortal(value: Any) -> Any:
    """Keep an object for the life of the process; return it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


def c_function(name: str, result: Any, parameters: list[Any]) -> Callable[[Any, Any, Any, Any], Any]:
    """Emit a call of a CPython function; pointers travel as i64."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)
        given = [builder.trunc(a, t) if t == _I32 else a for a, t in zip(args, parameters, strict=True)]
        value = builder.call(function, given)
        if result == _VOID:
            return ir.Constant(_I64, 0)
        return builder.sext(value, _I64) if result == _I32 else value

    return emit


def address_of_symbol(name: str) -> Callable[[Any, Any, Any, Any], Any]:
    """Emit the address of a symbol that llvmlite.binding was told: machine code on disk may hold no address."""

    def emit(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        return builder.ptrtoint(builder.module.globals.get(name) or ir.GlobalVariable(builder.module, _I64, name), _I64)

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


# What a builtin is bound to: (address of its context as bytes, function for what machine code does not do, the context). Two
# loads find the context where PyTuple_GetItem and PyLong_AsSsize_t took a quarter of `pool.alloc()` with a ready view. Python
# itself says where a tuple has its items and a bytes object its bytes.
_ITEMS = tuple.__basicsize__
_BYTES = bytes.__basicsize__ - 1  # the last one is the NUL behind them


def bound_to(context: Any, slow: Callable[..., Any]) -> tuple[bytes, Callable[..., Any], Any]:
    """Make what a builtin is bound to."""
    return ctypes.addressof(context).to_bytes(WORD_BYTES, sys.byteorder), slow, context


@kernel
def context_of(bound: int) -> int:
    """Return the address of a builtin's context."""
    return load_at(load_at(bound + _ITEMS) + _BYTES)


@kernel
def slow_of(bound: int) -> int:
    """Borrow the function for what machine code does not do."""
    return load_at(bound + _ITEMS + WORD_BYTES)


@native(c_function("_PyObject_New", _I64, [_I64]))
def object_new(kind: int) -> int:
    """Allocate an exporter; 0 with MemoryError set."""
    raise NotImplementedError


@native(c_function("PyObject_Free", _VOID, [_I64]))
def object_free(exporter: int) -> int:
    """Free an exporter's memory."""
    raise NotImplementedError


@native(c_function("PyMemoryView_FromObject", _I64, [_I64]))
def memoryview_of(exporter: int) -> int:
    """Make a view; 0 with an error set."""
    raise NotImplementedError


@native(c_function("PyBuffer_FillInfo", _I32, [_I64, _I64, _I64, _I64, _I32, _I32]))
def fill_info(view: int, exporter: int, start: int, length: int, readonly: int, flags: int) -> int:
    """Fill a Py_buffer in; -1 with an error set."""
    raise NotImplementedError


@native(c_function("PyList_New", _I64, [_I64]))
def list_new(length: int) -> int:
    """Make a list of NULLs; 0 with MemoryError set."""
    raise NotImplementedError


@native(c_function("PyList_SetItem", _I32, [_I64, _I64, _I64]))
def list_set(items: int, index: int, value: int) -> int:
    """Store an item, taking over the reference."""
    raise NotImplementedError


@native(c_function("PyObject_GC_UnTrack", _VOID, [_I64]))
def gc_untrack(thing: int) -> int:
    """Hide an object from the collector, and from who asks it for all objects."""
    raise NotImplementedError


@native(c_function("PyObject_GC_Track", _VOID, [_I64]))
def gc_track(thing: int) -> int:
    """Show it to them again."""
    raise NotImplementedError


@native(c_function("PyLong_AsSsize_t", _I64, [_I64]))
def as_ssize(number: int) -> int:
    """Read an int; -1 with an error set if it does not fit."""
    raise NotImplementedError


@native(c_function("PyLong_FromSsize_t", _I64, [_I64]))
def long_of(value: int) -> int:
    """Make an int."""
    raise NotImplementedError


@native(c_function("PyErr_Occurred", _I64, []))
def error_occurred() -> int:
    """Tell whether an error is set: not 0."""
    raise NotImplementedError


@native(c_function("PyErr_Clear", _VOID, []))
def error_clear() -> int:
    """Forget the error that is set."""
    raise NotImplementedError


@native(c_function("PyObject_Vectorcall", _I64, [_I64, _I64, _I64, _I64]))
def vectorcall(function: int, args: int, count: int, names: int) -> int:
    """Call a Python function."""
    raise NotImplementedError


@native(c_function("PyEval_SaveThread", _I64, []))
def save_thread() -> int:
    """Give the GIL up."""
    raise NotImplementedError


@native(c_function("PyEval_RestoreThread", _VOID, [_I64]))
def restore_thread(state: int) -> int:
    """Take the GIL again."""
    raise NotImplementedError


@native(c_function("PyErr_CheckSignals", ir.IntType(32), []))
def check_signals() -> int:
    """Run handlers of signals that came, on the main thread; not 0 if one raised."""
    raise NotImplementedError


@native(c_function("Py_IncRef", _VOID, [_I64]))
def incref(address: int) -> int:
    """Take a reference."""
    ctypes.pythonapi.Py_IncRef(ctypes.c_void_p(int(address)))
    return 0


@native(c_function("Py_DecRef", _VOID, [_I64]))
def decref(address: int) -> int:
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
