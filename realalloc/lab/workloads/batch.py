"""batch: allocate a batch of one size, free it in some order: LIFO, FIFO, shuffled, as glibc's simple benchmark."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from realalloc.lab import streams
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "batch"
OPERATIONS = 300_000
COUNTS = (100, 1000, 100_000)
KINDS = {"LIFO": 64, "FIFO": 64, "shuffled": 64}
GLIBC_COUNTS = (25, 400)  # of 16 bytes: half of them in order, then the rest backwards


def cases(scope: Scope) -> Iterator[Case]:
    """Give orders and numbers."""
    every = [(kind, count, size) for kind, size in KINDS.items() for count in COUNTS]
    every += [("glibc-simple", count, 16) for count in GLIBC_COUNTS]
    for kind, count, size in every:
        objects = scope.count(count, 25)
        repeats = max(scope.count(OPERATIONS) // objects, 1)
        yield Case(
            NAME,
            f"{kind} {count} x {size}",
            repeats * objects,
            functools.partial(_turn, size=size, kind=kind, objects=objects, repeats=repeats, seed=scope.seed),
            {"order": kind, "objects": objects, "size_bytes": size},
        )


def _turn(p: Peer, *, size: int, kind: str, objects: int, repeats: int, seed: int) -> Turn:
    order, blocks = streams.order(kind, objects, seed), np.zeros(objects, np.int64)
    return Turn(lambda _: check(p.loops.batches(p.how(), size, order, blocks, repeats)))
