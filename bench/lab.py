"""What the lab itself costs: timing of single operations, and ``realalloc bench --quick`` on a machine that never ran it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import realalloc as ra
from bench.measure import Result, sample
from realalloc.lab import clock
from realalloc.lab.loops.layers import PLAIN, TIMED
from realalloc.lab.measure import Turn
from realalloc.lab.peers import Peer, nobody, ours

TIMING_NS = 10.0
QUICK_SECONDS = 60.0


def timing(*, smoke: bool) -> Result:
    """A timed loop of pairs beside a plain one: what timing adds to each of the two operations of a pair."""
    number, rounds = (2000, 3) if smoke else (500_000, 21)
    with ra.Arena("64MiB") as arena:
        added, alone = [_added(peer, number, rounds) for peer in (ours(arena.words), nobody())]
    medians = {"added to an operation": added, "allowed": TIMING_NS}
    notes = {
        "added where there is no allocator": alone,
        "reading the counter": clock.reading_ns(),
        "step of the counter": clock.resolution_ns(),
    }
    return Result("timing of single operations", "ns", medians, "added to an operation", {"allowed": 1.0}, notes)


def _added(peer: Peer, number: int, rounds: int) -> float:
    spent = sample({layer: _pairs(peer.layered(layer)) for layer in (PLAIN, TIMED)}, number, rounds)
    return statistics.median((b - a) / 2 for a, b in zip(spent[PLAIN], spent[TIMED], strict=True))


def _pairs(peer: Peer) -> Turn:
    touch = True
    return Turn(lambda n: peer.loops.pairs(peer.how(), 64, n, touch))


def quick() -> Result:
    """``realalloc bench --quick`` with nothing compiled yet."""
    with tempfile.TemporaryDirectory() as empty:
        begun = time.monotonic()
        environ = {**os.environ, "REALALLOC_CACHE_DIR": empty}
        subprocess.run(
            [sys.executable, "-m", "realalloc", "bench", "--quick"], env=environ, check=True, capture_output=True
        )
        seconds = time.monotonic() - begun
    medians = {"cold": seconds, "allowed": QUICK_SECONDS}
    return Result("realalloc bench --quick, cold", "s", medians, "cold", {"allowed": 1.0})


def lab(*, smoke: bool) -> list[Result]:
    """Run all rows; a smoke run leaves out the one that compiles everything."""
    return [timing(smoke=smoke), *([] if smoke else [quick()])]
