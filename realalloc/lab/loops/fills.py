"""Jitted loops whose objects are written, and read, from end to end; made as those of ``basic`` are.

``at(how, block)`` is the address of a block, so that the writing is the same machine code for everybody. Sums of what was read
are returned: they have to be the same for all.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from realalloc.lab.loops.waits import bump_at, fill, settled, total_of
from realalloc.lease.capi import load_at, store_at


def make(f: Any) -> dict[str, Any]:
    """Make the loops over one kind of allocator."""
    alloc, free, at = f.alloc, f.free, f.at

    @njit(nogil=True)
    def toggle(how: Any, blocks: Any, held: Any, slots: Any, sizes: Any, begin: int, end: int) -> int:
        """Read and free what a slot holds; where it is empty, fill it with an object that is all written."""
        total = 0
        for k in range(begin, end):
            slot, size = slots[k], int(sizes[k])
            if blocks[slot] != 0:
                total += total_of(at(how, blocks[slot]), held[slot])
                free(how, blocks[slot])
                blocks[slot] = 0
                continue
            block = alloc(how, size)
            if block == 0:
                return -1
            fill(at(how, block), size, k + 1)
            blocks[slot] = block
            held[slot] = size
        return total

    @njit(nogil=True)
    def zero(how: Any, blocks: Any, held: Any, slots: Any, sizes: Any, begin: int, end: int) -> int:
        """Replace what a slot holds by an object that is all zeroed, but for its number at both ends."""
        total = 0
        for k in range(begin, end):
            slot, size = slots[k], int(sizes[k])
            if blocks[slot] != 0:
                old = at(how, blocks[slot])
                total += load_at(old) + load_at(old + int(held[slot]) - 8)
                free(how, blocks[slot])
            block = alloc(how, size)
            if block == 0:
                blocks[slot] = 0  # it was freed
                return -1
            fill(at(how, block), size, 0)
            store_at(at(how, block), k)
            store_at(at(how, block) + size - 8, k)
            blocks[slot] = block
            held[slot] = size
            total += size
        return total

    @njit(nogil=True)
    def replay_full(how: Any, blocks: Any, slots: Any, sizes: Any, begin: int, end: int) -> int:
        """Allocate into a slot and write all of it, or free it where the size is negative."""
        for k in range(begin, end):
            slot, size = slots[k], int(sizes[k])
            if size < 0:
                free(how, blocks[slot])
                blocks[slot] = 0
                continue
            block = alloc(how, size)
            if block == 0:
                return -1
            fill(at(how, block), size, k)
            blocks[slot] = block
        return 0

    @njit(nogil=True)
    def scratch(how: Any, gift: int, repeats: int, writes: int) -> int:
        """Free what another thread allocated; then write to small objects of one's own, again and again."""
        if gift != 0:
            free(how, gift)
        total = 0
        for _ in range(repeats):
            block = alloc(how, 8)
            if block == 0:
                return -1
            address = settled(at(how, block))
            store_at(address, 0)
            for _ in range(writes):
                bump_at(address)
            total += load_at(address)
            free(how, block)
        return total

    return {"toggle": toggle, "zero": zero, "replay_full": replay_full, "scratch": scratch}
