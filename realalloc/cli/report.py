"""``realalloc report``: show a saved run again, as a table, a page, a picture, or CSV.

Contract: nothing is measured. A file that is no report says what is wrong and where, with exit code 2; destinations are
checked before anything is written, and each is written whole or not at all. With ``--csv -`` stdout gets CSV and nothing else.
"""

from __future__ import annotations

import argparse
import sys

from realalloc.cli.problems import refusing
from realalloc.text import shown

STDOUT = "-"


class ReportCommand:
    """Show a saved run again, as table, HTML, PNG or CSV."""

    name = "report"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        parser.add_argument("file", metavar="FILE.json", help="what --json of a run wrote")
        add_destinations(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Read, write what is asked for, print."""
        from realalloc.lab.report import print_report, save
        from realalloc.lab.report.files import read_json

        with refusing():
            report = read_json(args.file)
            save(report, csv=args.csv, html=args.html, png=args.png)
        if args.csv != STDOUT:
            print_report(report)
        for path in (args.html, args.png, args.csv):
            if path not in (None, STDOUT):
                print(f"wrote {shown(path)}", file=sys.stderr)
        return 0


def add_destinations(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes a report, but for ``--json``."""
    parser.add_argument("--html", metavar="FILE", help="write a page with tables and charts that needs nothing else")
    parser.add_argument("--png", metavar="FILE", help="write the charts as a picture")
    parser.add_argument("--csv", metavar="FILE", help="write one line per row and peer; - is stdout")
