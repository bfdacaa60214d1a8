"""What the project set out to reach: time of realalloc over that of the best native allocator, a row of the lab at most.

A row that is not named here is measured and has no target.
"""

from __future__ import annotations

from typing import Final

PAIR: Final = {f"pair {size}": 0.8 for size in ("16 B", "64 B", "256 B", "1 KiB", "4 KiB", "8 KiB")}
BIG_PAIR: Final = {f"pair {size}": 1.0 for size in ("32 KiB", "256 KiB", "1 MiB")}
BATCH: Final = {
    f"batch {order} {count} x 64": most
    for order, most in (("LIFO", 0.7), ("FIFO", 0.7), ("shuffled", 0.9))
    for count in (100, 1000, 100_000)
}
REPLACEMENT: Final = {
    "replacement 10k x 16..4096": 0.7,
    "replacement 100k x 16..1024": 1.0,
    "replacement 1k x 4K..256K": 1.2,
    "replacement 1024 x 4..32768, as glibc-thread, 1 thread": 1.0,
    "replacement 1024 x 4..32768, as glibc-thread, 2 threads": 1.0,
}
RING: Final = {"ring as sh6bench": 1.0, "ring as sh8bench": 1.0}
HANDOVER: Final = {
    "handover producer/consumer 64": 1.2,
    "handover producer/consumer mix": 1.2,
    "handover swap 1000 x 64": 1.2,
    "handover swap 1000 x mix": 1.2,
    "handover shared 4096 slots x 16..511": 1.2,
}
PROGRAMS: Final = {
    f"{name} {threads}": 1.0
    for name in ("larson", "mstress", "rptest", "alloc-test")
    for threads in ("1 thread", "2 threads")
}
XMALLOC: Final = {"xmalloc 64": 1.0, "xmalloc mix": 1.0, "cache-lines scratch": 1.0, "cache-lines thrash": 1.0}

TIME: Final = {**PAIR, **BIG_PAIR, **BATCH, **REPLACEMENT, **RING, **HANDOVER, **PROGRAMS, **XMALLOC}
TRACES: Final = 0.9  # of the first mimalloc that is there: geometric mean of ns per operation
PEAK: Final = 1.0  # of mimalloc 3: resident memory at the peak
PEAK_OVER_LIVE: Final = 1.2
