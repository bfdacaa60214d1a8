"""burst: requests arrive by a schedule, not when the allocator is ready (open loop): runs of them at once, then a pause.

A request allocates, writes 8 bytes and frees the oldest object. Its response time counts from when it was due, so that one
slow allocation is charged to all that waited behind it. ns is the mean response time; latencies have the row ``response``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from realalloc.lab import streams
from realalloc.lab.clock import ns_per_tick
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope
from realalloc.mm.jit import JIT

NAME = "burst"
BURST: Final = 32  # requests on average, geometrically distributed
GAP_NS: Final = 250 if JIT else 100_000  # of one request after another on average
DEPTH: Final = 4096  # live objects
SETS = {"16..4096": (16, 4096), "4K..64K": (4096, 64 << 10)}


def cases(scope: Scope) -> Iterator[Case]:
    """Give small objects, and blocks of pages."""
    number = scope.count(200_000)
    for name, (low, high) in SETS.items():
        make = functools.partial(
            _turn,
            due_ns=streams.bursts(number, BURST, GAP_NS, scope.seed),
            sizes=streams.log_uniform(low, high, number, scope.seed + 1),
            depth=scope.count(DEPTH, 64),
        )
        parameters = {"mean_gap_ns": GAP_NS, "mean_burst": BURST, "live": DEPTH, "sizes": name, "seed": scope.seed}
        yield Case(NAME, name, number, make, parameters, operation="response", harness=False)


def _turn(p: Peer, *, due_ns: Any, sizes: Any, depth: int) -> Turn:
    due = (due_ns / ns_per_tick()).astype(np.int64)
    blocks, spent, times = np.zeros(depth, np.int64), np.zeros(1, np.int64), p.recorder()
    check(p.loops.serve(p.how(), times, due[:0], sizes, blocks, spent))  # compiles
    return Turn(
        lambda _: check(p.loops.serve(p.how(), times, due, sizes, blocks, spent)),
        close=lambda: p.loops.drain(p.how(), blocks),
        cost_ns=lambda: float(spent[0]) * ns_per_tick() / len(due),
    )
