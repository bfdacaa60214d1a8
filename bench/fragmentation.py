"""Grouping by lifetime: what slabs leave of the memory of large blocks, with grouping and without, in the same run.

Three lives in which small objects stay while large blocks come and go: kmalloc of 16 KiB to 2 MiB with objects of which one in
twenty stays; areas and page blocks; and single pages packed densely, of which one in twenty is freed before slabs grow, the
case where a slab page has to choose between holes and a free 2 MiB block. At the end the large ones go. Counted are the
2 MiB blocks that slabs keep from being free whole, the fewest that could be, and the most memory that was ever committed.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import realalloc as ra
from bench.measure import Result
from realalloc.mm import layout as at
from realalloc.mm.mobility import ungroup

MIB = 1 << 20
WHOLE = at.HUGE_PAGES


def _replace(held: list, total: int, live: int, rng: random.Random) -> int:
    while total > live:
        k = rng.randrange(len(held))
        held[k], held[-1] = held[-1], held[k]
        total -= held.pop()[0]
    return total


def _blocks(arena: ra.Arena, rng: random.Random, steps: int, live: int) -> tuple[list, list]:
    large: list = []
    total = 0
    short: list = []
    stay: list = []
    for _ in range(steps):
        if rng.random() < 0.15:
            size = int(2 ** rng.uniform(14, 21))
            large.append((size, arena.kmalloc(size)))
            total = _replace(large, total + size, live, rng)
        for _ in range(4):
            (stay if rng.random() < 0.05 else short).append(arena.kmalloc(rng.choice((64, 200, 700, 2000, 4000))))
        if len(short) > 2000:
            del short[:1000]
    return large, stay


def _areas(arena: ra.Arena, rng: random.Random, steps: int, live: int) -> tuple[list, list]:
    large: list = []
    total = 0
    stay: list = []
    for _ in range(steps // 4):
        pages = rng.choice((192, 320, 576)) if rng.random() < 0.1 else rng.choice((1, 2, 3, 7))
        taken = arena.vmalloc(pages * 4096) if pages > 16 else arena.alloc_pages((pages - 1).bit_length())
        large.append((pages * 4096, taken))
        total = _replace(large, total + pages * 4096, live, rng)
        if rng.random() < 0.7:
            stay.append(arena.kmalloc(rng.choice((64, 500, 1000, 4000))))
    return large, stay


def _dense(arena: ra.Arena, rng: random.Random, _steps: int, live: int) -> tuple[list, list]:
    large: list = [arena.alloc_pages(0) for _ in range(live // 4096)]
    rng.shuffle(large)
    del large[: len(large) // 20]
    arena.trim()
    return large, [arena.kmalloc(64) for _ in range(live // 1280)]  # as many pages as holes


LIVES: dict[str, Callable] = {"blocks": _blocks, "areas and pages": _areas, "dense single pages": _dense}


def _end(arena: ra.Arena, life: Callable, seed: int, *, smoke: bool) -> tuple[int, float, float]:
    """Return page blocks that slabs hold, the fewest that their pages fill, and the peak, in MiB."""
    large, stay = life(arena, random.Random(seed), 2000 if smoke else 30_000, (16 if smoke else 96) * MIB)
    peak = arena.stats().peak_committed / MIB
    large.clear()
    arena.trim()
    arena.validate()
    words = arena.words
    start, frontier = (int(words[at.ZONES + field]) for field in (at.Z_START_PFN, at.Z_FRONTIER_PFN))
    whole = sum(int(words[at.ZONES + at.Z_COUNTS + k]) << k - at.HUGE_ORDER for k in range(at.HUGE_ORDER, 11))
    held = -(-frontier // WHOLE) - start // WHOLE - whole
    fewest = arena.stats().allocated / (WHOLE * 4096)
    del stay
    return held, fewest, peak


def fragmentation(*, smoke: bool) -> list[Result]:
    """Run all lives, grouped and not."""
    results = []
    for name, life in LIVES.items():
        held: dict[str, list[float]] = {"grouped": [], "not grouped": [], "the fewest": []}
        peaks = []
        for seed in range(1 if smoke else 3):
            peak = {}
            for who in ("grouped", "not grouped"):
                with ra.Arena("512MiB", decay=None, huge_pages=False) as arena:
                    if who == "not grouped":
                        ungroup(arena.words)
                    blocks, fewest, peak[who] = _end(arena, life, seed, smoke=smoke)
                held[who].append(blocks)
            held["the fewest"].append(fewest)
            peaks.append(peak["grouped"] / peak["not grouped"])
        medians = {who: statistics.median(values) for who, values in held.items()}
        ratio = statistics.median(a / b for a, b in zip(held["grouped"], held["not grouped"], strict=True))
        notes = {"peak committed, grouped / not": statistics.median(peaks)}
        most = 1.0 if life is _dense else 0.5
        results.append(
            Result(
                f"slabs among {name}",
                "2 MiB blocks",
                medians,
                "grouped",
                {"not grouped": most},
                notes,
                ratios={"not grouped": ratio},
            )
        )
    return results
