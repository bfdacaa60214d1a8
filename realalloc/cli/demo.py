"""``realalloc demo``: read and hash a tree through a pool's buffers, beside fresh bytearrays, and check every digest.

Contract: exit code 0 only if every digest agrees with plain reading, every buffer of the pool begins on a page,
``Arena.validate()`` passes and every block came back; 1 otherwise, with the reason on stderr. Files that cannot be read,
or that change meanwhile, are counted, named and left out. What is printed says what was measured, in favour or not.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import textwrap
from typing import TYPE_CHECKING

from realalloc.cli.output import ProgressLine, print_json
from realalloc.cli.problems import count_of, refusing, size_of
from realalloc.sizes import format_bytes
from realalloc.text import print_table, shown

if TYPE_CHECKING:
    from realalloc.demo import Report
    from realalloc.demo.report import Summary

THIRD_PARTY = ("site-packages", "dist-packages")
WIDTH = 100
SMALL_SHARE = 0.1  # of the CPU time: below it, throughput cannot tell buffers apart
NAMED = 5  # files named of each kind; --json names all


def default_path() -> str:
    """Return the directory of the running Python's standard library."""
    return sysconfig.get_path("stdlib")


class DemoCommand:
    """Read and hash a tree through pool buffers, beside fresh bytearrays."""

    name = "demo"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add = parser.add_argument
        cpus = len(os.sched_getaffinity(0))
        stdlib = "the standard library, without third-party packages"
        add("path", metavar="PATH", nargs="?", help=f"directory or file to read (default: {stdlib})")
        add("--threads", metavar="N", type=count_of("--threads", 256), default=min(4, cpus), help="reading threads")
        add("--buffer", metavar="SIZE", type=size_of("--buffer"), default="64KiB", help="bytes of one buffer")
        add(
            "--buffers",
            metavar="N",
            type=count_of("--buffers", 1 << 20),
            help="reserve of the pool, min_nr (default: twice the threads)",
        )
        add(
            "--arena",
            metavar="SIZE",
            type=size_of("--arena"),
            help="size of the arena (default: 64MiB, or four times the pool)",
        )
        add("--rounds", metavar="N", type=count_of("--rounds", 1000), default=3, help="rounds of both ways")
        add("--json", action="store_true", help="print JSON, every number and every file that is named")

    def run(self, args: argparse.Namespace) -> int:
        """Run the demo and print what it found."""
        path = default_path() if args.path is None else args.path
        if not os.path.lexists(path):  # before numba is imported: a wrong path is answered at once
            with refusing():
                os.lstat(path)
        from realalloc.demo import Demo, Options

        with refusing():
            demo = Demo(
                Options(
                    path=path,
                    threads=args.threads,
                    buffer=args.buffer,
                    buffers=2 * args.threads if args.buffers is None else args.buffers,
                    rounds=args.rounds,
                    arena=args.arena,
                    prune=THIRD_PARTY if args.path is None else (),
                )
            )
        with demo, ProgressLine(quiet=args.json) as line:
            report = demo.run(lambda at: line.update(at.stage, at.done, at.total))
        if args.json:
            print_json(report.as_dict())
        else:
            print_report(report)
        return 0 if report.ok else 1


def print_report(report: Report) -> None:
    """Print what was read, the comparison, how to read it, pool and arena, and the verdict."""
    _print_input(report)
    _print_comparison(report)
    _print_memory(report)
    _print_verdict(report)


def _print_input(report: Report) -> None:
    option = report.options
    count = "1 file" if report.files == 1 else f"{report.files:,} files"
    print(f"read {shown(report.root)}: {count}, {report.nbytes:,} bytes ({format_bytes(report.nbytes)})")
    left_out = {
        "symbolic links": report.links,
        "pipes, sockets and devices": report.special,
        "directories of third-party packages": report.pruned,
    }
    passed = "; ".join(f"{what} {count:,}" for what, count in left_out.items() if count)
    if passed:
        print(f"left out: {passed}")
    _name(f"{len(report.unreadable):,} unreadable", [f"{path}: {reason}" for path, reason in report.unreadable])
    _name(f"{len(report.changed):,} changed while the demo ran, not compared", report.changed)
    print(f"{option['rounds']} rounds of each way, alternating; {option['threads']} threads; buffers of ", end="")
    print(f"{format_bytes(option['buffer'])}; pool of {option['buffers']}; numbers are medians of a pass\n")


def _name(what: str, names: list[str]) -> None:
    if names:
        print(f"{what}:")
        for name in names[:NAMED]:
            print(f"  {shown(name)}")
        if len(names) > NAMED:
            print(f"  and {len(names) - NAMED:,} more")


def _ratio(pool: float, fresh: float) -> str:
    return f"{pool / fresh:.2f}" if fresh else "-"


def _print_comparison(report: Report) -> None:
    pool, fresh = report.summaries

    def row(what: str, pick: str, spell: str, scale: float = 1.0) -> tuple[str, str, str, str]:
        a, b = getattr(pool, pick) * scale, getattr(fresh, pick) * scale
        return what, spell.format(a), spell.format(b), _ratio(a, b)

    rows = [
        row("throughput, MiB/s", "mib_per_second", "{:,.1f}"),
        row("wall clock, s", "seconds", "{:.3f}"),
        row("CPU user, s", "user_seconds", "{:.3f}"),
        row("CPU system, s", "system_seconds", "{:.3f}"),
        row("minor page faults", "minor_faults", "{:,.0f}"),
        row("RSS growth at peak, KiB", "rss_growth", "{:,.0f}", 1 / 1024),
        row("buffers taken", "reads", "{:,.0f}"),
        row("one buffer alone, ns", "buffer_ns", "{:,.0f}"),
        row("buffers' share of CPU, %", "buffer_share", "{:.2f}", 100.0),
    ]
    print_table("one pass over all files", ("", "pool", "bytearray", "pool / bytearray"), rows)
    print(_reading_help(pool, fresh, report))


def _reading_help(pool: Summary, fresh: Summary, report: Report) -> str:
    """Say what was measured and what the numbers mean: nothing that they do not show."""
    speeds = {way: [p.mib_per_second for p in report.passes if p.way == way] for way in (pool.way, fresh.way)}
    spread = ", ".join(f"{way} {min(all_):,.0f} to {max(all_):,.0f}" for way, all_ in speeds.items())
    average = format_bytes(round(report.nbytes / fresh.reads)) if fresh.reads else "0 B"
    if max(pool.buffer_share, fresh.buffer_share) < SMALL_SHARE:
        verdict = (
            "Reading and hashing are nearly all of the work, so throughput says little about buffers: compare its ratio "
            "with its spread. The buffers themselves are the rows of page faults, RSS growth and the last two."
        )
    else:
        verdict = (
            f"Buffers are much of the work here: a bytearray of {format_bytes(report.options['buffer'])} is zeroed for "
            f"every read, and a read brings {average} on average."
        )
    text = (
        "Both ways open, readinto and blake2b the same files with the same code; only the buffer differs: pool.alloc() "
        "or a new bytearray for every read. Files come from the page cache; the C heap is trimmed before every pass. "
        f"{verdict} Throughput over the rounds, MiB/s: {spread}. A loop that keeps one bytearray per thread should save "
        "as much (not measured here); a pool does it for buffers that are handed on. Faults, CPU and RSS are the whole "
        "process's, RSS is sampled every 10 ms; the pool's memory is resident before the first pass, and so in neither "
        "column but in the line below."
    )
    return "\n" + textwrap.fill(text, WIDTH) + "\n"


def _print_memory(report: Report) -> None:
    pool, arena, setup = report.pool, report.arena, report.setup
    if setup is not None:
        print(f"arena and pool made once in {setup.seconds * 1e3:.1f} ms: {setup.minor_faults:,} page faults, ", end="")
        print(
            f"RSS +{format_bytes(max(0, setup.rss_growth))}; peak RSS of all passes {format_bytes(report.rss_peak)}\n"
        )
    print_table(
        "pool",
        ("", ""),
        [
            ("reserve", f"{pool['curr_nr']} of {pool['min_nr']}, lowest {pool['low']}"),
            ("taken from the reserve", f"{pool['gets_reserve']:,}"),
            ("taken from kmalloc", f"{pool['gets_alloc']:,}"),
            ("returned", f"{pool['puts_reserve'] + pool['puts_free']:,}, {pool['outstanding']} still out"),
        ],
    )
    sizes = ("size", "metadata", "committed", "peak_committed", "allocated", "free", "largest_free")
    rows = [(name.replace("_", " "), format_bytes(arena[name])) for name in sizes]
    print_table("arena, with the pool still in it", ("", ""), [*rows, ("leases", str(arena["leases"]))])


def _print_verdict(report: Report) -> None:
    checks = report.checks
    if checks is None:
        return
    marks = {
        f"{report.files - len(report.changed):,} digests agree with plain reading in every pass": checks.digests,
        "every pool buffer begins on a page": checks.aligned,
        "Arena.validate() passes": checks.valid,
        "every block came back, the arena is empty": checks.whole,
    }
    print()
    for text, held in marks.items():
        print(f"{'ok  ' if held else 'FAIL'}  {text}")
    sys.stdout.flush()
    for text in checks.broken:
        print(f"realalloc demo: {text}", file=sys.stderr)
    for path in report.disagreeing[:NAMED]:
        print(f"realalloc demo: wrong digest: {shown(path)}", file=sys.stderr)
