"""Tables, and a line of progress: with ``rich`` on a terminal if it is installed, else plain aligned text.

Guarantees: what goes into a pipe or a file is plain lines without control characters, whatever file names say.
Tables go to stdout, progress to stderr; in a pipe, progress is one line a stage.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

CLEAR_LINE = "\r\x1b[K"


def shown(text: str) -> str:
    """Return text that is safe to print: control characters and undecodable bytes are escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def use_rich(stream: TextIO) -> bool:
    """Say whether ``stream`` is a terminal and rich is there."""
    return stream.isatty() and importlib.util.find_spec("rich") is not None


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


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
    cells = [[shown(cell) for cell in row] for row in ([columns, *rows] if any(columns) else rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = [title]
    for row in cells:
        left = [row[0].ljust(widths[0])]
        pairs = zip(row[1:], widths[1:], strict=True)
        rest = row[1:] if len(columns) == 2 else [cell.rjust(width) for cell, width in pairs]
        lines.append("  " + "  ".join(left + rest).rstrip())
    return lines


class ProgressLine:
    """Shows stages on stderr: a bar, a line that is overwritten, or in a pipe a line a stage. A context manager.

    ``quiet`` shows nothing. Nothing is drawn before the first ``update``, so that others may use the line until then.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Choose how; nothing is shown yet."""
        self._stage = ""
        self._bar: Any = None
        self._task: Any = None
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` files of a stage are read."""
        fresh, self._stage = stage != self._stage, stage
        if self._quiet:
            return
        if use_rich(sys.stderr):
            self._draw(stage, done, total, fresh=fresh)
        elif self._terminal:
            text = f"{stage}: {done}/{total} files"
            sys.stderr.write(CLEAR_LINE + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif fresh:
            print(f"{stage}: {total} files", file=sys.stderr)

    def _draw(self, stage: str, done: int, total: int, *, fresh: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            # no refresh thread: it would run beside what is measured
            self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True, auto_refresh=False)
            self._bar.start()
        if fresh:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(stage, total=max(total, 1))
        self._bar.update(self._task, completed=done, refresh=True)

    def __enter__(self) -> Self:
        """Return the line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave a clean line behind."""
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.stop()
            elif self._terminal and self._stage and not self._quiet:
                sys.stderr.write(CLEAR_LINE)
                sys.stderr.flush()
