"""Loops of buffers that are touched by the page, and of requests that arrive by a schedule; made as those of ``basic`` are."""

from __future__ import annotations

from typing import Any

from numba import njit

from realalloc.lab.clock import cycles
from realalloc.lab.loops.basic import FAILED
from realalloc.lab.recorder import RESPONSE, note
from realalloc.lease.capi import store_at


def make(f: Any) -> dict[str, Any]:
    """Make the loops over one kind of allocator."""
    alloc, free, store, at = f.alloc, f.free, f.store, f.at

    @njit(nogil=True)
    def fifo(how: Any, blocks: Any, size: int, begin: int, end: int, stride: int) -> int:
        """Replace the oldest buffer, and write a word every ``stride`` bytes of the new one; 0: nothing but the first."""
        total = 0
        for k in range(begin, end):
            slot = k % len(blocks)
            if blocks[slot] != 0:
                free(how, blocks[slot])
            block = alloc(how, size)
            if block == 0:
                blocks[slot] = 0
                return FAILED
            if stride > 0:
                address = at(how, block)
                for k_byte in range(0, size, stride):
                    store_at(address + k_byte, k)
            store(how, block, k)
            blocks[slot] = block
            total += size
        return total

    @njit(nogil=True)
    def serve(how: Any, recorder: Any, due: Any, sizes: Any, blocks: Any, spent: Any) -> int:
        """Allocate when a request is due, or later if the one before is late; free the oldest. Its time counts from when it
        was due: who is late pays for everybody who waits (coordinated omission is not omitted).
        """
        total, ticks = 0, 0
        start = cycles()
        for k in range(len(due)):
            slot = k % len(blocks)
            wanted = start + due[k]
            now = cycles()
            while now < wanted:
                now = cycles()
            if blocks[slot] != 0:
                free(how, blocks[slot])
            block = alloc(how, sizes[k])
            if block == 0:
                blocks[slot] = 0
                return FAILED
            store(how, block, k)
            blocks[slot] = block
            took = cycles() - wanted
            note(recorder, RESPONSE, took)
            ticks += took
            total += int(sizes[k])
        spent[0] = ticks
        return total

    return {"fifo": fifo, "serve": serve}
