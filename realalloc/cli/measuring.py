"""What commands that measure share: where a report goes, and how they end.

Contract: destinations are checked before anything is measured. Ctrl-C ends a run: what was measured is printed and written,
with exit code 130. Exit code 1 if a row could not be measured. With ``-`` as a destination stdout gets that and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from realalloc.cli.output import ProgressLine
from realalloc.cli.problems import refusing
from realalloc.cli.report import STDOUT, add_destinations
from realalloc.text import shown

if TYPE_CHECKING:
    from realalloc.lab.results import Report

EXIT_INTERRUPTED = 130


class Measurement(Protocol):
    """A run that makes a report."""

    failed: bool

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> Report:
        """Measure."""


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a report goes."""
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured; - is stdout")
    add_destinations(parser)


def carry_out(args: argparse.Namespace, unit: str, make: Callable[[], Measurement]) -> int:
    """Make a measurement, which may refuse its options, run it, print, write; return the exit code."""
    from realalloc.lab.report import check_destinations, print_report, save

    files = {"json": args.json, "csv": args.csv, "html": args.html, "png": args.png}
    to_stdout = STDOUT in files.values()
    with refusing():
        check_destinations(**files)
        measurement = make()
    with ProgressLine(unit=unit, quiet=to_stdout) as line:
        report = measurement.run(line.update)
    if not to_stdout:
        print_report(report)
    save(report, **files)
    for path in files.values():
        if path not in (None, STDOUT):
            print(f"wrote {shown(path)}", file=sys.stderr)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return 1 if measurement.failed else 0
