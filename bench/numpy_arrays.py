"""``python -m bench.numpy_arrays [--smoke]``: array expressions, ``np.empty`` and ``np.zeros`` in an arena and without.

The peer is NumPy's default handler over the C library as it is; tuned or preloaded ones are not measured here. Beside them
stands a floor: the same work in buffers that are there already, which is what an allocator that costs nothing would leave.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np

import realalloc as ra
from bench.measure import Result, report, sample
from realalloc.lab import machine

MIB = 1 << 20
EXPRESSIONS = {64: 0.0, 4096: 0.0, 65536: 0.0, MIB: 4.0, 4 * MIB: 2.5, 64 * MIB: 1.3}  # bytes: times as fast as default
WORK = 1 << 25  # bytes of arrays in a turn
LIVE, LARGE = 64, 16 * MIB


def row(
    name: str,
    arena: ra.Arena,
    body: Callable[[], object],
    number: int,
    rounds: int,
    most: float,
    floor: Callable[[], object] | None = None,
) -> Result:
    """Time ``body`` both ways, and ``floor``, taking turns."""

    def turn(block: Callable[[], object], work: Callable[[], object] = body) -> Callable[[int], object]:
        def run(count: int) -> None:
            with block():  # type: ignore[attr-defined]
                for _ in range(count):
                    work()

        return run

    handler = arena.numpy()
    contestants = {"arena": turn(lambda: handler), "default": turn(nullcontext)}
    if floor is not None:
        contestants["floor"] = turn(nullcontext, floor)
    spent = sample(contestants, number, rounds)
    ratio = statistics.median(a / b for a, b in zip(spent["arena"], spent["default"], strict=True))
    medians = {who: statistics.median(values) for who, values in spent.items()}
    targets = {"default": round(most, 3)} if most else {}
    notes = {"times as fast": round(1 / ratio, 2)}
    if floor is not None:
        least = statistics.median(b / a for a, b in zip(spent["floor"], spent["default"], strict=True))
        notes["times as fast at most (floor)"] = round(least, 2)
    return Result(name, "ns", medians, "arena", targets, notes, {"default": ratio})


def reused(a: np.ndarray, b: np.ndarray, arena: ra.Arena) -> Callable[[], object]:
    """Return ``a*2 + b*3 - a`` in the two buffers that NumPy needs when it reuses temporaries, allocated once."""
    first, second = arena.empty_like(a), arena.empty_like(a)

    def work() -> None:
        np.multiply(a, 2, out=first)
        np.multiply(b, 3, out=second)
        np.add(first, second, out=first)
        np.subtract(first, a, out=first)

    return work


def rows(*, smoke: bool) -> list[Result]:
    """Run everything."""
    made = []
    rounds = 2 if smoke else 11
    with ra.Arena("4GiB") as arena:
        for nbytes, times in EXPRESSIONS.items():
            if smoke and nbytes > MIB:
                continue
            a = np.ones(nbytes // 8)
            b = a + 1
            number = max(2, min(20_000, WORK // nbytes)) if not smoke else 2
            made.append(
                row(
                    f"a*2 + b*3 - a, {nbytes} B",
                    arena,
                    lambda a=a, b=b: a * 2 + b * 3 - a,
                    number,
                    rounds,
                    1 / times if times else 0,
                    reused(a, b, arena),
                )
            )
        for make in (np.empty, np.zeros):
            for nbytes in (64, 1024):
                name = f"np.{make.__name__}, {nbytes} B"
                made.append(
                    row(name, arena, lambda make=make, n=nbytes: make(n, np.uint8), 2 if smoke else 50_000, rounds, 1.1)
                )
        for nbytes in (MIB,) if smoke else (MIB, 64 * MIB):
            number = 2 if smoke else max(3, WORK // nbytes)
            made.append(row(f"np.zeros, {nbytes} B", arena, lambda n=nbytes: np.zeros(n, np.uint8), number, rounds, 0))
            made.append(row(f"np.zeros, {nbytes} B, then filled", arena, lambda n=nbytes: filled(n), number, rounds, 0))
        if not smoke:
            made.append(fifo(arena))
    return made


def filled(nbytes: int) -> None:
    """Make zeros and write all of them, as programs do that asked for zeros to add to them."""
    np.zeros(nbytes, np.uint8).fill(1)


def fifo(arena: ra.Arena) -> Result:
    """Time a queue of live arrays, of which the oldest dies for each new one; only each page's first byte is touched."""
    live: deque[np.ndarray] = deque(maxlen=LIVE)

    def step() -> None:
        fresh = np.empty(LARGE, np.uint8)
        fresh[::4096] = 1
        live.append(fresh)

    there = itertools.cycle([arena.ones(LARGE, np.uint8) for _ in range(LIVE)])

    def touch() -> None:
        next(there)[::4096] = 1

    result = row(f"FIFO of {LIVE} arrays of 16 MiB, touched", arena, step, 2 * LIVE, 3, 1 / 50, touch)
    live.clear()
    return result


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="bench.numpy_arrays")
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run?")
    smoke = parser.parse_args().smoke
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    report(rows(smoke=smoke), judge=not smoke)


if __name__ == "__main__":
    main()
