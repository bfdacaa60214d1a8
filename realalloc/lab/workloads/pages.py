"""pages: page- and array-sized buffers, the oldest of 8 replaced, with a word written to every page, and untouched."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import numpy as np

from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, size_name

NAME = "pages"
LIVE: Final = 8
PAGE_BYTES: Final = 4096
SIZES = {4096: 200_000, 64 << 10: 50_000, 1 << 20: 5000, 16 << 20: 200}  # and operations in a round


def cases(scope: Scope) -> Iterator[Case]:
    """Give the sizes, both ways."""
    for nbytes, number in SIZES.items():
        for touched in (True, False):
            name = f"{size_name(nbytes)}, {'touched' if touched else 'untouched'}"
            make = functools.partial(_turn, nbytes=nbytes, stride=PAGE_BYTES if touched else 0)
            parameters = {"size_bytes": nbytes, "live": LIVE, "touched": touched}
            yield Case(
                NAME,
                name,
                scope.count(number, 2 * LIVE),
                make,
                parameters,
                size_bytes=nbytes if touched else None,
                harness=False,
            )


def _turn(p: Peer, *, nbytes: int, stride: int) -> Turn:
    blocks = np.zeros(LIVE, np.int64)

    def play(number: int) -> int:
        return check(p.loops.fifo(p.how(), blocks, nbytes, 0, number, stride))

    return Turn(play, prepare=lambda: play(LIVE), close=lambda: p.loops.drain(p.how(), blocks))
