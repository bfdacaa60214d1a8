"""An arena's malloc, calloc, realloc and free as C functions, for code that wants an allocator by address.

Each exists twice. With a context, the arena's address, as first argument: machine code that is compiled once, for hooks that
pass such an argument, as NumPy's does (NEP 49; the size that it gives ``free`` as well is not looked at). And bound to one
arena: the same code again, with the context as a constant, and malloc and free without a hash, where a thread keeps its slot
in a word of its own (lease/threadword.py). Nobody needs the GIL. The blocks are raw ones, as those of
:mod:`realalloc.jit`: no lease knows of them, who took them frees them.

Guarantees, as in C: malloc, calloc and realloc answer NULL if there is no memory, and realloc leaves the old block whole then.
A size of 0 counts as 1, one of 2**63 or more is never there. free ignores NULL. Where no live block begins, free counts a bad
free (H_BAD_FREES), and realloc answers NULL. Every block above 8 bytes is aligned to 16 at least.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from realalloc.lease.capi import immortal, words_at
from realalloc.lease.threadword import new_word
from realalloc.mm.atomic import address_of, atomic_add
from realalloc.mm.jit import JIT, CFunction, Entry, Words, at_end, c_function, entry, kernel
from realalloc.mm.kmalloc import CLASS_SHEAF_SHIFT, kfree_slow, kmalloc_fast, ksize, zero_words
from realalloc.mm.layout import (
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    H_BAD_FREES,
    KMALLOC_MAX_CACHE_BYTES,
    KMALLOC_TABLE,
    OK,
    WORD_BYTES,
)
from realalloc.mm.objects import free_fast, free_in
from realalloc.mm.sheaf import pop, pop_in
from realalloc.mm.threads import keep_slot, keep_slots, kept_slot, my_place

HALF_BITS: Final = 31  # factors below 2**31 have a product below 2**63
LARGEST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, eq=False)
class CFunctions:
    """Addresses of an arena's C functions. Its memory stays mapped as long as this object lives, closed or not."""

    context: int  # their first argument, 0 if they have none
    malloc: int  # void *([context,] size_t size)
    calloc: int  # void *([context,] size_t count, size_t size)
    realloc: int  # void *([context,] void *block, size_t size)
    free: int  # void ([context,] void *block)
    words: Words = field(repr=False)  # what keeps it mapped


@entry
def alloc_slow(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate what is no object, or what the sheaf does not have; return the address, or 0."""
    offset = kmalloc_fast(words, 1 if nbytes == 0 else nbytes, gfp | GFP_ORDINARY)
    keep_slot(words)  # which this may have given to a thread
    return address_of(words) + offset if offset > 0 else 0


@entry
def release_slow(words: Words, offset: int) -> int:
    """Free what does not go into a sheaf, or count it: nobody can be told. NULL is ignored."""
    status = kfree_slow(words, offset) if offset + address_of(words) != 0 else OK
    keep_slot(words)
    if status != OK:
        atomic_add(words, H_BAD_FREES, 1)
    return status


_alloc_slow = at_end(alloc_slow)
_release_slow = at_end(release_slow)


@kernel
def _alloc(words: Words, base: int, nbytes: int, gfp: int) -> int:
    if 0 <= nbytes <= KMALLOC_MAX_CACHE_BYTES:  # one comparison; the table has a class for 0
        offset = pop(words, my_place(), words[KMALLOC_TABLE + ((nbytes + 7) >> 3)] >> CLASS_SHEAF_SHIFT)
        if offset != 0:
            if gfp & GFP_ZERO_BIT:
                zero_words(words, offset, nbytes)
            return base + offset
    return _alloc_slow(words, nbytes, gfp)


@kernel
def _release(words: Words, offset: int) -> None:
    if free_fast(words, 0, offset) == 0:
        _release_slow(words, offset)


def malloc(context: int, nbytes: int) -> int:
    """Return the address of a block, or NULL."""
    return _alloc(words_at(context), context, nbytes, 0)


def calloc(context: int, count: int, nbytes: int) -> int:
    """Return the address of a block of ``count * nbytes`` that reads as zero, or NULL, also if that overflows."""
    if (count | nbytes) >> HALF_BITS != 0 and (count < 0 or nbytes < 0 or (nbytes > 0 and count > LARGEST // nbytes)):
        return 0
    return _alloc(words_at(context), context, count * nbytes, GFP_ZERO_BIT)


def realloc(context: int, block: int, nbytes: int) -> int:
    """Return the block itself if ``nbytes`` fit it, else another one with its contents, or NULL."""
    words = words_at(context)
    if block == 0:
        return _alloc(words, context, nbytes, 0)
    old = ksize(words, block - context)
    if 0 <= nbytes <= old:
        return block
    fresh = _alloc(words, context, nbytes, 0) if old > 0 else 0
    if fresh != 0:
        begin = (block - context) // WORD_BYTES
        target = (fresh - context) // WORD_BYTES
        for k in range(old // WORD_BYTES):
            words[target + k] = words[begin + k]
        _release(words, block - context)
    return fresh


def free(context: int, block: int) -> None:
    """Free a block; NULL, which the fast path refuses, is ignored."""
    _release(words_at(context), block - context)


def malloc_kept(context: int, at: int, nbytes: int) -> int:
    """``malloc`` where threads keep their slots ``at`` bytes from their thread pointers."""
    words = words_at(context)
    if 0 <= nbytes <= KMALLOC_MAX_CACHE_BYTES:
        offset = pop_in(words, kept_slot(at), words[KMALLOC_TABLE + ((nbytes + 7) >> 3)] >> CLASS_SHEAF_SHIFT)
        if offset != 0:
            return context + offset
    return _alloc_slow(words, nbytes, 0)


def free_kept(context: int, at: int, block: int) -> None:
    """``free`` there."""
    words = words_at(context)
    if free_in(words, kept_slot(at), 0, block - context) == 0:
        _release_slow(words, block - context)


Addresses = tuple[int, int, int, int]
_FUNCTIONS: Final[tuple[Callable[..., Any], ...]] = (malloc, calloc, realloc, free)
_PARAMETERS: Final = (1, 2, 2, 1)  # behind the context
_KEPT: Final[dict[Any, Callable[..., Any]]] = {malloc: malloc_kept, free: free_kept}
_numbers = itertools.count()


@functools.cache
def _functions() -> tuple[CFunction, ...]:
    """Compile the functions, or load them from the cache."""
    for callee in (alloc_slow, release_slow, ksize):
        if isinstance(callee, Entry):
            callee.compile()
    made = []
    for func, count in zip(_FUNCTIONS, _PARAMETERS, strict=True):
        result = types.void if func is free else types.int64
        made.append(immortal(c_function(func, result(*[types.int64] * (count + 1)))))
    return tuple(made)


@functools.cache
def _kept_functions() -> tuple[CFunction | None, ...]:
    _functions()
    word = types.int64
    kinds = {malloc: word(word, word, word), free: types.void(word, word, word)}
    return tuple(immortal(c_function(_KEPT[func], kinds[func])) if func in _KEPT else None for func in _FUNCTIONS)


@functools.cache
def compiled() -> Addresses:
    """Return the addresses of the functions. Without jit they are callbacks."""
    if not JIT:
        return _callbacks(_FUNCTIONS, [count + 1 for count in _PARAMETERS])
    return cast("Addresses", tuple(int(made.address) for made in _functions()))


def _callbacks(functions: Any, counts: Any) -> Addresses:
    word = ctypes.c_int64
    kinds = [
        ctypes.CFUNCTYPE(result, *[word] * count) for result, count in zip([word] * 3 + [None], counts, strict=True)
    ]
    made = immortal([kind(func) for kind, func in zip(kinds, functions, strict=True)])
    return cast("Addresses", tuple(ctypes.cast(callback, ctypes.c_void_p).value for callback in made))


def _bound(context: int, at: int) -> Addresses:
    """Make the functions of one arena: malloc and free once more, with the context as a constant; the others jump. ``at``:
    where threads keep their slots, 0 if nowhere.

    All were stubs that put the context in front and jumped: that was 0.6 ns of a pair's 6.3. Here it is 25 ms, once an arena.
    """
    word = ir.IntType(64)
    with global_compiler_lock, Entry.own_code():
        library = cpu_target.target_context.codegen().create_library("realalloc_bound")
        module = library.create_ir_module("realalloc_bound")
        names = []
        kept = _kept_functions() if at != 0 else (None,) * len(_FUNCTIONS)
        for usual, func, count, quick in zip(_functions(), _FUNCTIONS, _PARAMETERS, kept, strict=True):
            made = usual if quick is None else quick
            constants = [ir.Constant(word, value) for value in ((context,) if quick is None else (context, at))]
            result = ir.VoidType() if func is free else word
            link = ir.FunctionType(result, [word] * (count + len(constants)))
            names.append(f"realalloc_{func.__name__}_{next(_numbers)}")
            bound = ir.Function(module, ir.FunctionType(result, [word] * count), names[-1])
            builder = ir.IRBuilder(bound.append_basic_block("entry"))
            given = [*constants, *bound.args]
            if func in _KEPT:
                library.add_linking_library(made._library)
                value = builder.call(ir.Function(module, link, made.native_name), given, attrs=("alwaysinline",))
            else:
                callee = builder.inttoptr(ir.Constant(word, made.address), link.as_pointer())
                value = builder.call(callee, given, tail=True)
            if func is free:
                builder.ret_void()
            else:
                builder.ret(value)
        library.add_ir_module(module)
        immortal(library)
        return cast("Addresses", tuple(library.get_pointer_to_function(name) for name in names))


def with_context(words: Words, base: int) -> CFunctions:
    """Return the functions that take the arena's address first."""
    return CFunctions(base, *compiled(), words)


def stubs(words: Words, base: int) -> Addresses:
    """Make functions of the arena at ``base``, without a context. They stay for the life of the process: make them once."""
    if JIT:
        at = new_word()
        made = _bound(base, at)
        keep_slots(words, at)
        return made
    return _callbacks([functools.partial(func, base) for func in _FUNCTIONS], _PARAMETERS)
