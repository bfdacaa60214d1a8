"""NumPy's allocator over an arena (NEP 49): the four C functions, their record, and the capsule that NumPy keeps.

A *record* is the ``PyDataMem_Handler`` that NumPy reads, its ``ctx`` pointing at itself, with options and counters behind it.
A *capsule* names a record; NumPy stores it in every array that owns its data, and lets go of it after the data is freed.

Guarantees: a capsule owns the record and a lease of the arena, so a live array keeps range, functions and record, and can be
reallocated and freed, whatever happened to the arena, to who installed the handler, or to the interpreter. A block goes back
to where it came from: inside the range to the arena, else to NumPy's default handler. malloc, calloc and realloc answer NULL
where there is no memory (without fallback), and realloc leaves the old block whole then.
Invariant: every block is aligned to R_ALIGN. NumPy calls with the GIL held: counters are plain words.
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
from realalloc.lease.capi import decref, immortal, load_at, store_at, words_at
from realalloc.lease.datarecord import (
    HUGE_BYTES,
    R_ALIGN,
    R_ALLOCS,
    R_BASE,
    R_BUDGET,
    R_BYTES,
    R_DEFAULT,
    R_END,
    R_FALLBACK,
    R_FALLBACKS,
    R_FREES,
    R_IN_PLACE,
    R_REALLOCS,
    R_REFUSED,
    R_ZEROED,
    Record,
)
from realalloc.mm.atomic import address_of, atomic_add
from realalloc.mm.charge import charge, recharge, uncharge
from realalloc.mm.jit import JIT, Entry, Words, at_end, c_function, entry, kernel, native
from realalloc.mm.kmalloc import (
    CLASS_SHEAF_SHIFT,
    charged_bytes,
    kfree_slow,
    kmalloc_fast,
    ksize,
    usable_bytes,
    zero_words,
)
from realalloc.mm.layout import (
    CHARGE_ARRAYS,
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    GRANULE_BYTES,
    H_BAD_FREES,
    H_MAX_ORDER,
    KMALLOC_MAX_CACHE_BYTES,
    KMALLOC_TABLE,
    OK,
    PAGE_BYTES,
    WORD_BYTES,
)
from realalloc.mm.objects import free_fast
from realalloc.mm.prim import emit_call
from realalloc.mm.resize import krealloc_in_place
from realalloc.mm.sheaf import pop
from realalloc.mm.threads import my_place

LARGEST: Final = 1 << 46  # no arena is that large, and rounding up cannot overflow below it
SMALL: Final = 2 * PAGE_BYTES  # what shrinks to less than half moves, from this size on
HALF_BITS: Final = 31  # factors below 2**31 have a product below 2**63
CAPSULE_NAME: Final = immortal(ctypes.create_string_buffer(b"mem_handler"))
ZERO_SIZE_OFFSET: Final = 16  # of a lease without a block

_WORD = ir.IntType(64)


@native(emit_call(_WORD))
def call_at(function: int, first: int, second: int, third: int) -> int:
    """Call a C function of up to three words; those that it does not take are ignored, as are results that it has not."""
    word = ctypes.c_int64
    return int(ctypes.CFUNCTYPE(word, word, word, word)(int(function))(int(first), int(second), int(third)))


@native(c_call("PyCapsule_GetContext", _WORD, [_WORD]))
def capsule_context(capsule: int) -> int:
    """Return what a capsule owns."""
    raise NotImplementedError


@native(c_call("memcpy", _WORD, [_WORD] * 3))
def copy_bytes(target: int, source: int, nbytes: int) -> int:
    """Copy bytes between addresses; one of them may lie outside the arena."""
    ctypes.memmove(int(target), int(source), int(nbytes))
    return target


@kernel
def _count(record: int, at: int, by: int) -> None:
    store_at(record + at, load_at(record + at) + by)


@kernel
def _default(record: int, which: int, first: int, second: int) -> int:
    """Call NumPy's default handler: 1 malloc, 2 calloc, 3 realloc, 4 free."""
    return call_at(load_at(record + R_DEFAULT + which * WORD_BYTES), load_at(record + R_DEFAULT), first, second)


@kernel
def _owns(record: int, block: int) -> int:
    offset = block - load_at(record + R_BASE)
    return 1 if 0 <= offset < load_at(record + R_END) else 0


@kernel
def _rounded(words: Words, align: int, nbytes: int) -> int:
    """Round a size up so that whatever serves it is aligned: a size class that is a multiple of a power of two is aligned
    to it, a page block to its size, an area to a granule, or to 2 MiB from that size on.
    """
    size = (max(nbytes, 1) + align - 1) & -align
    if align > GRANULE_BYTES and size > PAGE_BYTES << words[H_MAX_ORDER]:
        size = max(size, HUGE_BYTES)
    return size


@kernel
def _take(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Return the address of a block of the arena, or NULL."""
    offset = (
        kmalloc_fast(words, _rounded(words, load_at(record + R_ALIGN), nbytes), gfp | GFP_ORDINARY)
        if 0 <= nbytes < LARGEST
        else 0
    )
    return address_of(words) + offset if offset > 0 else 0


@kernel
def _hand(record: int, block: int, nbytes: int, gfp: int) -> int:
    """Count what NumPy gets: the block, for NULL one of NumPy's default handler, if that is asked, or NULL."""
    if block == 0 and load_at(record + R_FALLBACK) != 0:
        _count(record, R_FALLBACKS, 1)
        block = _default(record, 2, 1, nbytes) if gfp & GFP_ZERO_BIT else _default(record, 1, nbytes, 0)
    if block == 0:
        _count(record, R_REFUSED, 1)
        return 0
    _count(record, R_ALLOCS, 1)
    _count(record, R_BYTES, nbytes)
    return block


@entry
def data_alloc_slow(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Allocate what the calling thread's sheaf of objects does not have; the address, or NULL."""
    return _hand(record, _take(words, record, nbytes, gfp), nbytes, gfp)


@kernel
def _whole(words: Words, record: int, nbytes: int) -> int:
    """Return what the block that NumPy will get for ``nbytes`` charges."""
    return usable_bytes(words, _rounded(words, load_at(record + R_ALIGN), nbytes), 0)


@entry
def data_alloc_charged(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Allocate what a budget pays for; where that refuses, as where there is no memory."""
    block = 0
    if 0 <= nbytes < LARGEST:
        whole = _whole(words, record, nbytes)
        if charge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole) == OK:
            block = _take(words, record, nbytes, gfp)
            if block == 0:
                uncharge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole)
    return _hand(record, block, nbytes, gfp)


@entry
def data_free_slow(words: Words, record: int, block: int, nbytes: int) -> int:
    """Free what is no object of a sheaf. What is no live block is counted, as there is nobody to tell; NULL is ignored."""
    if block == 0:
        return OK
    if _owns(record, block) == 0:
        _default(record, 4, block, nbytes)
    elif kfree_slow(words, block - load_at(record + R_BASE)) != OK:
        atomic_add(words, H_BAD_FREES, 1)
        return OK
    _count(record, R_FREES, 1)
    return OK


@entry
def data_resize(words: Words, record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` with the old contents: the same, grown, moved with its pages, or a copy; or NULL."""
    _count(record, R_REALLOCS, 1)
    base = load_at(record + R_BASE)
    if _owns(record, block) == 0:
        return _default(record, 3, block, nbytes)
    offset = block - base
    old = ksize(words, offset)
    if old <= 0:  # no live block
        return 0
    if 0 <= nbytes <= old and (old <= SMALL or nbytes > old // 2):
        _count(record, R_IN_PLACE, 1)
        return block
    wanted = _rounded(words, load_at(record + R_ALIGN), nbytes) if 0 <= nbytes < LARGEST else LARGEST
    moved = krealloc_in_place(words, offset, wanted) if old < wanted < LARGEST else 0
    if moved > 0:
        _count(record, R_IN_PLACE, 1)
        return base + moved
    fresh = kmalloc_fast(words, wanted, GFP_ORDINARY) if wanted < LARGEST else 0
    if fresh <= 0 and 0 <= nbytes <= old:
        return block  # no memory to shrink into
    if fresh > 0:
        fresh += base
        copy_bytes(fresh, block, min(old, nbytes))
    elif load_at(record + R_FALLBACK) != 0:
        fresh = _default(record, 1, nbytes, 0)
        _count(record, R_FALLBACKS, 1)
        if fresh != 0:
            copy_bytes(fresh, block, min(old, nbytes))
    if fresh <= 0:
        _count(record, R_REFUSED, 1)
        return 0
    if free_fast(words, 0, offset) == 0:
        kfree_slow(words, offset)
    return fresh


@entry
def data_free_charged(words: Words, record: int, block: int, nbytes: int) -> int:
    """Free what a budget paid for, or what NumPy's default handler gave."""
    owned = block != 0 and _owns(record, block) == 1
    whole = charged_bytes(words, block - load_at(record + R_BASE)) if owned else 0
    data_free_slow(words, record, block, nbytes)
    if whole > 0:
        uncharge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole)
    return OK


@entry
def data_resize_charged(words: Words, record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` with the old contents; the budget pays for what is more, beforehand."""
    base = load_at(record + R_BASE)
    b = load_at(record + R_BUDGET)
    old = charged_bytes(words, block - base) if _owns(record, block) == 1 else 0
    if old <= 0:
        return data_resize(words, record, block, nbytes)
    more = max(0, _whole(words, record, nbytes) - old) if 0 <= nbytes < LARGEST else 0
    if more > 0 and recharge(words, b, CHARGE_ARRAYS, more) != OK:
        _count(record, R_REALLOCS, 1)
        moved = 0
        if load_at(record + R_FALLBACK) != 0:
            _count(record, R_FALLBACKS, 1)
            moved = _default(record, 1, nbytes, 0)
        if moved == 0:
            _count(record, R_REFUSED, 1)
            return 0
        copy_bytes(moved, block, old)
        kfree_slow(words, block - base)
        uncharge(words, b, CHARGE_ARRAYS, old)
        return moved
    moved = data_resize(words, record, block, nbytes)
    if moved == 0:
        recharge(words, b, CHARGE_ARRAYS, -more)
    elif _owns(record, moved) == 1:
        recharge(words, b, CHARGE_ARRAYS, charged_bytes(words, moved - base) - old - more)
    else:
        uncharge(words, b, CHARGE_ARRAYS, old + more)
    return moved


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
                _count(record, R_ALLOCS, 1)
                _count(record, R_BYTES, nbytes)
                return load_at(record + R_BASE) + offset
    return _alloc_slow(words, record, nbytes, gfp)


def data_malloc(record: int, nbytes: int) -> int:
    """Return the address of a block, or NULL."""
    return _alloc(record, nbytes, 0)


def data_calloc(record: int, count: int, nbytes: int) -> int:
    """Return the address of a block of ``count * nbytes`` that reads as zero, or NULL, also if that overflows."""
    if (count | nbytes) >> HALF_BITS != 0 and (count < 0 or nbytes < 0 or (nbytes > 0 and count > LARGEST // nbytes)):
        return 0
    _count(record, R_ZEROED, 1)
    return _alloc(record, count * nbytes, GFP_ZERO_BIT)


def data_realloc(record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` that begins with the old contents, or NULL with the old one untouched."""
    if block == 0:
        return _alloc(record, nbytes, 0)
    return _resize(words_at(load_at(record + R_BASE)), record, block, nbytes)


def data_free(record: int, block: int, nbytes: int) -> None:
    """Free a block; ``nbytes`` is told to NumPy's default handler where the block is that one's."""
    words = words_at(load_at(record + R_BASE))
    if _owns(record, block) == 1 and free_fast(words, 0, block - load_at(record + R_BASE)) == 1:
        _count(record, R_FREES, 1)
    else:
        _free_slow(words, record, block, nbytes)


def charged_malloc(record: int, nbytes: int) -> int:
    """:func:`data_malloc`, with a budget that pays."""
    return data_alloc_charged(words_at(load_at(record + R_BASE)), record, nbytes, 0)


def charged_calloc(record: int, count: int, nbytes: int) -> int:
    """:func:`data_calloc`, with a budget that pays."""
    if (count | nbytes) >> HALF_BITS != 0 and (count < 0 or nbytes < 0 or (nbytes > 0 and count > LARGEST // nbytes)):
        return 0
    _count(record, R_ZEROED, 1)
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
