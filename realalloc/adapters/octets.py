"""Bytes-like arguments, whatever their shape and format, as one flat run of bytes."""

from __future__ import annotations

from typing import Any


def as_octets(data: Any) -> memoryview:
    """Return the bytes of ``data``, not copied, to be released by the caller; TypeError unless they are C-contiguous."""
    with memoryview(data) as shaped:
        return shaped.cast("B") if shaped.nbytes else memoryview(b"")  # cast refuses a shape with a 0 in it
