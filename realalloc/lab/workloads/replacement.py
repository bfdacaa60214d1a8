"""replacement: replace random objects of a working set: the most predictive single workload; sizes log-uniform, or as glibc's.

Rows of several threads have a working set each: nothing is shared but the allocator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, threads_name

NAME = "replacement"
# Name: places, smallest, largest, replacements in a round.
SETS = {
    "10k x 16..4096": (10_000, 16, 4096, 300_000),
    "100k x 16..1024": (100_000, 16, 1024, 300_000),
    "1k x 4K..256K": (1000, 4096, 256 << 10, 100_000),
}
GLIBC_THREAD = "1024 x 4..32768, as glibc-thread"
PRIVATE = "10k x 16..1024, private"


def cases(scope: Scope) -> Iterator[Case]:
    """Give the working sets."""
    for name, (places, low, high, number) in SETS.items():
        sizes = streams.log_uniform(low, high, scope.count(number), scope.seed)
        yield _case(scope, name, scope.count(places), sizes, 1, f"log-uniform {low}..{high}")
    for threads in scope.crowds():
        sizes = streams.log_uniform(16, 1024, scope.count(300_000), scope.seed)
        name = f"{PRIVATE}, {threads_name(threads)}"
        yield _case(scope, name, scope.count(10_000), sizes, threads, "log-uniform 16..1024")
    for threads in scope.crowds():
        sizes = streams.inverse_square(4, 32768, scope.count(300_000), scope.seed)
        name = f"{GLIBC_THREAD}, {threads_name(threads)}"
        yield _case(scope, name, scope.count(1024), sizes, threads, "1 / size squared, 4..32768")


def _case(scope: Scope, name: str, places: int, sizes: Any, threads: int, drawn: str) -> Case:
    slots = streams.slots(places, len(sizes), scope.seed)
    make = functools.partial(_one, places=places, slots=slots, sizes=sizes)
    if threads > 1:
        make = functools.partial(_several, scope=scope, threads=threads, places=places, slots=slots, sizes=sizes)
    parameters = {"objects": places, "sizes": drawn, "seed": scope.seed}
    return Case(NAME, name, len(sizes), make, parameters, threads=threads, harness=threads == 1)


def _one(p: Peer, *, places: int, slots: Any, sizes: Any, thread: int = 0) -> Turn:
    """Fill a heap now; replace objects of it; free it at the end."""
    blocks = np.zeros(places, np.int64)
    every = np.arange(places, dtype=np.int32)
    check(p.loops.replace(p.how(thread), blocks, every, np.resize(sizes, places), 0, places))
    return Turn(
        lambda n: check(p.loops.replace(p.how(thread), blocks, slots, sizes, 0, n)),
        close=lambda: p.loops.drain(p.how(thread), blocks),
    )


def _several(p: Peer, *, scope: Scope, threads: int, places: int, slots: Any, sizes: Any) -> Turn:
    mine: dict[int, Turn] = {}  # a heap for each thread, filled and freed by it, as glibc's benchmark does

    def fill(thread: int) -> int:
        mine[thread] = _one(p, places=places, slots=slots, sizes=sizes, thread=thread)
        return 0

    def drain(thread: int) -> int:
        if thread in mine:
            mine[thread].close()
        return 0

    def together(job: Callable[[int], int]) -> int:
        return sum(scope.workers.run(*[functools.partial(job, k) for k in range(threads)]))

    try:
        together(fill)
    except BaseException:
        together(drain)
        raise
    return Turn(lambda n: together(lambda thread: mine[thread].run(n)), close=lambda: together(drain))
