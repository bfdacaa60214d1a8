"""The demo itself: plain reading first, then rounds that alternate between the pool and fresh bytearrays, then the checks.

Guarantees: kernels are loaded, files are in the page cache and the C heap is trimmed before anything is timed; the way
that goes first alternates. The arena is validated after the last pass, and must then be as empty as when it was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self, cast

import numpy as np

from realalloc.arena import Arena
from realalloc.demo.checks import alone_ns, check_end, fresh
from realalloc.demo.reading import Take, hash_plainly, hash_through, read_all
from realalloc.demo.report import Pass, Report, Setup, summarize
from realalloc.demo.tree import find_files
from realalloc.errors import OutOfMemory
from realalloc.lease import factory
from realalloc.mempool import MemPool
from realalloc.mm.jit import JIT, warm_up
from realalloc.mm.layout import PAGE_BYTES
from realalloc.progress import compile_progress
from realalloc.rss import RssSampler, Usage, rss, trim_heap
from realalloc.sizes import as_bytes, as_int

POOL, FRESH = "pool", "bytearray"
MIN_ARENA_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What to do. ``arena`` None means large enough: 64 MiB, or four times the pool."""

    path: str
    threads: int = 4
    buffer: int = 64 << 10
    buffers: int = 8
    rounds: int = 3
    arena: int | None = None
    prune: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is."""

    stage: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]
OnTick = Callable[[int], None]


def _ticker(tell: OnProgress, stage: str, total: int) -> OnTick:
    tell(Progress(stage, 0, total))
    return lambda done: tell(Progress(stage, done, total))


class Demo:
    """One demo; a context manager that closes its arena.

    The constructor refuses what can be refused: OSError for the path, ValueError or TypeError for numbers, OutOfMemory
    where the pool does not fit the arena.
    """

    def __init__(self, options: Options) -> None:
        """Check the options, load the kernels, make the arena and fill the pool."""
        as_int(options.threads, "threads", 1, 1024)
        as_int(options.rounds, "rounds", 1)
        as_int(options.buffers, "buffers", 1, 1 << 20)
        as_int(options.buffer, "buffer", PAGE_BYTES)  # below a page kmalloc does not promise page alignment
        self.options = options
        self.tree = find_files(options.path, options.prune)
        with compile_progress():
            factory()
            if JIT:
                warm_up()
        size = (
            options.arena if options.arena is not None else max(MIN_ARENA_BYTES, 4 * options.buffer * options.buffers)
        )
        trim_heap()
        usage, resident, begun = Usage.now(), rss(), time.perf_counter()
        self.arena = Arena(as_bytes(size, "arena"))
        try:
            self.pool = cast("MemPool", self.arena.mempool(options.buffers, size=options.buffer))
        except OutOfMemory:
            self.arena.close()
            raise
        seconds = time.perf_counter() - begun
        faults, committed = Usage.now().since(usage).minor_faults, self.arena.stats().committed
        self._takes: dict[str, Take] = {POOL: self.pool.alloc, FRESH: fresh(options.buffer)}
        self.setup = Setup(seconds, faults, rss() - resident, committed)

    def __enter__(self) -> Self:
        """Return the demo."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the arena."""
        self.arena.close()

    def run(self, on_progress: OnProgress | None = None) -> Report:
        """Do all of it, once: the pool is destroyed at the end. A second call is a ValueError."""
        tell = on_progress or (lambda _progress: None)
        aligned = self._aligned()
        report, paths, digests = self._read_plainly(tell)
        odd: set[int] = set()
        for number in range(self.options.rounds):
            for way in (POOL, FRESH) if number % 2 == 0 else (FRESH, POOL):
                on_tick = _ticker(tell, f"round {number + 1}/{self.options.rounds}, {way}", len(paths))
                report.passes.append(self._pass(way, paths, digests, odd, on_tick))
        report.pool = self.pool.stats().as_dict()
        report.arena = self.arena.stats().as_dict()
        self._sort_out(report, paths, digests, sorted(odd))
        report.summaries = [summarize(way, report.passes, alone_ns(take)) for way, take in self._takes.items()]
        report.rss_peak = max(p.rss_peak for p in report.passes)
        report.checks = check_end(self.arena, self.pool, digests=not report.disagreeing, aligned=aligned)
        return report

    def _read_plainly(self, tell: OnProgress) -> tuple[Report, list[str], list[bytes]]:
        """Read everything once by ``open().read()``: the digests to compare with, and a warm page cache."""
        tree = self.tree
        found: list[bytes | OSError] = [b""] * len(tree.files)
        on_tick = _ticker(tell, "plain reading, for the digests to compare with", len(tree.files))
        _, nbytes, _ = read_all(tree.files, self.options.threads, hash_plainly, found.__setitem__, on_tick)
        failed = [
            (path, error.strerror or str(error))
            for path, error in zip(tree.files, found, strict=True)
            if isinstance(error, OSError)
        ]
        good = [(path, digest) for path, digest in zip(tree.files, found, strict=True) if isinstance(digest, bytes)]
        report = Report(
            options=asdict(self.options) | {"prune": sorted(self.options.prune), "arena": self.arena.size},
            root=tree.root,
            files=len(good),
            nbytes=nbytes,
            links=tree.links,
            special=tree.special,
            pruned=tree.pruned,
            unreadable=[*tree.unlisted, *failed],
            setup=self.setup,
        )
        return report, [path for path, _ in good], [digest for _, digest in good]

    def _pass(self, way: str, paths: list[str], digests: list[bytes], odd: set[int], on_tick: OnTick) -> Pass:
        def compare(index: int, found: bytes | OSError) -> None:
            if found != digests[index]:
                odd.add(index)

        trim_heap()
        with RssSampler() as sampler:
            before = Usage.now()
            reader = hash_through(self._takes[way])
            seconds, nbytes, reads = read_all(paths, self.options.threads, reader, compare, on_tick)
            used = Usage.now().since(before)
        return Pass(way, seconds, nbytes, reads, **asdict(used), rss_start=sampler.start, rss_peak=sampler.peak)

    def _sort_out(self, report: Report, paths: list[str], digests: list[bytes], odd: list[int]) -> None:
        """Tell files that changed from digests that are wrong: plain reading decides, once more."""
        again: dict[int, bytes | OSError] = {}
        read_all([paths[i] for i in odd], 1, hash_plainly, again.__setitem__, lambda _done: None)
        for position, index in enumerate(odd):
            stood_still = again[position] == digests[index]
            (report.disagreeing if stood_still else report.changed).append(paths[index])

    def _aligned(self) -> bool:
        """Take as many buffers as can be out at once, and look where each begins."""
        held = [self.pool.alloc() for _ in range(max(self.options.buffers, min(self.options.threads, 64)))]
        starts = [int(np.frombuffer(buffer, np.uint8).ctypes.data) for buffer in held]
        self.pool.free_bulk(held)
        self.pool.resize(self.options.buffers)  # the low mark shall be that of the passes
        return all(start % PAGE_BYTES == 0 for start in starts)
