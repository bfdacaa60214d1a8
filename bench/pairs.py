"""kmalloc and kfree inside one jitted loop, against glibc's malloc and free called from the same loop."""

from __future__ import annotations

import numpy as np
from numba import njit, types

import realalloc as ra
from bench.measure import Result, interleave
from realalloc.jit import kfree, kmalloc
from realalloc.lease.capi import store_at

malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))


@njit(nogil=True)
def ours_pairs(words, size, number):
    """Allocate, write 8 bytes, free."""
    total = 0
    for k in range(number):
        block = kmalloc(words, size)
        words[block >> 3] = k
        total += block
        kfree(words, block)
    return total


@njit(nogil=True)
def glibc_pairs(size, number):
    """Allocate, write 8 bytes, free."""
    total = 0
    for k in range(number):
        block = malloc(size)
        store_at(block, k)
        total += block
        free(block)
    return total


@njit(nogil=True)
def ours_batches(words, size, number, blocks):
    """Allocate a batch, then free it in order."""
    for _ in range(number // len(blocks)):
        for k in range(len(blocks)):
            blocks[k] = kmalloc(words, size)
            words[blocks[k] >> 3] = k
        for k in range(len(blocks)):
            kfree(words, blocks[k])


@njit(nogil=True)
def glibc_batches(size, number, blocks):
    """Allocate a batch, then free it in order."""
    for _ in range(number // len(blocks)):
        for k in range(len(blocks)):
            blocks[k] = malloc(size)
            store_at(blocks[k], k)
        for k in range(len(blocks)):
            free(blocks[k])


def pairs(*, smoke: bool) -> list[Result]:
    """Pairs and batches of 100, of 64 bytes."""
    number, rounds = (2000, 3) if smoke else (500_000, 21)
    blocks = np.zeros(100, np.int64)
    with ra.Arena("64MiB") as arena:
        words = arena.words
        pair = interleave(
            {
                "kmalloc + kfree": lambda n: ours_pairs(words, 64, n),
                "glibc malloc + free": lambda n: glibc_pairs(64, n),
            },
            number,
            rounds,
        )
        batch = interleave(
            {
                "kmalloc + kfree": lambda n: ours_batches(words, 64, n, blocks),
                "glibc malloc + free": lambda n: glibc_batches(64, n, blocks),
            },
            number,
            rounds,
        )
        arena.validate()
    target = {"glibc malloc + free": 2.0}
    return [
        Result("64 B pair in a jitted loop", "ns", pair, "kmalloc + kfree", target),
        Result("64 B, batches of 100, in a jitted loop", "ns", batch, "kmalloc + kfree", target),
    ]
