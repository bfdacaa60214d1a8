"""``realalloc bench``: how long an allocation takes, here and with everything one would use instead, side by side in one run.

Contract: that of :mod:`realalloc.cli.measuring`; unknown names are refused, too, before anything is measured.
jemalloc can only be loaded into a process that was started with room for it, so the command starts itself again with that.
"""

from __future__ import annotations

import argparse
from typing import Any

from realalloc.cli.again import start_again
from realalloc.cli.measuring import add_files, carry_out
from realalloc.cli.problems import count_of
from realalloc.text import print_table


class BenchCommand:
    """Measure allocation: latency and throughput, beside bytearray, NumPy, mmap, malloc and others."""

    name = "bench"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add = parser.add_argument
        add("workloads", metavar="WORKLOAD", nargs="*", help="what to run (default: everything); see --list")
        add("--list", action="store_true", help="say which workloads and peers there are")
        add("--quick", action="store_true", help="a dozen rows, an answer within a minute")
        add("--peer", metavar="NAME", action="append", default=[], help="only these contestants; may be repeated")
        add(
            "--view",
            choices=("jitted", "python", "both"),
            default="both",
            help="inside jitted code, or as Python sees it",
        )
        add(
            "--rounds",
            metavar="N",
            type=count_of("--rounds", 1000),
            help="turns of everybody in a row (11; --quick: 7)",
        )
        add("--seed", metavar="N", type=count_of("--seed", 1 << 30), default=1, help="of sizes and slots")
        add("--threads", metavar="N", type=count_of("--threads", 64), default=2, help="in rows of several threads")
        add("--latency", action=argparse.BooleanOptionalAction, default=True, help="time single operations, too")
        add("--rss", action=argparse.BooleanOptionalAction, help="watch resident memory (default: unless --quick)")
        add_files(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measure, print, write."""
        if getattr(args, "own_process", False):
            start_again()
        if args.list:
            return _list()
        from realalloc.lab.suite import Suite

        return carry_out(args, "rows", lambda: Suite(_options(args)))


def _options(args: argparse.Namespace) -> Any:
    from realalloc.lab.results import JITTED, PYTHON
    from realalloc.lab.suite import Options

    return Options(
        workloads=tuple(args.workloads),
        peers=tuple(args.peer),
        views=(PYTHON, JITTED) if args.view == "both" else (args.view,),
        rounds=args.rounds,
        seed=args.seed,
        threads=args.threads,
        quick=args.quick,
        latency=args.latency,
        rss=args.rss,
    )


def _list() -> int:
    from realalloc.lab import pythons, workloads
    from realalloc.lab.natives import find_natives
    from realalloc.lab.suite import peer_names
    from realalloc.lab.workloads import fragments

    rows = [(module.NAME, workloads.about(module)) for module in (*workloads.ALL, fragments)]
    print_table("workloads", ("", ""), rows)
    missing = {
        line.partition(":")[0]: line.partition(": ")[2]
        for found in (find_natives(), pythons.find((*pythons.BLOCKS, *pythons.POOLS)))
        for line in found[1]
    }
    print()
    print_table("peers", ("", ""), [(name, missing.get(name, "here")) for name in peer_names()])
    return 0
