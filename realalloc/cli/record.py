"""``realalloc record``: run a Python program as Python would, and write down what it allocates.

Contract: what can be refused is refused before the program starts: one line, exit code 2. After that stdin, stdout, stderr,
tracebacks and the exit code are the program's (128 + n where signal n ended it), and this command says one thing, on stderr:
what was recorded, and what was not. A trace is written however the program ended. Where it cannot be written (2), the log
that it would be made from is kept and named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from realalloc.cli.problems import count_of, refusing, size_of
from realalloc.cli.programs import checked_command
from realalloc.text import shown

if TYPE_CHECKING:
    from realalloc.lab.trace.recorder import Recorded

DOMAINS: Final = ("raw", "mem", "obj", "numpy")
EXIT_BAD_INPUT: Final = 2


def domains_of(text: str) -> tuple[str, ...]:
    """Make domains of ``raw,numpy``."""
    names = text.split(",")
    for name in names:
        if name not in DOMAINS:
            raise argparse.ArgumentTypeError(f"--domains: unknown domain {name!r}; there are: {', '.join(DOMAINS)}")
    return tuple(name for name in DOMAINS if name in names)


class RecordCommand:
    """Run a Python program and record its allocations as a trace."""

    name = "record"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add = parser.add_argument
        parser.usage = "realalloc record [options] [--] program.py [arguments], or -m module [arguments]"
        add("-o", "--output", metavar="TRACE", help="file to write (default: the program's name with .trace)")
        add("--domains", metavar="LIST", type=domains_of, default=",".join(DOMAINS), help="whose allocations to record")
        add("--min-size", metavar="SIZE", type=size_of("--min-size"), help="leave out what is smaller")
        add(
            "--events",
            metavar="N",
            type=count_of("--events", 1 << 31),
            help="stop recording after so many (20 million)",
        )
        add("-q", "--quiet", action="store_true", help="do not say what was recorded")
        add("-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER, help="a module and its arguments")
        add("program", nargs=argparse.REMAINDER, help="a program and its arguments")

    def run(self, args: argparse.Namespace) -> int:
        """Check, run, write."""
        command = checked_command("record", ["-m", *args.module] if args.module is not None else args.program)
        from realalloc.lab.report.files import check_writable
        from realalloc.lab.trace import raw
        from realalloc.lab.trace.recorder import Options, program_name, record

        output = Path(args.output or f"{program_name(command)}.trace")
        options = Options(args.domains, args.min_size or 0, args.events or raw.DEFAULT_EVENTS)
        with refusing():
            check_writable(output)
            recorded = record(command, output, options)
        if recorded.problem:
            print(f"realalloc record: error: {shown(recorded.problem)}", file=sys.stderr)
            return EXIT_BAD_INPUT
        if not args.quiet:
            print(f"realalloc record: {_told(recorded, output)}", file=sys.stderr)
        return recorded.code


def _told(recorded: Recorded, output: Path) -> str:
    """Say what was recorded and what was not."""
    parts = [
        f"{recorded.events:,} events of {recorded.threads} thread{'s'[: recorded.threads != 1]} in {shown(str(output))}"
    ]
    return "; ".join([*parts, *recorded.remarks])
