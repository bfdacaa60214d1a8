"""Loops of one thread or two that hand objects over: pairs, batches, replacement, replay, ring, swap, shared slots.

``make(f)`` closes every loop over the functions of one kind of allocator (``kinds.Functions``); numba compiles each where it
is first called. The first argument of all, ``how``, is what these functions need. Sizes and indices come from int32 arrays, so
that all sides pay the same for them (``int``: without jit a sum of int32 would stay one); the first word of every object is
written.
Guarantees: a loop returns a sum of what it was given, the same for everybody who did the same work, or FAILED as soon as an
allocation fails. ``how`` is passed through and never looked at.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from realalloc.lab.loops.crowds import STREAM
from realalloc.lab.loops.waits import LINE, exchange, wait_above
from realalloc.mm.atomic import atomic_store

FAILED = -1
RING = 4096  # a power of two
GROUP = 32  # objects published at once
BATCH = 1000  # objects swapped at once
TABLE = 4096  # shared slots
HEAD, TAIL = 0, LINE


def make(f: Any) -> dict[str, Any]:
    """Make the loops over one kind of allocator."""
    alloc, free, store, load = f.alloc, f.free, f.store, f.load

    @njit(nogil=True)
    def pairs(how: Any, size: int, number: int, touch: bool) -> int:
        """Allocate, write 8 bytes if asked, free."""
        total = 0
        for k in range(number):
            block = alloc(how, size)
            if block == 0:
                return FAILED
            if touch:
                store(how, block, k)
            total += size
            free(how, block)
        return total

    @njit(nogil=True)
    def batches(how: Any, size: int, order: Any, blocks: Any, repeats: int) -> int:
        """Allocate a batch, free it in the given order."""
        total = 0
        for _ in range(repeats):
            for k in range(len(order)):
                block = alloc(how, size)
                if block == 0:
                    return FAILED
                store(how, block, k)
                blocks[k] = block
                total += size
            for k in range(len(order)):
                free(how, blocks[order[k]])
        return total

    @njit(nogil=True)
    def replace(how: Any, blocks: Any, slots: Any, sizes: Any, begin: int, end: int) -> int:
        """Free what a slot holds and fill it anew, for every entry of the stream."""
        total = 0
        for k in range(begin, end):
            slot = slots[k]
            if blocks[slot] != 0:
                free(how, blocks[slot])
            block = alloc(how, sizes[k])
            if block == 0:
                blocks[slot] = 0  # it was freed
                return FAILED
            store(how, block, k)
            blocks[slot] = block
            total += int(sizes[k])
        return total

    @njit(nogil=True)
    def replay(how: Any, blocks: Any, slots: Any, sizes: Any, begin: int, end: int) -> int:
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
                return FAILED
            store(how, block, k)
            blocks[slot] = block
            total += int(sizes[k])
        return total

    @njit(nogil=True)
    def drain(how: Any, blocks: Any) -> int:
        """Free what is left; return the sum of what it held."""
        total = 0
        for k in range(len(blocks)):
            if blocks[k] != 0:
                total += load(how, blocks[k])
                free(how, blocks[k])
                blocks[k] = 0
        return total

    @njit(nogil=True)
    def produce(how: Any, sizes: Any, ring: Any, marks: Any, number: int) -> int:
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
            total += k
            if k % GROUP == GROUP - 1:
                atomic_store(marks, HEAD, k + 1)
        return FAILED if failed else total

    @njit(nogil=True)
    def consume(how: Any, ring: Any, marks: Any, number: int) -> int:
        """Read and free what comes through the ring."""
        total = 0
        for k in range(number):
            if k % GROUP == 0:
                wait_above(marks, HEAD, k + GROUP)
            block = ring[k & (RING - 1)]
            if block != 0:
                total += load(how, block)
                free(how, block)
            if k % GROUP == GROUP - 1:
                atomic_store(marks, TAIL, k + 1)
        return total

    @njit(nogil=True)
    def swap(how: Any, me: int, sizes: Any, buffers: Any, marks: Any, rounds: int) -> int:
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
                    total += load(how, block)
                    free(how, block)
        return FAILED if failed else total

    @njit(nogil=True)
    def share(how: Any, table: Any, slots: Any, sizes: Any, number: int) -> int:
        """Put a fresh object into a random slot that both threads use, free what was there."""
        total = 0
        for k in range(number):
            block = alloc(how, sizes[k])
            if block == 0:
                return FAILED
            store(how, block, k)
            old = exchange(table, slots[k], block)
            if old != 0:
                total += load(how, old)
                free(how, old)
        return number if total >= 0 else FAILED  # what was read is used, or it would not be read

    return {
        "pairs": pairs,
        "batches": batches,
        "replace": replace,
        "replay": replay,
        "drain": drain,
        "produce": produce,
        "consume": consume,
        "swap": swap,
        "share": share,
    }
