"""What all threads of one stressed process share: the arena, its caches and pools, the drawn streams, the shared table.

Guarantees: everything is made by the constructor or nothing is kept; ``stop`` is one word that jitted loops look at each turn.
``close`` frees what is shared and then looks: the arena must be whole, and empty after a trim.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from realalloc.arena import Arena
from realalloc.cache import KmemCache
from realalloc.context import NumPyContext
from realalloc.errors import CorruptionError
from realalloc.lab.stress.draws import STYLE_CODES, draw_kinds, draw_sizes
from realalloc.lab.stress.kernels import COUNTS, FAILURE_WORDS, LEASE, LEASE_KINDS, NUMPY, RAW_KINDS, RECORD, clear
from realalloc.lab.stress.options import MIX, Options
from realalloc.mm.jit import JIT
from realalloc.mm.layout import H_MAX_ORDER

CACHE_BYTES = (24, 72, 200, 1000)  # strides that no size class has
SHARED_SLOTS = 256
BOUNDED_BYTES, RESERVE_BYTES = 2048, 640
RESERVE_ELEMENTS = 16


class Site:
    """The place where threads work. Closing it twice is harmless."""

    def __init__(self, options: Options) -> None:
        """Make the arena and all in it; ValueError or OutOfMemory for sizes that cannot be."""
        self.options = options
        rng = np.random.default_rng(options.seed)
        self.sizes = draw_sizes(options.sizes, rng)
        weights = options.weights
        if weights.get("numpy") and not JIT:
            if options.mix != MIX:
                raise ValueError("--mix: numpy needs machine code, which NUMBA_DISABLE_JIT forbids")
            weights = {**weights, "numpy": 0.0}
        self.raw_kinds = draw_kinds(weights, RAW_KINDS, 0, rng)
        self.lease_kinds = draw_kinds(weights, LEASE_KINDS, LEASE, rng)
        self.numpy: NumPyContext | None = None
        leases = sum(weights.get(kind, 0.0) for kind in LEASE_KINDS)
        self.lease_share = leases / sum(weights.values())
        style, self.slots = options.slots
        self.style = STYLE_CODES[style]
        self.stop = np.zeros(1, np.int64)
        self.shared = np.zeros(SHARED_SLOTS * RECORD, np.int64)
        self.counts = np.zeros(COUNTS, np.int64)  # of what is freed here
        self.failure = np.zeros(FAILURE_WORDS, np.int64)
        self.begun = time.perf_counter()
        self.arena = Arena(options.arena, limit=options.limit or None)
        try:
            self._furnish()
        except BaseException:
            self.arena.close()
            raise

    def _furnish(self) -> None:
        arena, options = self.arena, self.options
        self.words: Any = arena.words
        self.caches: list[KmemCache] = [arena.kmem_cache(f"stress-{nbytes}", nbytes) for nbytes in CACHE_BYTES]
        named = [number for cache in self.caches for number in (cache.at, cache.size)]
        self.cache_table = np.array([*named, int(self.words[H_MAX_ORDER])], np.int64)
        self.bounded = arena.mempool(max(1, options.threads // 2), size=BOUNDED_BYTES, order="reserve-only")
        self.reserve = arena.mempool(RESERVE_ELEMENTS, size=RESERVE_BYTES)
        if self.lease_kinds is not None and NUMPY in self.lease_kinds:
            self.numpy = arena.numpy()
        if options.faults:
            self.reserve.fail_alloc(options.faults, seed=options.seed & 0x7FFFFFFF)

    def seconds(self) -> float:
        """Return how long the run has lasted."""
        return time.perf_counter() - self.begun

    def waiters(self) -> int:
        """Return how many wait for an element now."""
        return int(self.bounded.stats().waiters)

    def fragmentation(self) -> float:
        """Return 1 - largest free block / free, both as the arena says; 0 when nothing is free."""
        stats = self.arena.stats()
        return fragmentation(stats.free, min(stats.largest_free, stats.free))

    def finish(self) -> list[str]:
        """Free what is shared, destroy pools and caches, trim, and return what is not as it must be."""
        clear(self.words, self.shared, self.counts, self.failure)
        broken: list[str] = []
        try:
            self.arena.validate()
            for pool in (self.bounded, self.reserve):
                pool.destroy()
            for cache in self.caches:
                cache.destroy()
            self.arena.trim()
            self.arena.validate()
        except (BufferError, CorruptionError) as error:
            broken.append(f"at the end: {error}")
        stats = self.arena.stats()
        left = {
            "leases": stats.leases,
            "lingering leases": stats.lingering,
            "objects": stats.live_objects,
            "blocks": stats.live_blocks,
            "areas": stats.live_areas,
            "allocated bytes": stats.allocated,
            "committed bytes": stats.committed,
        }
        broken += [f"{count} {what} left when everything was freed" for what, count in left.items() if count]
        if stats.page_allocs != stats.page_frees:
            broken.append(f"{stats.page_allocs} allocations of pages, {stats.page_frees} frees")
        return broken

    def close(self) -> None:
        """Close the arena."""
        self.words = self.numpy = None
        self.arena.close()


def fragmentation(free: int, largest: int) -> float:
    """Return how much of what is free no single request could get."""
    return 1 - largest / free if free else 0.0
