"""The command line: ``realalloc`` and ``python -m realalloc``, one file a subcommand.

Contract: bad input is one line on stderr and exit code 2, before anything is written. A command that ran and found
something wrong returns 1. Ctrl-C is one line and 130, a reader of a pipe that went away is 141 and silence.
``--help`` imports neither numba nor an arena: subcommands import what they need when they run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, Protocol

from realalloc.cli.bench import BenchCommand
from realalloc.cli.demo import DemoCommand
from realalloc.cli.info import InfoCommand
from realalloc.cli.problems import BadInput
from realalloc.cli.record import RecordCommand
from realalloc.cli.replay import ReplayCommand
from realalloc.cli.report import ReportCommand
from realalloc.cli.run import RunCommand
from realalloc.cli.stress import StressCommand
from realalloc.cli.warmup import WarmupCommand
from realalloc.errors import OutOfMemory
from realalloc.text import shown

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_PIPE = 141  # 128 + SIGPIPE


class Command(Protocol):
    """A subcommand: the first line of its class docstring is its help."""

    name: str

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code; BadInput for what the user can put right."""


COMMANDS: tuple[Command, ...] = (
    BenchCommand(),
    DemoCommand(),
    InfoCommand(),
    RecordCommand(),
    ReplayCommand(),
    ReportCommand(),
    RunCommand(),
    StressCommand(),
    WarmupCommand(),
)


class Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and leaving: one line is enough."""

    def error(self, message: str) -> NoReturn:
        """Refuse."""
        raise BadInput(f"{message} (see {self.prog} --help)")


def make_parser() -> Parser:
    """Make the parser of all commands."""
    from realalloc import __version__

    parser = Parser(prog="realalloc", description="The Linux kernel's memory stack in user space, for Python.")
    parser.add_argument("--version", action="version", version=f"realalloc {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        about = (command.__doc__ or "").strip()
        sub = subparsers.add_parser(
            command.name,
            help=about.partition("\n")[0],
            description=about.partition("\n")[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.prepare_parser(sub)
        sub.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    where = "realalloc"
    with _printable():
        try:
            args = make_parser().parse_args(argv)
            args.own_process = argv is None  # not called by a program: the command may start itself again
            where = f"realalloc {args.command.name}"
            code = int(args.command.run(args))
            sys.stdout.flush()
        except SystemExit as done:  # --help and --version
            return int(done.code or 0)
        except KeyboardInterrupt:
            return _complain(where, "interrupted", EXIT_INTERRUPTED)
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError):  # else the interpreter complains when it flushes at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_PIPE
        except (BadInput, OutOfMemory, OSError) as error:
            return _complain(where, f"error: {error}", EXIT_BAD_INPUT)
        return code


def _complain(where: str, text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"{where}: {shown(line)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """Let file names that the terminal's encoding cannot say be escaped instead of ending the program."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    saved = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors=saved)
