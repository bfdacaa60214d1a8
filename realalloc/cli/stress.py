"""``realalloc stress``: use an arena in every way at once, and prove every block.

Contract: exit code 0 only if every check of every process held; 1 otherwise, with the seed and the shortest command that
runs the failure again on stderr; 2 for what cannot be, before anything runs; 130 after Ctrl-C, when all was freed, checked
and reported. ``--json`` prints the verdict on stdout and nothing else there. How it goes is on stderr: live on a terminal,
else a line in a while.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from realalloc.cli.live import LiveView
from realalloc.cli.output import print_json
from realalloc.cli.problems import count_of, refusing, size_of
from realalloc.lab.stress import ABUSES, KINDS, Options, Verdict
from realalloc.lab.stress.options import ABUSE, MIX
from realalloc.sizes import format_bytes
from realalloc.text import print_table, shown

EXIT_INTERRUPTED = 130
DEFAULTS = Options()


def number(text: str) -> float:
    """Read a number; argparse's type."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


class StressCommand:
    """Abuse an arena with threads, processes, forks and signals, and check every block."""

    name = "stress"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add, default = parser.add_argument, DEFAULTS
        add("--seconds", metavar="S", type=number, default=default.seconds, help="how long")
        add(
            "--operations",
            metavar="N",
            type=count_of("--operations", 10**15),
            default=0,
            help="end after so many verified blocks of each process instead",
        )
        add("--threads", metavar="N", type=count_of("--threads", 64), default=default.threads, help="of each process")
        add(
            "--processes",
            metavar="N",
            type=int,
            default=default.processes,
            help="processes beside the first one, each with an arena of its own",
        )
        add("--seed", metavar="N", type=int, default=default.seed, help="of sizes, kinds and slots")
        add(
            "--sizes",
            metavar="DIST",
            default=default.sizes,
            help="of blocks: log:LO..HI, uniform:LO..HI, fixed:SIZE, mix:SIZE=WEIGHT,...",
        )
        add(
            "--hold",
            metavar="STYLE:N",
            default=default.hold,
            help="blocks that a thread holds, and which one goes next: random, fifo or lifo",
        )
        add("--mix", metavar="KIND=WEIGHT,...", default=MIX, help=f"kinds of work: {', '.join(KINDS)}")
        add("--abuse", metavar="ACT=RATE,...", default=ABUSE, help=f"acts a second, or none: {', '.join(ABUSES)}")
        add(
            "--faults",
            metavar="P",
            type=number,
            default=default.faults,
            help="probability that a pool's backing allocator is made to fail",
        )
        add("--arena", metavar="SIZE", type=size_of("--arena"), default="64MiB", help="of each process")
        add(
            "--limit", metavar="SIZE", type=size_of("--limit"), default=0, help="that pages may make resident (0: none)"
        )
        add(
            "--rss-limit",
            metavar="SIZE",
            type=size_of("--rss-limit"),
            default=0,
            help="fail, and end, when a process's RSS is above (0: none)",
        )
        add("--interval", metavar="S", type=number, default=default.interval, help="seconds between samples")
        add("--json", action="store_true", help="print the verdict as JSON, with all samples")
        add("--png", metavar="FILE", help="draw memory, counts and rates over time")
        add("--html", metavar="FILE", help="write the verdict and the charts as one page")

    def run(self, args: argparse.Namespace) -> int:
        """Stress, report, and say whether all held."""
        from realalloc.lab.report import check_destinations

        with refusing():
            names = DEFAULTS.as_dict()
            options = Options(**{name: getattr(args, name) for name in names})
            check_destinations(html=args.html, png=args.png)
        verdict = _run(options)
        _write(verdict, args)
        if args.json:
            print_json(verdict.as_dict())
        else:
            print_verdict(verdict)
        sys.stdout.flush()
        _complain(verdict)
        if verdict.interrupted:
            return EXIT_INTERRUPTED
        return 0 if verdict.ok else 1


def _run(options: Options) -> Verdict:
    from realalloc.lab.stress.running import Run

    with refusing():  # only what cannot be made: a bug in the run stays loud
        made = Run(options)
    with made, LiveView() as view:
        return made.run(view.update)


def _write(verdict: Verdict, args: argparse.Namespace) -> None:
    from realalloc.lab.report.files import write_bytes
    from realalloc.lab.stress.page import html_bytes, png_bytes

    for path, draw in ((args.png, png_bytes), (args.html, html_bytes)):
        if path is not None:
            write_bytes(path, draw(verdict))
            print(f"wrote {shown(path)}", file=sys.stderr)


def print_verdict(verdict: Verdict) -> None:
    """Print what was done and whether it held."""
    processes = verdict.processes
    seconds = max((process.seconds for process in processes), default=0.0)
    read = sum(process.read_bytes for process in processes)
    print(
        f"{verdict.verified:,} blocks filled, and read in full before they were freed; {format_bytes(read)} read;",
        end=" ",
    )
    print(
        f"{verdict.verified / seconds if seconds else 0:,.0f} a second over {seconds:.1f} s; seed {verdict.options.seed}\n"
    )
    kinds = [kind for kind in KINDS if any(process.taken.get(kind) for process in processes)]
    rows = [(kind, *(f"{_sum(processes, part, kind):,}" for part in ("taken", "freed", "full"))) for kind in kinds]
    print_table("work", ("", "taken", "verified", "no memory"), rows)
    acts = {act: _sum(processes, "abuses", act) for act in ABUSES}
    done = [f"{act} {count:,}" for act, count in acts.items() if count]
    done += [f"{what} {count:,}" for what, count in _more(processes).items() if count]
    print(f"\nmeanwhile: {', '.join(done) or 'nothing'}\n")
    for process in processes:
        print(f"{process.name}, seed {process.seed}")
        for check in process.checks:
            print(f"  {check.mark:<4}  {check.name:<11} {shown(check.detail)}")
    print(f"\n{'passed' if verdict.ok else 'FAILED'}{', interrupted' if verdict.interrupted else ''}")


def _sum(processes: Any, part: str, name: str) -> int:
    return sum(getattr(process, part).get(name, 0) for process in processes)


def _more(processes: Any) -> dict[str, int]:
    names = {"signals that raised": "pelted", "injected failures": "injected", "reallocations": "reallocs"}
    return {what: sum(getattr(process, name) for process in processes) for what, name in names.items()}


def _complain(verdict: Verdict) -> None:
    """Say on stderr what did not hold, and how to see it again."""
    if verdict.ok:
        return
    for process, check in verdict.failed():
        print(f"realalloc stress: {process}: {check.name}: {shown(check.detail)}", file=sys.stderr)
    for reason in verdict.lost:
        print(f"realalloc stress: {shown(reason)}", file=sys.stderr)
    print(f"realalloc stress: seed {verdict.options.seed}; again: {verdict.reproduce}", file=sys.stderr)
