"""The other ways in: from Python by size, in bulk, through C function pointers; and the tail of a single allocation."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
from numba import njit

import realalloc as ra
from bench.blocks import _loop
from bench.measure import Result, interleave
from realalloc.jit import kfree, kmalloc, kmem_cache_alloc_bulk, kmem_cache_free_bulk
from realalloc.lab.loops import kinds, layers
from realalloc.lab.natives import Native

BULK = 32
SIZES = (64, 4096, 64 << 10, 1 << 20)


def from_python(*, smoke: bool) -> list[Result]:
    """Allocate, view, release: the same cost at every size; and a list of them at once."""
    number, rounds = (500, 3) if smoke else (20_000, 21)
    with ra.Arena("256MiB") as arena:
        cache = arena.kmem_cache("bench", 256)
        peers = {
            "bytearray(64)": _loop("bytearray(64)"),
            "memoryview(bytearray(4096))": _loop("memoryview(bytearray(4096))"),
        }
        ours = {f"kmalloc({size})": _loop(f"alloc({size})", alloc=arena.kmalloc) for size in SIZES}
        by_size = interleave({**ours, **peers}, number, rounds)
        bulk = interleave(
            {
                "alloc_bulk(32), dropped": lambda n: _bulk(cache, n),
                "32 times alloc(), dropped": lambda n: _singles(cache, n),
            },
            number,
            rounds,
        )
        cache.destroy()
        arena.validate()
    targets = {"memoryview(bytearray(4096))": 0.40, "bytearray(64)": 1.25}
    return [
        Result("a block from Python, by size", "ns", by_size, "kmalloc(64)", targets),
        Result(
            "many at once from Python, each", "ns", bulk, "alloc_bulk(32), dropped", {"32 times alloc(), dropped": 0.6}
        ),
    ]


def _bulk(cache, number: int) -> None:
    for _ in range(number // BULK):
        cache.alloc_bulk(BULK)


def _singles(cache, number: int) -> None:
    alloc = cache.alloc
    for _ in range(number // BULK):
        [alloc() for _ in range(BULK)]


@njit(nogil=True)
def _jitted_bulk(words, cache, number, out):
    for _ in range(number // BULK):
        kmem_cache_alloc_bulk(words, cache, BULK, out)
        kmem_cache_free_bulk(words, cache, BULK, out)


@njit(nogil=True)
def _jitted_singles(words, number, out):
    for _ in range(number // BULK):
        for k in range(BULK):
            out[k] = kmalloc(words, 64)
        for k in range(BULK):
            kfree(words, out[k])


def jitted_bulk(*, smoke: bool) -> Result:
    """Verbs for 32 objects against 32 calls, inlined ones."""
    out = np.zeros(BULK, np.int64)
    with ra.Arena("64MiB") as arena:
        cache = arena.kmem_cache("bench", 64)
        spent = interleave(
            {
                "bulk of 32": lambda n: _jitted_bulk(arena.words, cache.at, n, out),
                "one by one": lambda n: _jitted_singles(arena.words, n, out),
            },
            3200 if smoke else 320_000,
            3 if smoke else 21,
        )
        cache.destroy()
        arena.validate()
    return Result("allocate and free 32 in jitted code, each", "ns", spent, "bulk of 32", {"one by one": 0.4})


def by_pointer(natives: list[Native], *, smoke: bool) -> Result:
    """A pair of 64 bytes where everybody is called through C function pointers, as NumPy calls its allocator."""
    with ra.Arena("64MiB") as arena:
        ours = arena.c_functions(bound=True)
        hows = {"realalloc": (ours.malloc, ours.free), **{n.name: (n.alloc, n.free) for n in natives}}
        loops = {who: np.array(how, np.int64) for who, how in hows.items()}
        spent = interleave(
            {
                who: lambda n, how=how: layers.loops(kinds.NATIVE, layers.PLAIN).pairs(how, 64, n, 1)
                for who, how in loops.items()
            },
            2000 if smoke else 500_000,
            3 if smoke else 11,
        )
        arena.validate()
    best = min((who for who in spent if who != "realalloc"), key=spent.__getitem__)
    return Result("pair 64 through a C function pointer", "ns", spent, "realalloc", {best: 1.1})


@njit(nogil=True)
def _hammer(words, stop, live):
    k = 0
    while stop[0] == 0:
        slot = (k * 7919) % len(live)
        if live[slot] != 0:
            kfree(words, live[slot])
        live[slot] = kmalloc(words, 64 + (k % 32) * 64)
        k += 1
    for slot in range(len(live)):
        if live[slot] != 0:
            kfree(words, live[slot])


def tail(*, smoke: bool) -> Result:
    """p99.9 and worst of a single ``kmalloc`` from Python, the clock included, while jitted code works on the same arena."""
    number = 2000 if smoke else 200_000
    spent = np.zeros(number, np.int64)
    stop, live = np.zeros(1, np.int64), np.zeros(512, np.int64)
    with ra.Arena("64MiB") as arena:
        worker = threading.Thread(target=_hammer, args=(arena.words, stop, live))
        worker.start()
        clock, alloc = time.perf_counter_ns, arena.kmalloc
        for k in range(number):
            begin = clock()
            alloc(512)
            spent[k] = clock() - begin
        stop[0] = 1
        worker.join()
        arena.validate()
    medians = {"p99.9": float(np.percentile(spent, 99.9)), "median": statistics.median(spent.tolist())}
    notes = {"p99.99": float(np.percentile(spent, 99.99)), "worst": float(spent.max())}
    return Result("tail of kmalloc(512) from Python under load", "ns", medians, "p99.9", {"median": 10.0}, notes)
