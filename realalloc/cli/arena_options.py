"""The options of a program's default arena, and the variables in which ``realalloc.default_arena`` reads them.

Contract: a value that no arena could have is refused here, in one line; what depends on the other ones or on the machine
(``--min-free`` beyond ``--size``, more than may be locked) is refused by the arena. An option wins over its variable.
Imports neither numba nor an arena: the bounds stand here again, and a test holds them to the library's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, MutableMapping
from typing import Final, NamedTuple

from realalloc.cli.problems import BadInput
from realalloc.sizes import MAX_DECAY_S, as_bytes, as_int

SMALLEST, LARGEST = 256 << 10, 4 << 40  # MIN_BYTES and MAX_BYTES of an arena
PAGE: Final = 4096
MAX_ORDER: Final = 18  # MAX_MAX_ORDER of realalloc.mm.layout
CLASSES: Final = ("kernel", "fine")
HUGE: Final = ("auto", "true", "false", "1", "0")
AUTO, NEVER = "auto", "none"


def _size(low: int, high: int = LARGEST) -> Callable[[str, str], str]:
    return lambda text, what: str(as_int(as_bytes(text, what, low), what, low, high))


def _one_of(words: tuple[str, ...]) -> Callable[[str, str], str]:
    def read(text: str, what: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{what} must be {', '.join(words[:-1])} or {words[-1]}, not {text!r}")
        return text.lower()

    return read


def _seconds(text: str, what: str) -> str:
    if text.lower() == NEVER:
        return NEVER
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_DECAY_S:
        raise ValueError(f"{what} must be 0 to {MAX_DECAY_S} seconds, or {NEVER} for never, not {text!r}")
    return text


def _min_free(text: str, what: str) -> str:
    return AUTO if text.strip().lower() == AUTO else str(as_bytes(text, what))


def _order(text: str, what: str) -> str:
    try:
        return str(as_int(int(text), what, 0, MAX_ORDER))
    except ValueError:
        raise ValueError(f"{what} must be a whole number from 0 to {MAX_ORDER}, not {text!r}") from None


class Option(NamedTuple):
    """``read`` takes a value and whose it is; it returns it as the variable has it, or raises ValueError."""

    flag: str
    variable: str
    metavar: str
    read: Callable[[str, str], str]
    about: str

    def key(self) -> str:
        """Return the name that argparse keeps the value under."""
        return self.flag.removeprefix("--").replace("-", "_")

    def convert(self, text: str) -> str:
        """Read a value from the command line; argparse's type."""
        try:
            return self.read(text, self.flag)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


SIZE: Final = Option(
    "--size",
    "REALALLOC_SIZE",
    "SIZE",
    _size(SMALLEST),
    "address space of the arena; else as much as the machine has memory",
)
OPTIONS: Final = (
    SIZE,
    Option("--limit", "REALALLOC_LIMIT", "SIZE", _size(PAGE), "that the arena may make resident"),
    Option(
        "--decay", "REALALLOC_DECAY", "SECONDS", _seconds, f"until freed memory has gone back, or {NEVER}: it stays"
    ),
    Option("--min-free", "REALALLOC_MIN_FREE", "SIZE", _min_free, f"that ordinary requests leave, or {AUTO}"),
    Option("--huge-pages", "REALALLOC_HUGE_PAGES", "WHERE", _one_of(HUGE), "auto, true: everywhere, false: nowhere"),
    Option("--max-order", "REALALLOC_MAX_ORDER", "N", _order, f"the largest block is 4 KiB << N, 0 to {MAX_ORDER}"),
    Option("--classes", "REALALLOC_CLASSES", "NAME", _one_of(CLASSES), "sizes of small blocks: kernel or fine"),
    Option("--lock", "REALALLOC_LOCK", "SIZE", _size(0), "of the locked zone"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each variable."""
    for option in OPTIONS:
        about = f"{option.about} ({option.variable})"
        parser.add_argument(option.flag, metavar=option.metavar, type=option.convert, help=about)


def set_variables(args: argparse.Namespace, environ: MutableMapping[str, str]) -> None:
    """Put what was given into the variables; BadInput where one that was there already means nothing."""
    for option in OPTIONS:
        given = getattr(args, option.key())
        if given is not None:
            environ[option.variable] = given
        elif option.variable in environ:
            try:
                option.read(environ[option.variable], option.variable)
            except ValueError as error:
                raise BadInput(str(error)) from None
    if SIZE.variable not in environ:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        environ[SIZE.variable] = str(max(memory, SMALLEST))
