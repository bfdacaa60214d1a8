"""``python -m bench.ready [--smoke]``: ``pool.alloc()`` with ready views against ``list.pop`` of a ready view.

Each turn takes as many views as it may keep, into a list; what comes back, comes back off the clock, and is timed by itself.
The loop and its list are in both, as in every row of Python's side; a note has the ratio without them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import realalloc as ra
from bench.measure import Result, Turn, machine, report, sample

SIZE = 256


def _taking(kept: list[Any], alloc: Callable[[], Any]) -> Callable[[int], None]:
    def run(number: int) -> None:
        for k in range(number):
            kept[k] = alloc()

    return run


def _dropping(kept: list[Any]) -> Callable[[int], None]:
    def run(number: int) -> None:
        for k in range(number):
            kept[k] = None

    return run


def ready(*, smoke: bool) -> list[Result]:
    """Taking, and giving back, a pool's elements with views that are there and with fresh ones."""
    number, rounds = (100, 3) if smoke else (2000, 101)
    with ra.Arena("64MiB") as arena:
        pools = {how: arena.mempool(number, size=SIZE, views=how) for how in ("ready", "fresh")}
        kept: list[Any] = [None] * number
        given: list[memoryview] = []

        def fill() -> None:
            given.extend(memoryview(bytearray(SIZE)) for _ in range(number - len(given)))

        drop = _dropping(kept)
        takes: dict[str, Any] = {
            f"pool.alloc(), {how} views": Turn(_taking(kept, pool.alloc), teardown=lambda: drop(number))
            for how, pool in pools.items()
        }
        takes["list.pop of a view"] = Turn(_taking(kept, given.pop), prepare=fill, teardown=lambda: drop(number))
        takes["the loop alone"] = drop
        taken = sample(takes, number, rounds)
        backs: dict[str, Any] = {
            f"release, {how} views": Turn(drop, prepare=lambda pool=pool: _taking(kept, pool.alloc)(number))  # type: ignore[misc]
            for how, pool in pools.items()
        }
        backs["release of a bytearray's view"] = Turn(drop, prepare=lambda: (fill(), _taking(kept, given.pop)(number)))
        back = sample(backs, number, rounds)
        arena.validate()
        for pool in pools.values():
            pool.destroy()
    ours, peer, floor = "pool.alloc(), ready views", "list.pop of a view", "the loop alone"
    rows = list(zip(taken[ours], taken[peer], taken[floor], strict=True))
    net = statistics.median((a - c) / max(b - c, 0.1) for a, b, c in rows)
    notes = {"ratio without the loop": round(net, 2)}
    gross = statistics.median(a / b for a, b, _ in rows)
    medians = {who: statistics.median(values) for who, values in taken.items()}
    taking = Result("an element of a pool, taken", "ns", medians, ours, {peer: 2.0}, notes, {peer: gross})
    returned = {who: statistics.median(values) for who, values in back.items()}
    return [taking, Result("an element of a pool, given back", "ns", returned, "release, ready views", {})]


if __name__ == "__main__":
    small = "--smoke" in sys.argv[1:]
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    report(ready(smoke=small), judge=not small)
