"""What a block is filled with: a word for each of its words, made of who the block is.

    base        = mix(offset, bytes asked for, sequence number), 62 bits
    word k      = base + k * STEP

Guarantees: two blocks, two lives of one block, and two places of one block have different words, but for chance (2^-60 or so);
a word of another block, of an earlier life, or one that was moved is found. Nothing overflows: numba lets LLVM assume so, and
plain Python does not wrap, so the same lines are right in both.
May not: know an allocator. ``block`` is an int64 array over the memory, from a raw offset or from a view.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from realalloc.lab.stress.compiled import compiled

STEP: Final = 0x1B873593B  # odd, 33 bits: k * STEP fits beside the base for blocks of up to 2 GiB
LOW: Final = (1 << 31) - 1
FIRST, SECOND = 0x6C8E9CF5, 0x5BD1E995  # odd, 31 bits: a product of two such numbers is below 2^62


@compiled
def stir(state: int, part: int, factor: int) -> int:
    """Mix 31 bits into 31 bits."""
    product = ((state ^ part) & LOW) * factor
    return (product ^ product >> 31) & LOW


@compiled
def base_of(offset: int, nbytes: int, sequence: int) -> int:
    """Name a block: a number of 62 bits."""
    high, low = 1, 2
    for part in (offset >> 3, offset >> 34, nbytes, sequence, sequence >> 31):
        high = stir(high, part, FIRST)
        low = stir(low, part, SECOND)
    return high << 31 | low


@compiled
def word_of(base: int, k: int) -> int:
    """Return what word k holds."""
    return base + k * STEP


@compiled
def fill(block: Any, base: int) -> None:
    """Write every word."""
    for k in range(len(block)):
        block[k] = word_of(base, k)


@compiled
def is_whole(block: Any, base: int, words: int) -> bool:
    """Read the first words of a block, every one of them, and tell whether they are what was written."""
    difference = 0
    for k in range(words):
        difference |= int(block[k]) ^ word_of(base, k)
    return difference == 0


@compiled
def first_wrong(block: Any, base: int, words: int) -> int:
    """Return the index of the first word that is not what was written, -1 if there is none."""
    for k in range(words):
        if int(block[k]) != word_of(base, k):
            return k
    return -1


def tail_of(base: int, words: int, nbytes: int) -> bytes:
    """Return the bytes behind the last whole word."""
    return int(word_of(base, words)).to_bytes(8, "little")[: nbytes - 8 * words]


def as_words(view: Any) -> Any:
    """Return the whole words of a buffer as an int64 array: an export of the buffer, which must go before it is freed."""
    return np.frombuffer(view, np.int64, len(view) >> 3)
