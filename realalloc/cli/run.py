"""``realalloc run``: run a Python program that nobody edits, with NumPy's arrays in an arena.

Contract: what can be refused is refused before the program starts: one line, exit code 2. Then this process becomes the
program, as Python itself would run it: arguments, ``sys.path``, ``__main__``, tracebacks, signals and the exit code are the
program's. NumPy's default handler is the arena's (``realalloc.numpy.install``) from the moment that NumPy is imported; what
the arena cannot serve comes from NumPy's own allocator, unless ``--no-fallback``.
What the program forks has the arena, too. A Python that it starts anew (``spawn``, ``forkserver``, a subprocess) has one of
its own with ``--children`` or ``REALALLOC_NUMPY=1``; ``REALALLOC_NUMPY=0`` runs the program without any of this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from realalloc.cli.arena_options import add_options, set_variables
from realalloc.cli.problems import BadInput
from realalloc.cli.programs import checked_command, this_python
from realalloc.sizes import as_alignment, as_bytes

VARIABLE: Final = "REALALLOC_NUMPY"
CONFIG: Final = "REALALLOC_RUN"  # for inject/arena.py
INJECT: Final = Path(__file__).parents[1] / "inject"
ROOT: Final = Path(__file__).parents[2]
LOWEST, HIGHEST = 16, 2 << 20  # MIN_ALIGN and MAX_ALIGN of realalloc.lease.datarecord, which needs numba


def alignment(text: str) -> int:
    """Read ``--align``; argparse's type."""
    try:
        number = as_alignment(as_bytes(text, "--align"), "--align")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not LOWEST <= number <= HIGHEST:
        raise argparse.ArgumentTypeError(f"--align must be {LOWEST} to {HIGHEST}, not {number}")
    return number


class RunCommand:
    """Run a Python program with NumPy's arrays in an arena."""

    name = "run"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add = parser.add_argument
        parser.usage = (
            "realalloc run [options] [--] program.py [arguments], or -m module [arguments], or -c code [arguments]"
        )
        add_options(parser)
        add("--align", metavar="SIZE", type=alignment, default=LOWEST, help="of every array")
        fallback = "what the arena cannot serve comes from NumPy's own allocator; else it is a MemoryError"
        add("--fallback", action=argparse.BooleanOptionalAction, default=True, help=fallback)
        add(
            "--children",
            action="store_true",
            help=f"each Python that the program starts gets an arena, too ({VARIABLE}=1)",
        )
        add("--stats", action="store_true", help="when the program ends, say on stderr what NumPy asked for")
        add("-m", dest="module", metavar="MODULE", nargs=argparse.REMAINDER, help="a module and its arguments")
        add("-c", dest="code", metavar="CODE", nargs=argparse.REMAINDER, help="code and its arguments")
        add("program", nargs=argparse.REMAINDER, help="a program and its arguments")

    def run(self, args: argparse.Namespace) -> int:
        """Check everything, then become the program."""
        program = args.program
        for option, given in (("-m", args.module), ("-c", args.code)):
            program = program if given is None else [option, *given]
        command = [*this_python(), *checked_command("run", program)]
        environ = _environment(args)
        sys.stdout.flush()
        if args.own_process:
            os.execve(command[0], command, environ)  # noqa: S606
        code = subprocess.run(command, env=environ, check=False).returncode  # noqa: S603
        return code if code >= 0 else 128 - code


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the program's environment; BadInput for what cannot be."""
    environ = dict(os.environ)
    wanted = environ.get(VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise BadInput(f"{VARIABLE} must be 0 or 1, not {wanted!r}")
    if wanted == "0":
        return environ
    if environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise BadInput("NumPy's allocator hook needs machine code: NUMBA_DISABLE_JIT is set")
    set_variables(args, environ)  # realalloc.default_arena reads them, which the program can use itself
    outer = environ.get("PYTHONPATH")
    config = {
        "root": str(ROOT),
        "align": args.align,
        "fallback": args.fallback,
        "stats": args.stats,
        "children": args.children or wanted == "1",
        "pythonpath": outer,
    }
    environ[CONFIG] = json.dumps(config)
    environ["PYTHONPATH"] = os.pathsep.join([str(INJECT), *([outer] if outer else [])])
    return environ
