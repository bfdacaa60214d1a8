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


def _emit_divides(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    value, magic = args
    return builder.zext(builder.icmp_unsigned("<", builder.mul(value, magic), magic), ir.IntType(64))


@native(_emit_divides)
def divides(value: int, magic: int) -> int:
    """Return 1 if a divisor > 1 divides ``value`` (0..2**32), by one multiplication; 0 for magic 0.

    ``magic`` is 2**64 / divisor, rounded up.
    Lemire, Kaser, Kurz: Faster remainder by direct computation.
    """
    return 1 if int(value) * int(magic) & _MASK < int(magic) & _MASK else 0


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
