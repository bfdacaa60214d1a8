"""JSON on stdout, and a line of progress on stderr: with ``rich`` on a terminal if it is installed, else plain text.

In a pipe, progress is one line a stage. Tables are printed by ``realalloc/text.py``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from types import TracebackType
from typing import Any, Self

from realalloc.text import use_rich

CLEAR_LINE = "\r\x1b[K"


def overwrite(text: str = "") -> None:
    """Put text into the terminal's line on stderr, as much as fits, in place of what is there."""
    sys.stderr.write(CLEAR_LINE + text[: shutil.get_terminal_size().columns - 1])
    sys.stderr.flush()


class LeavesACleanLine:
    """A context manager for what draws on stderr: with ``rich`` (``_live``), or in one line (``_drawn``)."""

    _live: Any = None
    _drawn: bool = False

    def __enter__(self) -> Self:
        """Return what draws."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take away what is drawn."""
        with contextlib.suppress(OSError):
            if self._live is not None:
                self._live.stop()
            elif self._drawn:
                overwrite()


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


class ProgressLine(LeavesACleanLine):
    """Shows stages on stderr: a bar, a line that is overwritten, or in a pipe a line a stage. A context manager.

    ``quiet`` shows nothing; ``unit`` is what is counted. Nothing is drawn before the first ``update``,
    so that others may use the line until then.
    """

    def __init__(self, *, quiet: bool = False, unit: str = "files") -> None:
        """Choose how; nothing is shown yet."""
        self._stage = ""
        self._task: Any = None
        self._quiet = quiet
        self._unit = unit
        self._terminal = sys.stderr.isatty()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that a stage is on, and ``done`` of ``total``."""
        fresh, self._stage = stage != self._stage, stage
        if self._quiet:
            return
        if use_rich(sys.stderr):
            self._draw(stage, done, total, fresh=fresh)
        elif self._terminal:
            self._drawn = True
            overwrite(f"{stage}: {done}/{total} {self._unit}")
        elif fresh:
            print(f"{stage}: {f'{done} of ' if done else ''}{total} {self._unit}", file=sys.stderr)

    def _draw(self, stage: str, done: int, total: int, *, fresh: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if self._live is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            # no refresh thread: it would run beside what is measured
            self._live = Progress(*columns, console=Console(file=sys.stderr), transient=True, auto_refresh=False)
            self._live.start()
        if fresh:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(stage, total=max(total, 1))
        self._live.update(self._task, completed=done, refresh=True)
