"""Text for people: what is safe to print, tables that fit a width, colours only where there is a terminal.

Guarantees: what goes into a pipe or a file is plain lines without control characters, whatever file names say.
With ``rich`` on a terminal if it is installed, else plain aligned text. Everything here goes to stdout.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TextIO

PIPE_WIDTH: Final = 100  # of prose and tables where nobody says how wide it is
GAP: Final = "  "
SHORTEST_NAME: Final = 8  # cells of a first column that had to give way


class Line(NamedTuple):
    """A line, and how it looks on a terminal: a style of rich such as ``bold green``, or nothing."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: ``rank`` 0 stays, the highest rank is dropped first where the width does not do."""

    head: str
    left: bool = False
    rank: int = 0


def shown(text: str) -> str:
    """Return text that is safe to print: control characters and undecodable bytes are escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def cell_width(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for a wide character, none for one that is put on another."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in ("W", "F")) for char in text
    )


def shortened(text: str, width: int) -> str:
    """Return text of at most ``width`` cells; what was longer ends with two dots."""
    if cell_width(text) <= width:
        return text
    while text and cell_width(text) > width - 2:
        text = text[:-1]
    return (text + "..")[:width]


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return prose as lines of at most ``width``; the second and all others are indented."""
    lines = textwrap.wrap(shown(text), width, subsequent_indent=indent, break_on_hyphens=False)
    return [shortened(line, width) for line in lines]


def use_rich(stream: TextIO) -> bool:
    """Say whether ``stream`` is a terminal and rich is there."""
    return stream.isatty() and importlib.util.find_spec("rich") is not None


def terminal_width() -> int:
    """Return the columns of the terminal, or what ``COLUMNS`` says, or ``PIPE_WIDTH``."""
    return max(1, shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def print_lines(lines: Iterable[Line]) -> None:
    """Print lines, in their styles where that can be."""
    if not use_rich(sys.stdout):
        print("\n".join(line.text for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout)
    for line in lines:
        console.print(Text(line.text, line.style), soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title; the first column is names, the others are right-aligned."""
    if use_rich(sys.stdout):
        _rich_table(title, columns, rows)
    else:
        print("\n".join(plain_table(title, columns, rows)))


def _rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, "bold"), title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 or len(columns) == 2 else "right")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    Console(file=sys.stdout).print(table)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an aligned table."""
    made = [Column(head, left=number == 0 or len(columns) == 2) for number, head in enumerate(columns)]
    lines = fit_table(made, rows)
    return [title, *(lines if any(columns) else lines[1:])]


def fit_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return the head and a line a row, of at most ``width`` cells.

    Columns in which no row says anything are left out if they have a rank; then those of the highest rank, and then names in
    the first column get shorter; what is still too long ends with two dots.
    """
    cells = [[shown(column.head) for column in columns], *([shown(cell) for cell in row] for row in rows)]
    widths = [max(cell_width(row[k]) for row in cells) for k in range(len(columns))]
    said = [not column.rank or any(row[k] for row in cells[1:]) for k, column in enumerate(columns)]
    kept = [k for k in range(len(columns)) if said[k]]
    if width is not None:
        while _total(widths, kept) > width and any(columns[k].rank for k in kept):
            kept.remove(max(kept, key=lambda k: columns[k].rank))
        widths[0] = min(widths[0], max(SHORTEST_NAME, widths[0] - _total(widths, kept) + width))
    lines = []
    for row in cells:
        parts = [_aligned(shortened(row[k], widths[k]), widths[k], left=columns[k].left) for k in kept]
        line = (GAP + GAP.join(parts)).rstrip()
        lines.append(line if width is None else shortened(line, width))
    return lines


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(len(GAP) + widths[k] for k in kept)


def _aligned(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - cell_width(text))
    return text + space if left else space + text
