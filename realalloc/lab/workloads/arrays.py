"""arrays: as Python sees it: the oldest of several large buffers is replaced, and the first byte of each page written."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from realalloc.lab.measure import Case, Turn, whole_rounds
from realalloc.lab.pythons import PythonPeer, compile_loop
from realalloc.lab.results import PYTHON
from realalloc.lab.workloads.scope import Scope, size_name

NAME = "arrays"
PAGE_BYTES: Final = 4096
SETS: Final = {(64 << 10, 16): 2000, (1 << 20, 16): 500, (16 << 20, 16): 32}  # (size, live): operations in a round
LOOP: Final = """
for k in range(n):
    x = {take}
    b = {view}
    b[::4096] = ones
    total += len(b)
    b = None
    append(x)
    x = popleft()
    {give}
"""


def cases(scope: Scope) -> Iterator[Case]:
    """Give the sizes."""
    for (nbytes, live), number in SETS.items():
        parameters = {"size_bytes": nbytes, "live": live}
        yield whole_rounds(
            NAME,
            f"{live} x {size_name(nbytes)}, touched",
            scope.count(number, 4),
            functools.partial(_turn, nbytes=nbytes, live=live),
            parameters,
            operation="take + touch + drop",
            view=PYTHON,
            size_bytes=nbytes,
        )


def _turn(p: PythonPeer, *, nbytes: int, live: int) -> Turn:
    names, close = p.opened(nbytes, live)
    held: deque[Any] = deque()
    ones = b"\1" * (nbytes // PAGE_BYTES)
    given = {**names, "ones": ones, "append": held.append, "popleft": held.popleft}
    fill = compile_loop("for _ in range(n):\n    append({take})", p.source, given)
    empty = compile_loop("for _ in range(n):\n    x = popleft()\n    {give}", p.source, given)
    loop = compile_loop(LOOP, p.source, given)

    def finish() -> None:
        empty(len(held))
        close()

    try:
        fill(live)
        loop(live)
    except BaseException:
        finish()
        raise
    return Turn(loop, close=finish)
