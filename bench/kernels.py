"""The jitted loops of the native benchmarks, each written once and made three times: for ours, for any native, and for nobody.

``make(alloc, free, store, load, at)`` closes every loop over functions whose first argument, ``how``, is an int64 array:

    OURS     how = arena.words; kmalloc and kfree are compiled into the loop
    NATIVE   how = [address of malloc, address of free]; called through these addresses
    CONTROL  how = [counter, address of preallocated objects, their number - 1]; what a loop costs without any allocator

Sizes and indices come from int32 arrays, so that all sides pay the same for them. Loops return a checksum >= 0 that keeps the
compiler from dropping work, or -1 if an allocation failed.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
from numba import njit

from bench import crowds, fills
from bench.crowds import STREAM
from bench.natives import call_alloc, call_free
from bench.waits import LINE, exchange, wait_above
from realalloc.jit import kfree, kmalloc, load_word, store_word
from realalloc.lease.capi import load_at, store_at
from realalloc.mm.atomic import address_of, atomic_store

RING = 4096  # a power of two
GROUP = 32  # objects published at once
BATCH = 1000  # objects swapped at once
TABLE = 4096  # shared slots
HEAD, TAIL = 0, LINE
CONTROL_OBJECTS = 8192  # more than the ring holds, a power of two
CONTROL_SHIFT = 6


def make(alloc, free, store, load, at):
    """Make the loops over one kind of allocator; numba compiles each where it is first called."""

    @njit(nogil=True)
    def pairs(how, size, number, touch):
        """Allocate, write 8 bytes if asked, free."""
        total = 0
        for k in range(number):
            block = alloc(how, size)
            if block == 0:
                return -1
            if touch:
                store(how, block, k)
            total ^= block
            free(how, block)
        return total

    @njit(nogil=True)
    def batches(how, size, order, blocks, repeats):
        """Allocate a batch, free it in the given order."""
        total = 0
        for _ in range(repeats):
            for k in range(len(order)):
                block = alloc(how, size)
                if block == 0:
                    return -1
                store(how, block, k)
                blocks[k] = block
            for k in range(len(order)):
                block = blocks[order[k]]
                total ^= block
                free(how, block)
        return total

    @njit(nogil=True)
    def replace(how, blocks, slots, sizes, begin, end):
        """Free what a slot holds and fill it anew, for every entry of the stream."""
        total = 0
        for k in range(begin, end):
            slot = slots[k]
            if blocks[slot] != 0:
                free(how, blocks[slot])
            block = alloc(how, sizes[k])
            if block == 0:
                return -1
            store(how, block, k)
            blocks[slot] = block
            total ^= block
        return total

    @njit(nogil=True)
    def replay(how, blocks, slots, sizes, begin, end):
        """Allocate into a slot, or free it where the size is negative."""
        total = 0
        for k in range(begin, end):
            slot, size = slots[k], sizes[k]
            if size < 0:
                free(how, blocks[slot])
                blocks[slot] = 0
                continue
            block = alloc(how, size)
            if block == 0:
                return -1
            store(how, block, k)
            blocks[slot] = block
            total ^= block
        return total

    @njit(nogil=True)
    def drain(how, blocks):
        """Free what is left."""
        for k in range(len(blocks)):
            if blocks[k] != 0:
                free(how, blocks[k])
                blocks[k] = 0
        return 0

    @njit(nogil=True)
    def produce(how, sizes, ring, marks, number):
        """Allocate and write; hand over through the ring. A failure is handed over as 0, as the other side waits."""
        total = 0
        failed = False
        for k in range(number):
            if k % GROUP == 0:
                wait_above(marks, TAIL, k + GROUP - RING)
            block = alloc(how, sizes[k & (STREAM - 1)])
            if block != 0:
                store(how, block, k)
            failed |= block == 0
            ring[k & (RING - 1)] = block
            total ^= block
            if k % GROUP == GROUP - 1:
                atomic_store(marks, HEAD, k + 1)
        return -1 if failed else total

    @njit(nogil=True)
    def consume(how, ring, marks, number):
        """Read and free what comes through the ring."""
        total = 0
        for k in range(number):
            if k % GROUP == 0:
                wait_above(marks, HEAD, k + GROUP)
            block = ring[k & (RING - 1)]
            if block != 0:
                total ^= load(how, block)
                free(how, block)
            if k % GROUP == GROUP - 1:
                atomic_store(marks, TAIL, k + 1)
        return total

    @njit(nogil=True)
    def swap(how, me, sizes, buffers, marks, rounds):
        """Fill a batch, show it, free the other thread's. Two buffers each: who shows round r + 1 has freed round r."""
        total = 0
        failed = False
        for round_ in range(rounds):
            mine = (2 * me + round_ % 2) * BATCH
            for k in range(BATCH):
                block = alloc(how, sizes[k])
                if block != 0:
                    store(how, block, k)
                failed |= block == 0
                buffers[mine + k] = block
            atomic_store(marks, LINE * me, round_ + 1)
            wait_above(marks, LINE * (1 - me), round_ + 1)
            other = (2 * (1 - me) + round_ % 2) * BATCH
            for k in range(BATCH):
                block = buffers[other + k]
                if block != 0:
                    total ^= load(how, block)
                    free(how, block)
        return -1 if failed else total

    @njit(nogil=True)
    def share(how, table, slots, sizes, number):
        """Put a fresh object into a random slot that both threads use, free what was there."""
        total = 0
        for k in range(number):
            block = alloc(how, sizes[k])
            if block == 0:
                return -1
            store(how, block, k)
            old = exchange(table, slots[k], block)
            if old != 0:
                total ^= load(how, old)
                free(how, old)
        return total

    return SimpleNamespace(
        pairs=pairs,
        batches=batches,
        replace=replace,
        replay=replay,
        drain=drain,
        produce=produce,
        consume=consume,
        swap=swap,
        share=share,
        **fills.make(alloc, free, at),
        **crowds.make(alloc, free, at),
    )


@njit(forceinline=True)
def _store_word(words, offset, value):
    store_word(words, offset, value)


@njit(forceinline=True)
def _load_word(words, offset):
    return load_word(words, offset)


@njit(forceinline=True)
def _native_alloc(how, nbytes):
    return call_alloc(how[0], nbytes)


@njit(forceinline=True)
def _native_free(how, block):
    return call_free(how[1], block)


@njit(forceinline=True)
def _store_address(_how, address, value):
    store_at(address, value)


@njit(forceinline=True)
def _load_address(_how, address):
    return load_at(address)


@njit(forceinline=True)
def _at_offset(words, block):
    return address_of(words) + block


@njit(forceinline=True)
def _at_address(_how, block):
    return block


@njit(forceinline=True)
def _next_object(how, _nbytes):
    how[0] += 1
    return how[1] + ((how[0] & how[2]) << CONTROL_SHIFT)


@njit(forceinline=True)
def _keep(_how, _block):
    return 0


OURS = make(kmalloc, kfree, _store_word, _load_word, _at_offset)
NATIVE = make(_native_alloc, _native_free, _store_address, _load_address, _at_address)
CONTROL = make(_next_object, _keep, _store_address, _load_address, _at_address)


@functools.cache
def _objects(_thread):
    return np.zeros(CONTROL_OBJECTS << CONTROL_SHIFT, np.uint8)


def control_how(thread: int = 0, objects: int = CONTROL_OBJECTS) -> np.ndarray:
    """Make what CONTROL needs; threads that allocate side by side have objects of their own."""
    return np.array([0, _objects(thread).ctypes.data, objects - 1], np.int64)
