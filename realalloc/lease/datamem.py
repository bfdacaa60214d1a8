"""NumPy's allocator over an arena (NEP 49): the four C functions, and the capsule that NumPy keeps.

A *record* is the ``PyDataMem_Handler`` that NumPy reads, its ``ctx`` pointing at itself, with options and counters behind it.
A *capsule* names a record; NumPy stores it in every array that owns its data, and lets go of it after the data is freed.

Guarantees: a capsule owns the record and a lease of the arena, so a live array keeps range, functions and record, and can be
reallocated and freed, whatever happened to the arena, to who installed the handler, or to the interpreter. malloc, calloc and
realloc answer NULL where there is no memory (without fallback), and realloc leaves the old block whole then.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types

from realalloc.lease.blocks import VERB_NONE
from realalloc.lease.capi import c_function as c_call
from realalloc.lease.capi import decref, immortal, load_at, words_at
from realalloc.lease.datablocks import LARGEST, data_alloc_slow, data_free_slow, data_resize, owns, tally
from realalloc.lease.datapaid import data_alloc_charged, data_free_charged, data_resize_charged
from realalloc.lease.datarecord import R_ALIGN, R_ALLOCS, R_BASE, R_BYTES, R_FREES, R_ZEROED, Record
from realalloc.mm.jit import JIT, Entry, at_end, c_function, kernel, native
from realalloc.mm.kmalloc import CLASS_SHEAF_SHIFT, zero_words
from realalloc.mm.layout import GFP_ZERO_BIT, KMALLOC_MAX_CACHE_BYTES, KMALLOC_TABLE
from realalloc.mm.objects import free_fast
from realalloc.mm.sheaf import pop
from realalloc.mm.threads import my_place

HALF_BITS: Final = 31  # factors below 2**31 have a product below 2**63
CAPSULE_NAME: Final = immortal(ctypes.create_string_buffer(b"mem_handler"))
ZERO_SIZE_OFFSET: Final = 16  # of a lease without a block

_WORD = ir.IntType(64)


@native(c_call("PyCapsule_GetContext", _WORD, [_WORD]))
def capsule_context(capsule: int) -> int:
    """Return what a capsule owns."""
    raise NotImplementedError


_alloc_slow = at_end(data_alloc_slow)
_free_slow = at_end(data_free_slow)
_resize = at_end(data_resize)


@kernel
def _alloc(record: int, nbytes: int, gfp: int) -> int:
    words = words_at(load_at(record + R_BASE))
    if 0 < nbytes <= KMALLOC_MAX_CACHE_BYTES:
        align = load_at(record + R_ALIGN)
        size = (nbytes + align - 1) & -align
        if size <= KMALLOC_MAX_CACHE_BYTES:
            offset = pop(words, my_place(), words[KMALLOC_TABLE + ((size + 7) >> 3)] >> CLASS_SHEAF_SHIFT)
            if offset != 0:
                if gfp & GFP_ZERO_BIT:
                    zero_words(words, offset, nbytes)
                tally(record, R_ALLOCS, 1)
                tally(record, R_BYTES, nbytes)
                return load_at(record + R_BASE) + offset
    return _alloc_slow(words, record, nbytes, gfp)


@kernel
def _overflows(count: int, nbytes: int) -> int:
    """Tell whether a product is more than any arena has; a ``size_t`` beyond PTRDIFF_MAX arrives as a negative number."""
    if (count | nbytes) >> HALF_BITS == 0:
        return 0
    return 1 if count < 0 or nbytes < 0 or (nbytes > 0 and count > LARGEST // nbytes) else 0


def data_malloc(record: int, nbytes: int) -> int:
    """Return the address of a block, or NULL."""
    return _alloc(record, nbytes, 0)


def data_calloc(record: int, count: int, nbytes: int) -> int:
    """Return the address of a block of ``count * nbytes`` that reads as zero, or NULL, also if that overflows."""
    if _overflows(count, nbytes) == 1:
        return 0
    tally(record, R_ZEROED, 1)
    return _alloc(record, count * nbytes, GFP_ZERO_BIT)


def data_realloc(record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` that begins with the old contents, or NULL with the old one untouched."""
    if block == 0:
        return _alloc(record, nbytes, 0)
    return _resize(words_at(load_at(record + R_BASE)), record, block, nbytes)


def data_free(record: int, block: int, nbytes: int) -> None:
    """Free a block; ``nbytes`` is told to NumPy's default handler where the block is that one's."""
    words = words_at(load_at(record + R_BASE))
    if owns(record, block) == 1 and free_fast(words, 0, block - load_at(record + R_BASE)) == 1:
        tally(record, R_FREES, 1)
    else:
        _free_slow(words, record, block, nbytes)


def charged_malloc(record: int, nbytes: int) -> int:
    """:func:`data_malloc`, with a budget that pays."""
    return data_alloc_charged(words_at(load_at(record + R_BASE)), record, nbytes, 0)


def charged_calloc(record: int, count: int, nbytes: int) -> int:
    """:func:`data_calloc`, with a budget that pays."""
    if _overflows(count, nbytes) == 1:
        return 0
    tally(record, R_ZEROED, 1)
    return data_alloc_charged(words_at(load_at(record + R_BASE)), record, count * nbytes, GFP_ZERO_BIT)


def charged_realloc(record: int, block: int, nbytes: int) -> int:
    """:func:`data_realloc`, with a budget that pays."""
    words = words_at(load_at(record + R_BASE))
    if block == 0:
        return data_alloc_charged(words, record, nbytes, 0)
    return data_resize_charged(words, record, block, nbytes)


def charged_free(record: int, block: int, nbytes: int) -> None:
    """:func:`data_free`, with a budget that paid."""
    data_free_charged(words_at(load_at(record + R_BASE)), record, block, nbytes)


def _forget_capsule(capsule: int) -> None:
    """PyCapsule_Destructor: let go of the record and of the lease."""
    decref(capsule_context(capsule))


FUNCTIONS: Final[tuple[Callable[..., Any], ...]] = (data_malloc, data_calloc, data_realloc, data_free)
CHARGED: Final[tuple[Callable[..., Any], ...]] = (charged_malloc, charged_calloc, charged_realloc, charged_free)
PARAMETERS: Final = (2, 3, 3, 3)


@functools.cache
def compiled() -> tuple[int, ...]:
    """Compile the functions, or load them from the cache; the addresses of the four and of the capsule's destructor.

    Without machine code there are none: RuntimeError. Python code may not run where NumPy allocates.
    """
    if not JIT:
        raise RuntimeError("NumPy's allocator hook needs machine code: NUMBA_DISABLE_JIT is set")
    return _compile((data_alloc_slow, data_free_slow, data_resize), (*FUNCTIONS, _forget_capsule))


@functools.cache
def compiled_charged() -> tuple[int, ...]:
    """Compile the four functions of arrays that a budget pays for; RuntimeError as :func:`compiled`."""
    compiled()
    return _compile((data_alloc_charged, data_free_charged, data_resize_charged), CHARGED)


def _compile(callees: tuple[Any, ...], functions: tuple[Callable[..., Any], ...]) -> tuple[int, ...]:
    for callee in callees:
        if isinstance(callee, Entry):
            callee.compile()
    made = []
    for func, count in zip(functions, (*PARAMETERS, 1), strict=False):
        result = types.void if func in (data_free, charged_free, _forget_capsule) else types.int64
        made.append(int(immortal(c_function(func, result(*[types.int64] * count))).address))
    return tuple(made)


_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
_api.PyCapsule_SetContext.argtypes = [ctypes.py_object, ctypes.py_object]
_api.PyCapsule_SetDestructor.argtypes = [ctypes.py_object, ctypes.c_void_p]


def make_capsule(record: Record, leases: Any, budget: Any = None) -> Any:
    """Make a capsule that owns the record's memory, a lease of the arena and the budget that pays; None if it is closed."""
    base = record[R_BASE]
    lease = leases.attempt(base, VERB_NONE, ZERO_SIZE_OFFSET, 0, 0, VERB_NONE)
    if type(lease) is not memoryview:
        return None
    capsule = _api.PyCapsule_New(record.address, ctypes.addressof(CAPSULE_NAME), None)
    owned = (lease, record.memory, budget)  # nothing that runs Python when it dies: the interpreter may be half gone
    _api.PyCapsule_SetContext(capsule, owned)
    immortal(owned)  # until the destructor
    _api.PyCapsule_SetDestructor(capsule, compiled()[4])
    return capsule
