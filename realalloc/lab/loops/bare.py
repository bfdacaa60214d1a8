"""Bare stacks: what is left of an allocator without everything that makes it one, as a floor under a row.

A size is rounded up to a power of two. Each such class has a region of addresses and two stacks: allocations pop from one,
frees push onto the other, and they change places when the first is empty, so that a pair does not wait for its own stores.
Where both are empty the next objects of the region are taken. There is no check, no lock, no other thread, and nothing goes
back. (It is no bound for rows that are decided by where objects lie: a page's own list gives neighbours.)

    BARE     how = [address of the table below]
    table    word k: top of the stack of class k that is popped; TABLE + k: that is pushed; 2 * TABLE + k: its next object

Invariant, of a class k: a stack begins with a word of 0, and the words above it, up to the top, are addresses of objects that
nobody has. Each object of the region below the next one is on a stack or somebody's.
Guarantees: objects do not overlap, and are aligned to their class. May not: be used by two threads, or after ``bare_how``'s
``Memory`` is gone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from realalloc.lab.loops.kinds import Functions, at_address, load_address, store_address
from realalloc.lease.capi import load_at, store_at
from realalloc.memory import Memory
from realalloc.mm.bits import clz

LEAST_CLASS: Final = 3  # objects of 8 bytes
CLASSES: Final = 26  # up to 32 MiB
TABLE: Final = 64  # a size beyond all classes finds empty stacks
REGION_SHIFT: Final = 30  # bytes of objects of a class, and of a stack; reserved, touched as they are reached
_REGION: Final = 1 << REGION_SHIFT
_POPPED: Final = CLASSES + 1  # the regions of objects begin at region 1
_PUSHED: Final = _POPPED + CLASSES
_LINE: Final = 128  # stacks do not begin in the same set of the first cache
_TAKEN_BYTES: Final = 1 << 15  # objects that are taken at once
_TAKEN: Final = 32


@njit(forceinline=True)
def _class_of(nbytes: int) -> int:
    return max(64 - clz(nbytes - 1), LEAST_CLASS)


@njit(nogil=True)
def _refill(base: int, k: int) -> int:
    """Exchange the stacks, or take objects of the region; return one, 0 if there is none."""
    main, spare = load_at(base + 8 * k), load_at(base + 8 * (TABLE + k))
    if load_at(spare) != 0:
        store_at(base + 8 * (TABLE + k), main)
        store_at(base + 8 * k, spare - 8)
        return load_at(spare)
    block = load_at(base + 8 * (2 * TABLE + k))
    count = max(min(_TAKEN, _TAKEN_BYTES >> k), 1)
    if k >= CLASSES or block + (count << k) > base + ((k + 2) << REGION_SHIFT):
        return 0
    for _ in range(count - 1):
        main += 8
        store_at(main, block)
        block += 1 << k
    store_at(base + 8 * k, main)
    store_at(base + 8 * (2 * TABLE + k), block + (1 << k))
    return block


@njit(forceinline=True)
def _alloc(how: Any, nbytes: int) -> int:
    base = how[0]
    k = _class_of(nbytes)
    top = load_at(base + 8 * k)
    block = load_at(top)
    if block == 0:
        return _refill(base, k)
    store_at(base + 8 * k, top - 8)
    return block


@njit(forceinline=True)
def _free(how: Any, block: int) -> int:
    base = how[0]
    k = ((block - base) >> REGION_SHIFT) - 1
    top = load_at(base + 8 * (TABLE + k)) + 8
    store_at(top, block)
    store_at(base + 8 * (TABLE + k), top)
    return 0


@njit(nogil=True)
def _realloc(how: Any, block: int, nbytes: int) -> int:
    k = ((block - how[0]) >> REGION_SHIFT) - 1
    if _class_of(nbytes) == k:
        return block
    fresh = _alloc(how, nbytes)
    if fresh != 0:
        for at in range(0, min(1 << k, nbytes), 8):
            store_at(fresh + at, load_at(block + at))
        _free(how, block)
    return fresh


BARE: Final = Functions(_alloc, _free, store_address, load_address, at_address, _realloc)


def bare_how() -> tuple[npt.NDArray[np.int64], Memory]:
    """Make what BARE needs, and the memory that it is in, to be kept as long as that is used; OSError where there is none."""
    total = (_PUSHED + CLASSES) << REGION_SHIFT
    memory = Memory(total, _REGION, total)
    memory.words[: 3 * TABLE] = memory.address + 8 * 3 * TABLE  # a word of 0
    for k in range(CLASSES):
        for part, region in ((0, _POPPED), (1, _PUSHED)):
            memory.words[part * TABLE + k] = memory.address + ((region + k) << REGION_SHIFT) + (k + 1) * _LINE
        memory.words[2 * TABLE + k] = memory.address + ((k + 1) << REGION_SHIFT)
    return np.array([memory.address], np.int64), memory
