"""One thread: pairs, batches, random replacement, rings with a surviving window, recorded traces. ns per pair unless said."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from bench import streams
from bench.measure import Result, Turn
from bench.natives import MIMALLOCS
from bench.peers import NAME, Peer, Plan, check, row

PAIRS = {16: 0.8, 64: 0.8, 256: 0.8, 1024: 0.8, 4096: 0.8, 8192: 0.8}
BIG_PAIRS = {32 << 10: 1.0, 256 << 10: 1.0, 1 << 20: 1.0}
ORDERS = {"LIFO": 0.7, "FIFO": 0.7, "shuffled": 0.9}
GLIBC_THREAD = "glibc-thread 1024 x 4..32768"
# Name: places, smallest, largest, replacements a turn, target.
REPLACEMENT = {
    "random 10k x 16..4096": (10_000, 16, 4096, 300_000, 0.7),
    "random 100k x 16..1024": (100_000, 16, 1024, 300_000, 1.0),
    "random 1k x 4K..256K": (1000, 4096, 256 << 10, 100_000, 1.2),
}


def size_name(size: int) -> str:
    """Format a size."""
    if size >= 1 << 20:
        return f"{size >> 20}M"
    return f"{size >> 10}K" if size >= 32 << 10 else str(size)


def pairs(plan: Plan) -> Iterator[Result]:
    """Allocate and free one block; the big ones are not touched."""
    for size, most in (PAIRS | BIG_PAIRS).items():
        name = f"pair {size_name(size)}"
        touch = size in PAIRS
        number = plan.count(500_000 if touch else 200_000)
        if plan.wants(name):
            yield row(plan, name, most, number, _pair, (size, touch))


def _pair(p: Peer, size: int, touch: bool) -> Turn:
    return Turn(lambda n: check(p.loops.pairs(p.how, size, n, touch)))


def batches(plan: Plan) -> Iterator[Result]:
    """Allocate a batch of 64 bytes, free it in some order."""
    for kind, most in ORDERS.items():
        for count in (100, 1000, 100_000):
            name = f"{kind} {count} x 64"
            if not plan.wants(name):
                continue
            size_of_batch = plan.count(count)
            order = streams.order(kind, size_of_batch)
            repeats = max(plan.count(300_000) // size_of_batch, 1)
            yield row(plan, name, most, repeats * size_of_batch, _batch, (order, repeats))


def _batch(p: Peer, order: np.ndarray, repeats: int) -> Turn:
    blocks = np.zeros(len(order), np.int64)
    return Turn(lambda _: check(p.loops.batches(p.how, 64, order, blocks, repeats)))


def replacer(p: Peer, places: int, slots: np.ndarray, sizes: np.ndarray) -> Turn:
    """Replace random objects, in a heap that is filled now and stays until the end."""
    blocks = np.zeros(places, np.int64)
    every = np.arange(places, dtype=np.int32)
    check(p.loops.replace(p.how, blocks, every, np.resize(sizes, places), 0, places))
    return Turn(
        lambda n: check(p.loops.replace(p.how, blocks, slots, sizes, 0, n)),
        close=lambda: p.loops.drain(p.how, blocks),
    )


def replacement(plan: Plan) -> Iterator[Result]:
    """Replace random objects of random sizes."""
    rows = {
        name: (places, streams.log_uniform(low, high, plan.count(number)), most)
        for name, (places, low, high, number, most) in REPLACEMENT.items()
    }
    rows[GLIBC_THREAD] = (1024, streams.inverse_square(4, 32768, plan.count(300_000)), 1.0)
    for name, (places, sizes, most) in rows.items():
        if plan.wants(name):
            places = plan.count(places)
            slots = streams.slots(places, len(sizes))
            yield row(plan, name, most, len(sizes), replacer, (places, slots, sizes))


def rings(plan: Plan) -> Iterator[Result]:
    """Fill a ring of which a moving window survives: from nothing to nothing, all of it on the clock."""
    for name, places, passes in (("sh6-like ring", 10_000, 15), ("sh8-like ring", 100_000, 3)):
        if plan.wants(name):
            sizes = streams.sh6_sizes() if name.startswith("sh6") else streams.sh8_sizes()
            stream = streams.ring(name, sizes, plan.count(places), passes)
            yield row(plan, name, 1.0, len(stream.slots) // 2, _ring, (stream,))


def _ring(p: Peer, stream: streams.Operations) -> Turn:
    blocks = np.zeros(stream.places, np.int64)
    return Turn(lambda _: check(p.loops.replay(p.how, blocks, stream.slots, stream.sizes, 0, len(stream.slots))))


def _trace(p: Peer, stream: streams.Operations) -> Turn:
    blocks = np.zeros(stream.places, np.int64)

    def play(begin: int, end: int) -> None:
        check(p.loops.replay(p.how, blocks, stream.slots, stream.sizes, begin, end))

    return Turn(
        lambda n: play(stream.warm, stream.warm + n),
        lambda: play(0, stream.warm),
        lambda: p.loops.drain(p.how, blocks),
    )


def traces(plan: Plan, directory: str | None) -> Iterator[Result]:
    """Replay what programs did, ns per operation, and the geometric mean of all."""
    if directory is None:
        if plan.wants("trace"):
            print("traces skipped: no --traces DIR")
        return
    played = []
    for stream in streams.load_traces(directory):
        name = f"trace {stream.name}, per operation"
        if plan.wants(name):
            number = plan.count(len(stream.slots) - stream.warm)
            played.append(row(plan, name, None, number, _trace, (stream,)))
            yield played[-1]
    if len(played) > 1:
        medians, ratios = [
            {who: statistics.geometric_mean(part[who] for part in parts) for who in parts[0]}
            for parts in ([r.medians for r in played], [r.ratios for r in played])
        ]
        peer = next((who for who in MIMALLOCS if who in ratios), None)
        yield Result("traces, geometric mean", "ns", medians, NAME, {peer: 0.9} if peer else {}, ratios=ratios)
