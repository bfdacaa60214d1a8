"""mleak: threads are born, leave one object behind, free one and end (mimalloc's mleak): what a thread costs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, WorkDiffers, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "mleak"
WAVE = 10  # threads that live at once
TABLE = 1000


def cases(scope: Scope) -> Iterator[Case]:
    """Give one row."""
    number = scope.count(500, WAVE) // WAVE * WAVE
    yield whole_rounds(NAME, f"{WAVE} at a time", number, _turn, operation="thread", threads=WAVE)


def _turn(p: Peer) -> Turn:
    table = np.zeros(TABLE, np.int64)

    def run(number: int) -> int:
        done = 0
        for first in range(0, number, WAVE):
            wave = range(first, first + WAVE)
            done += sum(crowd([functools.partial(p.loops.leak, p.how(k % WAVE), table, k % TABLE) for k in wave]))
        if done != number:
            raise WorkDiffers("mleak: threads were lost")
        return done

    run(WAVE)
    return Turn(run, close=lambda: p.loops.drain(p.how(), table))
