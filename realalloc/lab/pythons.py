"""Who takes part as a Python program sees it: everything that gives a writable buffer, or an element of a pool.

A *source* is said in Python: an expression that takes, a statement that gives back, one that views. Loops are compiled from
these texts, as ``timeit`` does, so that a peer's call is in the loop and not behind a lambda.
Guarantees: what is missing on this machine is named with its reason, and who has no room for a workload is CannotTakePart.
The loops of one workload differ in these texts only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import heap, shared_memory
from pathlib import Path
from typing import Any, Final

import numpy as np

import realalloc as ra
from realalloc.lab import histogram
from realalloc.lab.latencies import Latency
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.peers import HARNESS, OURS
from realalloc.memory import anonymous

Names = dict[str, Any]
Opened = tuple[Names, Callable[[], object]]  # what the texts may name; how to close it
ARENA_BYTES: Final = 4 << 30
SHM: Final = Path("/dev/shm")  # noqa: S108  # where SharedMemory is


class CannotTakePart(OSError):
    """A peer has no room for a workload on this machine; the others may have."""

    def __init__(self, peer: str, reason: object) -> None:
        """Keep both."""
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = str(reason)


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Source:
    """A peer: ``take`` has the value of a buffer of ``size`` bytes, ``give`` ends with what ``x`` names, ``view`` views it."""

    name: str
    take: str
    open: Callable[[int, int], Opened]  # (size, how many live at once)
    give: str = ""  # where dropping it is enough
    view: str = "memoryview(x)"


def _plain(**names: Any) -> Callable[[int, int], Opened]:
    return lambda size, _live: ({"size": size, **names}, _nothing)


def _arena(size: int, live: int) -> Opened:
    arena = ra.Arena(max(ARENA_BYTES, 4 * size * (live + 4)))
    return {"alloc": arena.kmalloc, "size": size}, arena.close


def _shared(size: int, live: int) -> Opened:
    wanted = size * (live + 1)
    if SHM.is_dir():
        told = os.statvfs(SHM)
        free = told.f_bavail * told.f_frsize
        if free < wanted:  # who writes beyond is killed by SIGBUS: the size is promised, the pages are not
            raise OSError(f"{wanted >> 20} MiB wanted, and {SHM} has {free >> 20} left")
    return {"Shared": shared_memory.SharedMemory, "size": size}, _nothing


def _arrow(backend: str) -> Callable[[int, int], Opened]:
    def opened(size: int, _live: int) -> Opened:
        pa: Any = importlib.import_module("pyarrow")  # an extra that may not be there
        pool = getattr(pa, f"{backend}_memory_pool")()
        return {"allocate": functools.partial(pa.allocate_buffer, memory_pool=pool), "size": size}, _nothing

    return opened


def _pool(size: int, live: int) -> Opened:
    arena = ra.Arena(max(64 << 20, 4 * size * (live + 4)))
    pool = arena.mempool(live, size=size)

    def close() -> None:
        pool.destroy()
        arena.close()

    return {"alloc": pool.alloc}, close


def _filled(make: Callable[[], Any], put: str, get: str) -> Callable[[int, int], Opened]:
    def opened(size: int, live: int) -> Opened:
        box = make()
        for _ in range(live):
            getattr(box, put)(bytearray(size))
        return {"get": getattr(box, get), "put": getattr(box, put)}, _nothing

    return opened


SHARED: Final = "x.close(); x.unlink()"
OF_HEAP: Final = "x.create_memoryview().cast('B')"
SIGNED: Final = "memoryview(x).cast('B')"  # pyarrow says that bytes are signed
BLOCKS: Final = (
    Source(OURS, "alloc(size)", _arena, view="x"),
    Source("bytearray", "bytearray(size)", _plain()),
    Source("memoryview(bytearray)", "memoryview(bytearray(size))", _plain(), view="x"),
    Source("np.empty", "empty(size, uint8)", _plain(empty=np.empty, uint8=np.uint8)),
    Source("mmap", "map(size)", _plain(map=anonymous), "x.close()"),
    Source("SharedMemory", "Shared(create=True, size=size)", _shared, SHARED, "x.buf"),
    Source(
        "multiprocessing.heap",
        "Wrapper(size)",
        _plain(Wrapper=heap.BufferWrapper),
        view="x.create_memoryview().cast('B')",
    ),
    Source("pyarrow", "allocate(size)", _arrow("default"), view=SIGNED),
    Source("pyarrow jemalloc", "allocate(size)", _arrow("jemalloc"), view=SIGNED),
    Source("pyarrow system", "allocate(size)", _arrow("system"), view=SIGNED),
)
POOLS: Final = (
    Source(OURS, "alloc()", _pool, view="x"),
    Source("deque", "get()", _filled(deque, "append", "pop"), "put(x)"),
    Source("SimpleQueue", "get()", _filled(queue.SimpleQueue, "put", "get"), "put(x)"),
    Source("queue.Queue", "get()", _filled(queue.Queue, "put", "get"), "put(x)"),
    Source("memoryview(bytearray)", "memoryview(bytearray(size))", _plain(), view="x"),
)
NOBODY: Final = Source(HARNESS, "None", _plain())


def find(sources: Iterable[Source], only: Iterable[str] = ()) -> tuple[list[Source], list[str]]:
    """Try every source, or those named; return those that work here, and a line for each that does not."""
    names, found, missing = set(only), [], []
    for source in sources:
        if names and source.name not in names:
            continue
        try:
            given, close = source.open(4096, 1)
            with contextlib.ExitStack() as stack:
                stack.callback(close)
                namespace = dict(given)
                exec(f"x = {source.take}\n{source.give}", namespace)  # noqa: S102  # texts of this file
                namespace.clear()
            found.append(source)
        except (ImportError, NotImplementedError, MemoryError, OSError) as error:
            missing.append(f"{source.name}: {error}")
    return found, missing


_LOOPS: Final = {
    # A loop as timeit's: what is dropped at once is never bound to a name.
    PLAIN: "for _ in repeat(None, n):\n    {drop}",
    CHECKED: """
for k in range(n):
    x = {take}
    b = {view}
    b[0] = k & 255
    total += b[0] + len(b)
    b = None
    {give}
""",
    TIMED: """
for k in range(n):
    begun = clock()
    x = {take}
    taken = clock()
    {give}
    given = clock()
    allocs[k] = taken - begun
    frees[k] = given - taken
""",
}


def compile_loop(body: str, source: Source, names: Names) -> Callable[[int], int]:
    """Make ``loop(n)`` of a body: ``{take}``, ``{give}``, ``{view}`` and ``{drop}`` stand for the source's texts."""
    give = source.give or "x = None"
    drop = f"x = {source.take}; {source.give}" if source.give else source.take
    text = body.format(take=source.take, give=give, view=source.view, drop=drop).strip().replace("\n", "\n    ")
    namespace: Names = {"repeat": repeat, "clock": time.perf_counter_ns, **names}
    exec(f"def loop(n):\n    total = 0\n    {text}\n    return total\n", namespace)  # noqa: S102  # texts of this file
    loop: Callable[[int], int] = namespace["loop"]
    return loop


@functools.cache
def clock_ns() -> float:
    """Return what two readings of Python's clock are apart where nothing is between them: it is in every latency."""
    clock = time.perf_counter_ns
    return float(np.median([-clock() + clock() for _ in range(20_000)]))


class PythonPeer:
    """A source with a layer around it; what a workload makes loops of."""

    def __init__(self, source: Source, layer: str = PLAIN) -> None:
        """Choose the layer."""
        self.name = source.name
        self.source = source
        self.layer = layer
        self.total = 0
        self._histograms = {"alloc": histogram.make(), "free": histogram.make()}

    def layered(self, layer: str) -> PythonPeer:
        """Return the same with another layer."""
        return PythonPeer(self.source, layer)

    def opened(self, size: int, live: int) -> Opened:
        """Open the source; CannotTakePart where it has no room for so much."""
        try:
            return self.source.open(size, live)
        except (OSError, MemoryError) as error:
            raise CannotTakePart(self.name, error) from error

    def loop(self, names: Names) -> Callable[[int], int]:
        """Make the layer's loop of taking and giving back; it returns 0, or the sum of what it read."""
        if self.layer != TIMED:
            made = compile_loop(_LOOPS[self.layer], self.source, names)
            return self._counting(made) if self.layer == CHECKED else made
        return self._timing(names)

    def _counting(self, made: Callable[[int], int]) -> Callable[[int], int]:
        def run(number: int) -> int:
            self.total += made(number)
            return 0

        return run

    def _timing(self, names: Names) -> Callable[[int], int]:
        times: dict[str, list[int]] = {"allocs": [], "frees": []}
        made = compile_loop(_LOOPS[TIMED], self.source, {**names, **times})

        def run(number: int) -> int:
            for column in times.values():
                column[:] = [0] * number
            made(number)
            for counts, column in zip(self._histograms.values(), times.values(), strict=True):
                np.add(counts, histogram.counted(np.array(column, np.int64)), out=counts)
            return 0

        return run

    def latencies(self) -> tuple[Latency, ...]:
        """Return what was recorded."""
        found = []
        for name, counts in self._histograms.items():
            values, numbers = histogram.filled(counts)
            if len(values):
                found.append(
                    Latency(name, tuple(zip(values.astype(float).tolist(), numbers.tolist(), strict=True)), clock_ns())
                )
        return tuple(found)

    def checksum(self) -> int:
        """Return what was read."""
        return self.total
