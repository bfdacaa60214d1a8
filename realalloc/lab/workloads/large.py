"""large: twenty buffers of 5 to 25 MB are replaced and zeroed (mimalloc's malloc-large): page faults decide."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.measure import Case, Turn, check, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "large"
BUFFERS = 20


def cases(scope: Scope) -> Iterator[Case]:
    """Give one row."""
    number, buffers = scope.count(40, 2), scope.count(BUFFERS, 4)
    slots = streams.slots(buffers, buffers + number, scope.seed)
    sizes = streams.uniform(5 << 17, 25 << 17, buffers + number, scope.seed) * 8
    make = functools.partial(_turn, buffers=buffers, slots=slots, sizes=sizes)
    yield whole_rounds(
        NAME,
        f"{BUFFERS} x 5M..25M, zeroed",
        number,
        make,
        {"buffers": buffers, "sizes": "5..25 MiB", "seed": scope.seed},
    )


def _turn(p: Peer, *, buffers: int, slots: Any, sizes: Any) -> Turn:
    blocks, held = np.zeros(buffers, np.int64), np.zeros(buffers, np.int32)
    every = np.arange(buffers, dtype=np.int32)

    def build() -> None:
        check(p.loops.zero(p.how(), blocks, held, every, sizes, 0, buffers))

    return Turn(
        lambda n: check(p.loops.zero(p.how(), blocks, held, slots, sizes, buffers, buffers + n)),
        build,
        lambda: p.loops.drain(p.how(), blocks),
    )
