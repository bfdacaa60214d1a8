"""Bit arithmetic: every instruction agrees with its twin, and both with plain Python, bit 63 included."""

from __future__ import annotations

import random

import numba
import numpy as np
import pytest
from support import JIT

from realalloc.mm.bits import bit, clz, ctz, is_multiple, low_mask, magic_of, order_of_pages, popcount, product_of_one

MASK = (1 << 64) - 1
EDGES = [
    0,
    1,
    2,
    3,
    -1,
    -2,
    (1 << 62),
    (1 << 63) - 1,
    -(1 << 63),
    -(1 << 63) + 1,
    0x5555555555555555,
    1 << 32,
    -(1 << 32),
]
VALUES = EDGES + [1 << k for k in range(63)] + [-(1 << k) for k in range(64)]
VALUES += [random.Random(1).getrandbits(64) - (1 << 63) for _ in range(300)]
VALUES += [random.Random(2).getrandbits(k) for k in range(1, 63)]


@numba.njit
def apply(which, value):
    if which == 0:
        return ctz(value)
    if which == 1:
        return clz(value)
    if which == 2:
        return popcount(value)
    if which == 3:
        return bit(value)
    if which == 4:
        return low_mask(value)
    return order_of_pages(value)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


EXPECTED = [
    lambda value: next((k for k in range(64) if value >> k & 1), 64),
    lambda value: next((k for k in range(64) if (value & MASK) >> (63 - k) & 1), 64),
    lambda value: f"{value & MASK:b}".count("1"),
]


@pytest.mark.parametrize(("which", "twin"), [(0, ctz), (1, clz), (2, popcount)])
def test_counts_of_bits(which: int, twin) -> None:
    for value in VALUES:
        assert apply(which, value) == twin(value) == EXPECTED[which](value), value
        assert twin(np.int64(value)) == twin(value)  # as words hold it


def test_a_single_bit() -> None:
    for k in range(64):
        assert apply(3, k) == bit(k) == signed(1 << k)
        assert np.int64(bit(k)) == bit(k)


def test_a_mask_of_low_bits() -> None:
    for count in range(65):
        assert apply(4, count) == low_mask(count) == signed((1 << count) - 1)
        assert popcount(low_mask(count)) == count


def test_the_order_of_a_number_of_pages() -> None:
    for pages in [*range(1, 3000), *(1 << k for k in range(62)), *((1 << k) + 1 for k in range(1, 62))]:
        order = next(k for k in range(64) if 1 << k >= pages)
        assert apply(5, pages) == order


@numba.njit
def geometry(divisor):
    return magic_of(divisor), product_of_one(divisor)


@numba.njit
def multiples(values, magic, last, out):
    for k in range(len(values)):
        out[k] = is_multiple(values[k], magic, last)
    return 0


@pytest.mark.parametrize(
    "divisor", [3, 7, 8, 9, 16, 24, 96, 192, 1000, 4096, 4104, 8192, 65528, (1 << 31) - 1, 1 << 31]
)
def test_one_multiplication_and_one_comparison_tell_multiples(divisor: int) -> None:
    """Exact for every value up to 2**32: all small ones, and those around multiples; for every last multiple."""
    near = [k * divisor + d for k in (1, 2, 3, (1 << 31) // divisor, (1 << 32) // divisor) for d in (-1, 0, 1)]
    rng = random.Random(divisor)
    values = [*range(40_000 if JIT else 3000), *(v for v in near if 0 <= v <= 1 << 32)]
    values += [rng.randrange((1 << 32) + 1) for _ in range(5000 if JIT else 500)] + [(1 << 32) - 1, 1 << 32]
    out = np.zeros(len(values), np.int64)
    magic, one = map(int, geometry(divisor))
    assert magic == signed((1 << 64) // divisor + 1)
    assert one == signed(magic * divisor) and 1 <= one <= divisor
    for most in {0, 1, min(41, ((1 << 32) - 1) // divisor), ((1 << 32) - 1) // divisor}:
        multiples(np.array(values, np.int64), magic, most * one, out)
        assert out.tolist() == [int(value % divisor == 0 and value <= most * divisor) for value in values]
        for value in (0, 1, divisor - 1, divisor, divisor + 1):
            asked = [np.int64(x) for x in (value, magic, most * one)]
            assert is_multiple(*asked) == (value % divisor == 0 and value <= most * divisor)
