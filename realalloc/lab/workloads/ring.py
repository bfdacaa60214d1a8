"""ring: fill a ring of slots again and again, but for a window that survives and moves on: as sh6bench and sh8bench.

From nothing to nothing, all of it on the clock.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from realalloc.lab import streams
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "ring"
SETS = {"as sh6bench": (10_000, 15), "as sh8bench": (100_000, 3)}


def cases(scope: Scope) -> Iterator[Case]:
    """Give both."""
    for name, (places, passes) in SETS.items():
        sizes = streams.sh6_sizes() if "sh6" in name else streams.sh8_sizes()
        stream = streams.ring(name, sizes, scope.count(places), passes)
        number = len(stream.slots) // 2
        parameters = {"objects": stream.places, "passes": passes}
        yield Case(NAME, name, number, functools.partial(_turn, stream=stream), parameters)


def _turn(p: Peer, *, stream: streams.Operations) -> Turn:
    blocks = np.zeros(stream.places, np.int64)
    return Turn(lambda _: check(p.loops.replay(p.how(), blocks, stream.slots, stream.sizes, 0, len(stream.slots))))
