"""A high dynamic range histogram in an int64 array: jitted to count, numpy to read.

Layout, after Gil Tene's HdrHistogram: values below 2 * HALF have a bucket each; above, every power of two has HALF buckets, so
that a bucket is never wider than 1 / HALF = 0.8 % of its values. Two significant digits, as ``HdrHistogram(1, n, 2)``.
Guarantees: counting is a handful of instructions without a branch, and never fails: what is negative counts as 0, what is
above the range in the last bucket. Invariant: sum of all buckets = values counted.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from realalloc.mm.bits import clz

HALF_BITS: Final = 7
HALF: Final = 1 << HALF_BITS
MAX_BITS: Final = 44  # of a value: hours, in ticks
BUCKETS: Final = (MAX_BITS - HALF_BITS + 1) * HALF

Counts = npt.NDArray[np.int64]


def make() -> Counts:
    """Return an empty histogram."""
    return np.zeros(BUCKETS, np.int64)


@njit(nogil=True, forceinline=True)
def bucket_of(value: int) -> int:
    """Return the index of a value's bucket."""
    clipped = min(max(value, 0), (1 << MAX_BITS) - 1)
    shift = 63 - clz(clipped | HALF) - HALF_BITS
    return (shift << HALF_BITS) + (clipped >> shift)


@njit(nogil=True, forceinline=True)
def count(histogram: Counts, begin: int, value: int) -> None:
    """Count a value in the histogram that begins at an index."""
    histogram[begin + bucket_of(value)] += 1


def highest(bucket: Any) -> Any:
    """Return the largest value that falls into a bucket; an int or an array of them."""
    shift = np.maximum(np.asarray(bucket) >> HALF_BITS, 1) - 1
    return ((np.asarray(bucket) - (shift << HALF_BITS) + 1) << shift) - 1


def filled(histogram: Counts) -> tuple[Counts, Counts]:
    """Return the buckets that are not empty: their largest values, ascending, and their counts."""
    (where,) = np.nonzero(histogram)
    return highest(where), histogram[where]


@njit(nogil=True)
def _count_all(histogram: Counts, values: Counts) -> None:
    for value in values:
        histogram[bucket_of(value)] += 1


def counted(values: Counts) -> Counts:
    """Return a histogram of an array of values."""
    histogram = make()
    _count_all(histogram, values)
    return histogram
