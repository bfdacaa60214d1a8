"""pool: as Python sees it: take an element of 4 KiB of a pool that has some, give it back; and a fresh buffer each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from realalloc.lab.measure import Case, Turn
from realalloc.lab.pythons import PythonPeer
from realalloc.lab.results import PYTHON
from realalloc.lab.workloads.scope import Scope

NAME = "pool"
SIZE: Final = 4096
ELEMENTS: Final = 64


def cases(scope: Scope) -> Iterator[Case]:
    """Give one row."""
    parameters = {"size_bytes": SIZE, "elements": ELEMENTS}
    yield Case(NAME, "4 KiB", scope.count(50_000, 20), _turn, parameters, operation="take + give back", view=PYTHON)


def _turn(p: PythonPeer) -> Turn:
    names, close = p.opened(SIZE, ELEMENTS)
    return Turn(p.loop({"size": SIZE, **names}), close=close)
