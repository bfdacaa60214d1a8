"""xmalloc: one thread allocates batches, the other frees them (Lever and Boreham); up to 100 batches wait between them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.loops.crowds import COUNT, DEPTH, HAND, STREAM, WAITING
from realalloc.lab.measure import Case, Turn, WorkDiffers, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "xmalloc"


def cases(scope: Scope) -> Iterator[Case]:
    """Give one size, and many; nothing where there is one thread."""
    if scope.threads < 2:
        return
    number = scope.count(100 * HAND, HAND) // HAND * HAND
    for name, sizes in (("64", np.full(STREAM, 64, np.int32)), ("mix", streams.xmalloc(STREAM, scope.seed))):
        make = functools.partial(_turn, scope=scope, sizes=sizes)
        parameters = {"batch": HAND, "depth": DEPTH, "seed": scope.seed}
        yield whole_rounds(NAME, name, number, make, parameters, threads=2)


def _turn(p: Peer, *, scope: Scope, sizes: Any) -> Turn:
    stack = np.zeros(WAITING + DEPTH, np.int64)

    def run(number: int) -> int:
        batches = number // HAND
        give = functools.partial(p.loops.hand_out, p.how(0), sizes, stack, batches)
        _, found = scope.workers.run(give, lambda: p.loops.take_in(p.how(1), stack, batches))
        if found != batches * HAND * (batches * HAND - 1) // 2 or stack[COUNT]:
            raise WorkDiffers("xmalloc: objects were lost")
        return found

    run(0)  # compiles
    return Turn(run)
