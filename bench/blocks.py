"""A block from Python: allocate, make the memoryview, release. Against bytearray and memoryview(bytearray)."""

from __future__ import annotations

import timeit
from collections import deque
from multiprocessing import shared_memory

import realalloc as ra
from bench.measure import Result, faults, interleave

SIZE = 4096
BIG = 16 << 20
DEPTH = 64


def _loop(statement: str, **names: object):
    timer = timeit.Timer(statement, globals=names)
    return lambda number: timer.timeit(number)


def small(*, smoke: bool) -> Result:
    """4 KiB from a cache, a pool and kmalloc; the view dies at once."""
    with ra.Arena("64MiB") as arena:
        cache = arena.kmem_cache("bench", SIZE)
        pool = arena.mempool(16, size=SIZE)
        medians = interleave(
            {
                "cache.alloc()": _loop("alloc()", alloc=cache.alloc),
                "pool.alloc()": _loop("alloc()", alloc=pool.alloc),
                "kmalloc(4096)": _loop("alloc(4096)", alloc=arena.kmalloc),
                "cache.alloc().release()": _loop("alloc().release()", alloc=cache.alloc),
                "bytearray(4096)": _loop("bytearray(4096)"),
                "memoryview(bytearray(4096))": _loop("memoryview(bytearray(4096))"),
            },
            2000 if smoke else 100_000,
            3 if smoke else 21,
        )
        pool.destroy()
        cache.destroy()
        arena.validate()
    return Result(
        "4 KiB block from Python: allocate, view, release",
        "ns",
        medians,
        "cache.alloc()",
        {"memoryview(bytearray(4096))": 0.55, "bytearray(4096)": 1.0},
    )


def big(*, smoke: bool) -> Result:
    """64 live buffers of 16 MiB, the oldest replaced, the first byte of each page written, steady state."""
    size, depth = (1 << 20, 4) if smoke else (BIG, DEPTH)
    ones = b"\1" * (size // 4096)
    arena = ra.Arena(size * (2 * depth + 16))

    def ours_kmalloc(live: deque) -> None:
        live.popleft()
        buf = arena.vmalloc(size)
        buf[::4096] = ones
        live.append(buf)

    def theirs_bytearray(live: deque) -> None:
        live.popleft()
        buf = bytearray(size)
        memoryview(buf)[::4096] = ones
        live.append(buf)

    def theirs_shared(live: deque) -> None:
        old = live.popleft()
        old.close()
        old.unlink()
        buf = shared_memory.SharedMemory(create=True, size=size)
        buf.buf[::4096] = ones
        live.append(buf)

    def runner(step, live: deque):
        return lambda number: [step(live) for _ in range(number)] and None

    def filled(make) -> deque:
        return deque(make() for _ in range(depth))

    ours = filled(lambda: arena.vmalloc(size))
    step = runner(ours_kmalloc, ours)
    step(2 * depth)
    before = faults()
    step(depth)
    per_pair = (faults() - before) / depth
    # What holds the ratio: writing 4096 cache lines that 63 other buffers have evicted. Nothing is allocated here.
    resident = filled(lambda: arena.vmalloc(size))

    def touch_only(live: deque) -> None:
        buf = live.popleft()
        buf[::4096] = ones
        live.append(buf)

    runner(touch_only, resident)(2 * depth)
    contestants = {"realalloc": step, "floor: touching resident buffers": runner(touch_only, resident)}
    plain = filled(lambda: bytearray(size))
    contestants["bytearray"] = runner(theirs_bytearray, plain)
    shared: deque = deque()
    try:
        shared.extend(filled(lambda: shared_memory.SharedMemory(create=True, size=size)))
        contestants["SharedMemory"] = runner(theirs_shared, shared)
    except OSError as error:
        print(f"SharedMemory skipped: {error}")
    medians = interleave(contestants, 2 if smoke else 8, 3 if smoke else 11)
    for block in shared:
        block.close()
        block.unlink()
    ours.clear()
    resident.clear()
    arena.validate()
    arena.close()
    targets = {peer: 0.01 for peer in ("bytearray", "SharedMemory") if peer in medians}
    name = f"{depth} live buffers of {size >> 20} MiB, FIFO, first byte of each page written"
    return Result(name, "ns", medians, "realalloc", targets, {"page faults a pair": per_pair})
