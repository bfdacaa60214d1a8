"""What an allocator is to a loop: six functions and a value, ``how``, that all of them take first.

    OURS     how = arena.words; kmalloc and kfree are compiled into the loop
    NATIVE   how = [addresses of malloc, free and realloc]; called through these addresses
    CONTROL  how = [counter, address of preallocated objects, their number - 1]; what a loop costs without any allocator

Guarantees: the functions have no state of their own; two threads may use them with the same ``how``, but for CONTROL's.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from realalloc.jit import kfree, kmalloc, krealloc, load_word, store_word
from realalloc.lab.natives import call_alloc, call_free, call_realloc
from realalloc.lease.capi import load_at, store_at
from realalloc.mm.atomic import address_of

CONTROL_OBJECTS: Final = 8192  # more than a ring holds, a power of two
FEW: Final = 64  # objects that stay in the first cache
CONTROL_SHIFT: Final = 6  # 64 bytes each: nothing but the first word may be written


class Functions(NamedTuple):
    """An allocator, for jitted code: all but ``at`` are forced inline."""

    alloc: Any  # (how, nbytes) -> block, 0 if there is no memory
    free: Any  # (how, block)
    store: Any  # (how, block, value): write the first word
    load: Any  # (how, block) -> the first word
    at: Any  # (how, block) -> its address
    realloc: (
        Any  # (how, block, nbytes) -> block with the old contents, 0 if there is no memory: the old one is whole then
    )


@njit(forceinline=True)
def _store_word(words: Any, offset: int, value: int) -> None:
    store_word(words, offset, value)


@njit(forceinline=True)
def _load_word(words: Any, offset: int) -> int:
    return load_word(words, offset)


@njit(forceinline=True)
def _at_offset(words: Any, block: int) -> int:
    return address_of(words) + block


@njit(forceinline=True)
def _native_alloc(how: Any, nbytes: int) -> int:
    return call_alloc(how[0], nbytes)


@njit(forceinline=True)
def _native_free(how: Any, block: int) -> int:
    return call_free(how[1], block)


@njit(forceinline=True)
def _native_realloc(how: Any, block: int, nbytes: int) -> int:
    return call_realloc(how[2], block, nbytes)


@njit(forceinline=True)
def store_address(_how: Any, address: int, value: int) -> None:
    """Write the first word of a block that is an address."""
    store_at(address, value)


@njit(forceinline=True)
def load_address(_how: Any, address: int) -> int:
    """Return the first word of a block that is an address."""
    return load_at(address)


@njit(forceinline=True)
def at_address(_how: Any, block: int) -> int:
    """Return a block that is an address."""
    return block


@njit(forceinline=True)
def _next_object(how: Any, _nbytes: int) -> int:
    how[0] += 1
    return how[1] + ((how[0] & how[2]) << CONTROL_SHIFT)


@njit(forceinline=True)
def _keep(_how: Any, _block: int) -> int:
    return 0


@njit(forceinline=True)
def _same(_how: Any, block: int, _nbytes: int) -> int:
    return block


OURS: Final = Functions(kmalloc, kfree, _store_word, _load_word, _at_offset, krealloc)
NATIVE: Final = Functions(_native_alloc, _native_free, store_address, load_address, at_address, _native_realloc)
CONTROL: Final = Functions(_next_object, _keep, store_address, load_address, at_address, _same)


@functools.cache
def _objects(_thread: int) -> npt.NDArray[np.uint8]:
    return np.zeros(CONTROL_OBJECTS << CONTROL_SHIFT, np.uint8)


def control_how(thread: int = 0, objects: int = CONTROL_OBJECTS) -> npt.NDArray[np.int64]:
    """Make what CONTROL needs; threads that allocate side by side have objects of their own."""
    return np.array([0, _objects(thread).ctypes.data, objects - 1], np.int64)
