"""``python -m bench [--smoke] [--json FILE]``, ``python -m bench natives [--rss] [--traces DIR] [--only NAME]``,
``python -m bench fragmentation``, ``lab``, ``network``, ``numpy``, ``pools``, ``reclaim`` or ``scaling``, and
``python -m bench soak [--seconds N] [--threads 2]``.

Alone: Python's side and start-up. ``network``: echo servers, each in a process. ``natives``: jitted code against native
allocators. ``numpy``: arrays and pipelines in an arena (``bench.numpy_arrays``, ``bench.numpy_pipelines``). ``lab``: what
measuring costs. ``scaling``: two threads over one. ``fragmentation``: where slabs lie. ``soak``: threads, forks and checks,
for correctness only; it exits with 1 if anything was wrong. The smoke sizes of all but the network run in CI, so that nothing
here rots.
"""

from __future__ import annotations

import argparse
import sys

from bench import numpy_arrays, numpy_pipelines
from bench.blocks import big, small
from bench.fragmentation import fragmentation
from bench.lab import lab
from bench.measure import report, save
from bench.network import network
from bench.pairs import pairs
from bench.pools import pools
from bench.reclaim import reclaim
from bench.scaling import scaling
from bench.soak import soak
from bench.startup import startup
from bench.table import natives
from bench.ways import by_pointer, from_python, jitted_bulk, tail
from realalloc.lab import machine
from realalloc.lab.natives import find_natives


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument(
        "part",
        nargs="?",
        choices=["fragmentation", "lab", "natives", "network", "numpy", "pools", "reclaim", "scaling", "soak"],
        help="what to run",
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run? alone, all parts")
    parser.add_argument("--json", metavar="FILE", help="write results and the machine there")
    parser.add_argument("--traces", metavar="DIR", help="natives: replay the *.trc.xz there")
    parser.add_argument("--rss", action="store_true", help="natives: memory, too, in processes of their own")
    parser.add_argument("--only", metavar="NAME", default="", help="natives: rows with this in their name")
    parser.add_argument("--rounds", type=int, default=11, help="natives: turns of everybody in a row")
    parser.add_argument("--seconds", type=float, help="soak: how long, instead of 10**8 operations")
    parser.add_argument("--threads", type=int, default=2, help="soak: workers alive at once")
    options = parser.parse_args()
    if options.part != "natives" and not options.smoke and (options.only or options.traces or options.rss):
        parser.error("--only, --traces and --rss belong to natives")
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    smoke = options.smoke
    right = True
    if options.part == "soak" or (smoke and options.part is None):
        right = soak(options.seconds, options.threads, smoke=smoke)
    if options.part == "soak":
        sys.exit(0 if right else 1)
    results = []
    if options.part is None:
        results = [small(smoke=smoke), *from_python(smoke=smoke), tail(smoke=smoke), big(smoke=smoke)]
        results += [*pairs(smoke=smoke), jitted_bulk(smoke=smoke), by_pointer(find_natives()[0], smoke=smoke)]
        results += startup(smoke=smoke)
    if options.part == "pools" or (smoke and options.part is None):
        results += pools(smoke=smoke)
    if options.part == "reclaim" or (smoke and options.part is None):
        results += reclaim(smoke=smoke)
    if options.part == "scaling" or (smoke and options.part is None):
        results += scaling(find_natives()[0], smoke=smoke)
    if options.part == "fragmentation" or (smoke and options.part is None):
        results += fragmentation(smoke=smoke)
    if options.part == "numpy" or (smoke and options.part is None):
        results += [*numpy_arrays.rows(smoke=smoke), *numpy_pipelines.rows(smoke=smoke)]
    if options.part == "lab" or (smoke and options.part is None):
        results += lab(smoke=smoke)
    if options.part == "network":
        results += network(smoke=smoke)
    report(results, judge=not smoke)
    if options.part == "natives" or (smoke and options.part is None):
        results += natives(options.only, options.traces, smoke=smoke, rounds=options.rounds, rss=options.rss)
    if options.json:
        save(results, options.json)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
