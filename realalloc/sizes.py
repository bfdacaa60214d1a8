"""Arguments, checked once: sizes, counts, orders, alignments, flags, timeouts.

Guarantees: what comes out is a plain ``int`` in range. Floats are never truncated, bools are not sizes; NumPy integers are.
"""

from __future__ import annotations

import operator
import re
from typing import Any, Final

from realalloc.gfp import ALL_FLAGS, GFP_DIRECT_RECLAIM, GFP_NOFAIL

UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000), ("", 1024))
}
MAX_DECAY_S: Final = 365 * 86400
LIMIT: Final = 1 << 63
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def as_int(value: Any, what: str, low: int = 0, high: int = LIMIT - 1) -> int:
    """Return ``value`` as an int in ``[low, high]``; TypeError for bools and non-integers, ValueError out of range."""
    if isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, not bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        bound = f"at least {low}" if number < low else f"at most {high}"
        raise ValueError(f"{what} must be {bound}, not {number}")
    return number


def as_bytes(value: Any, what: str, low: int = 0) -> int:
    """Return a configuration size in bytes: an integer, or text such as ``"1GiB"``, ``"64 MiB"``, ``"1.5k"``."""
    if not isinstance(value, str):
        return as_int(value, what, low)
    match = _SIZE.fullmatch(value)
    unit = match and next((u for u in UNITS if u.upper() == match[2].upper()), None)
    if match is None or unit is None:
        raise ValueError(f"{what}: {value!r} is not a size; write for example '64MiB', '1GiB', '1000kB' or 4096")
    whole = float(match[1]) * UNITS[unit] if "." in match[1] else int(match[1]) * UNITS[unit]
    if whole != int(whole):
        raise ValueError(f"{what}: {value!r} is not a whole number of bytes")
    return as_int(int(whole), what, low)


def as_alignment(value: Any, what: str) -> int:
    """Return a power of two."""
    number = as_int(value, what, 1)
    if number & (number - 1):
        raise ValueError(f"{what} must be a power of two, not {number}")
    return number


def as_gfp(value: Any) -> int:
    """Return flags; ValueError for bits that mean nothing here, and for GFP_NOFAIL of a request that may not wait."""
    number = as_int(value, "gfp")
    if number & ~ALL_FLAGS:
        raise ValueError(f"gfp has unknown bits: {hex(number & ~ALL_FLAGS)}")
    if number & GFP_NOFAIL and not number & GFP_DIRECT_RECLAIM:
        raise ValueError("GFP_NOFAIL waits: it needs GFP_DIRECT_RECLAIM, which GFP_KERNEL has")
    return number


def as_decay_ns(value: Any) -> int:
    """Return a decay time in ns, -1 for None: never. ValueError below 0 or above a year, TypeError for what is no number."""
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"decay must be seconds or None, not {type(value).__name__}")
    if not 0 <= value <= MAX_DECAY_S:
        raise ValueError(f"decay must be 0 to {MAX_DECAY_S} seconds, or None for never, not {value}")
    return int(value * 1e9)


def as_timeout(value: Any) -> float | None:
    """Return seconds >= 0, or None for ever."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(value).__name__}")
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"timeout must be >= 0 seconds, not {value!r}")
    return seconds


def format_bytes(nbytes: int) -> str:
    """Spell a size with a binary unit: ``1.5 MiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
