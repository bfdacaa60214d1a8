"""What the user can put right, and how the library's refusals become it.

``BadInput`` is the one exception that ends a command with exit code 2 and its text as the one line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator

from realalloc.sizes import as_bytes, as_int


class BadInput(Exception):
    """The command line asks for something that cannot be."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what constructors raise for bad arguments into BadInput; around constructors only, so that bugs stay loud."""
    try:
        yield
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        raise BadInput(f"{name}{error.strerror or error}") from error
    except (ValueError, TypeError, MemoryError, RuntimeError) as error:
        raise BadInput(str(error)) from error


def size_of(what: str, low: int = 1) -> Callable[[str], int]:
    """Make an argparse type: a size such as ``64KiB``."""

    def convert(text: str) -> int:
        try:
            return as_bytes(text, what, low)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def count_of(what: str, high: int) -> Callable[[str], int]:
    """Make an argparse type: an integer of at least 1."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{what} must be a whole number, not {text!r}") from None
        try:
            return as_int(number, what, 1, high)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
