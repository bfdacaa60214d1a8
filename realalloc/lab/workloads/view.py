"""view: as Python sees it: take a writable buffer of some size, and drop it; nothing but the call, the object and its end."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from realalloc.lab.measure import Case, Turn
from realalloc.lab.pythons import PythonPeer
from realalloc.lab.results import PYTHON
from realalloc.lab.workloads.scope import Scope, size_name

NAME = "view"
SIZES: Final = {64: 20_000, 4096: 10_000, 64 << 10: 5000, 1 << 20: 1000}  # and operations in a round


def cases(scope: Scope) -> Iterator[Case]:
    """Give the sizes."""
    for nbytes, number in SIZES.items():
        yield Case(
            NAME,
            size_name(nbytes),
            scope.count(number, 20),
            functools.partial(_turn, nbytes=nbytes),
            {"size_bytes": nbytes},
            operation="take + drop",
            view=PYTHON,
            size_bytes=nbytes,
        )


def _turn(p: PythonPeer, *, nbytes: int) -> Turn:
    names, close = p.opened(nbytes, 1)
    return Turn(p.loop(names), close=close)
