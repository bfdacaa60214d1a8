"""pair: allocate, write 8 bytes, free; one size. Above 8 KiB nothing is written: touching pages has workloads of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, size_name

NAME = "pair"
TOUCHED = (16, 64, 256, 1024, 4096, 8192)
UNTOUCHED = (32 << 10, 256 << 10, 1 << 20)


def cases(scope: Scope) -> Iterator[Case]:
    """Give the sizes."""
    for nbytes in (*TOUCHED, *UNTOUCHED):
        touch = nbytes in TOUCHED
        yield Case(
            NAME,
            size_name(nbytes),
            scope.count(500_000 if touch else 200_000),
            functools.partial(_turn, nbytes=nbytes, touch=touch),
            {"size_bytes": nbytes, "touched": touch},
            size_bytes=nbytes,
            content=touch,
        )


def _turn(p: Peer, *, nbytes: int, touch: bool) -> Turn:
    return Turn(lambda n: check(p.loops.pairs(p.how(), nbytes, n, touch)))
