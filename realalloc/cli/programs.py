"""What the commands that run a Python program share: is it there, and how Python itself is started for it.

Contract: nothing is imported or run; BadInput, with one line, for a program that Python could not start either.
"""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

from realalloc.cli.problems import BadInput, refusing


def checked_command(what: str, program: list[str]) -> list[str]:
    """Return what Python shall run: ``file args…``, ``-m module args…`` or ``-c code args…``; BadInput if it is not there.

    ``what`` is the subcommand; a ``--`` in front of the program is dropped.
    """
    command = program[1:] if program[:1] == ["--"] else program
    if not command:
        raise BadInput(f"no program is given: realalloc {what} program.py [arguments]")
    if command[0] == "-m":
        if len(command) < 2:
            raise BadInput("-m needs the name of a module")
        top = command[1].partition(".")[0]
        builtin = importlib.machinery.BuiltinImporter.find_spec(top) or importlib.machinery.FrozenImporter.find_spec(
            top
        )
        if builtin is None and importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is None:  # noqa: PTH109
            raise BadInput(f"no module named {command[1]!r}")
    elif command[0] == "-c":
        if len(command) < 2:
            raise BadInput("-c needs code")
    elif command[0].startswith("-"):
        raise BadInput(f"unknown option {command[0]}: options of the program come after its name")
    else:
        with refusing():
            (Path(command[0]) if not Path(command[0]).is_dir() else Path(os.devnull)).open("rb").close()
    return command


def this_python() -> list[str]:
    """Return the interpreter and the options it was started with; BadInput for those under which it does not listen to us."""
    for flag in ("isolated", "ignore_environment", "no_site"):
        if getattr(sys.flags, flag):
            raise BadInput("an arena is put in place through PYTHONPATH and site: start Python without -I, -E and -S")
    if not sys.executable:
        raise BadInput("this Python does not know where its interpreter is")
    unbuffered = ["-u"] if getattr(sys.stdout, "write_through", False) else []
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, *unbuffered]
