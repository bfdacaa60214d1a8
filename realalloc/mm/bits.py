"""Bit arithmetic on signed 64-bit words, one LLVM instruction each, with a plain Python twin.

Guarantees: every result is an int64 that NumPy can store; bit 63 is a bit like any other.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from realalloc.mm.jit import kernel, native

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _emit_ctz(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))


def _emit_clz(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))


def _emit_popcount(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.ctpop(args[0])


def _emit_bit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.shl(ir.Constant(ir.IntType(64), 1), args[0])


def _emit_mask(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    one = ir.Constant(ir.IntType(64), 1)
    full = ir.Constant(ir.IntType(64), -1)
    wide = builder.icmp_signed(">=", args[0], ir.Constant(ir.IntType(64), 64))
    return builder.select(wide, full, builder.sub(builder.shl(one, args[0]), one))


def _emit_is_multiple(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    value, magic, last = args
    return builder.zext(builder.icmp_unsigned("<=", builder.mul(value, magic), last), ir.IntType(64))


@native(_emit_is_multiple)
def is_multiple(value: int, magic: int, last: int) -> int:
    """Return 1 if ``value`` (0..2**32) is one of the multiples 0, d, 2d .. nd of a divisor d (3..2**31), nd < 2**32.

    ``magic`` m is 2**64 // d + 1, so dm = 2**64 + e, with e = d - 2**64 % d in 1..d. Then kdm is ke modulo 2**64, and
    (kd + r)m, 0 < r < d, is ke + rm, which is not below m and does not wrap, as (k + 1)e < 2**33 <= m. So one comparison, with
    ``last`` = ne, tells both. (Lemire, Kaser, Kurz: Faster remainder by direct computation, with the range in it.)
    """
    return 1 if int(value) * int(magic) & _MASK <= int(last) & _MASK else 0


@kernel
def magic_of(divisor: int) -> int:
    """Return 2**64 // divisor + 1, of a divisor from 3 on."""
    quarter = 1 << 62
    return 4 * (quarter // divisor) + 4 * (quarter % divisor) // divisor + 1


@kernel
def product_of_one(divisor: int) -> int:
    """Return what :func:`is_multiple` gets for the divisor itself: its product with :func:`magic_of`, modulo 2**64."""
    return divisor - 4 * ((1 << 62) % divisor) % divisor


@native(_emit_ctz)
def ctz(value: int) -> int:
    """Count trailing zeros; 64 for 0."""
    bits = int(value) & _MASK
    return (bits & -bits).bit_length() - 1 if bits else 64


@native(_emit_clz)
def clz(value: int) -> int:
    """Count leading zeros; 64 for 0."""
    return 64 - (int(value) & _MASK).bit_length()


@native(_emit_popcount)
def popcount(value: int) -> int:
    """Count ones."""
    return (int(value) & _MASK).bit_count()


@native(_emit_bit)
def bit(index: int) -> int:
    """Return the word with only bit ``index`` (0..63) set."""
    return _signed(1 << int(index))


@native(_emit_mask)
def low_mask(count: int) -> int:
    """Return the word with the lowest ``count`` (0..64) bits set."""
    return _signed((1 << int(count)) - 1)


@kernel
def order_of_pages(pages: int) -> int:
    """Return the smallest order with ``1 << order >= pages`` (the kernel's get_order, of pages)."""
    return 64 - clz(pages - 1)
