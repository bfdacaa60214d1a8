"""How a stress run goes, on stderr: a live table with ``rich`` on a terminal, one line that is overwritten without it, and
in a pipe a plain line every ten seconds.

Guarantees: never draws more than four times a second, has no thread of its own, and leaves a clean line behind.
"""

from __future__ import annotations

import sys
import time

from realalloc.cli.output import LeavesACleanLine, overwrite
from realalloc.lab.stress import Tick
from realalloc.sizes import format_bytes
from realalloc.text import use_rich

DRAW_SECONDS = 0.25
LINE_SECONDS = 10.0


def cells(tick: Tick) -> list[tuple[str, str]]:
    """Return what is shown, by name."""
    total = f" of {tick.total_seconds:.0f}" if tick.total_seconds else ""
    return [
        ("seconds", f"{tick.seconds:.0f}{total}"),
        ("processes", str(tick.processes)),
        ("RSS", format_bytes(tick.rss)),
        ("committed", format_bytes(tick.committed)),
        ("allocated", format_bytes(tick.allocated)),
        ("fragmentation", f"{tick.fragmentation:.2f}"),
        ("verified", f"{tick.verified:,}"),
        ("a second", f"{tick.per_second:,.0f}"),
        ("waiters", str(tick.waiters)),
        ("wrong", str(tick.wrong)),
    ]


class LiveView(LeavesACleanLine):
    """Shows ticks. A context manager; nothing is drawn before the first tick."""

    def __init__(self) -> None:
        """Choose how."""
        self._terminal = sys.stderr.isatty()
        self._rich = use_rich(sys.stderr)
        self._next = 0.0

    def update(self, tick: Tick) -> None:
        """Show how it stands, if it is time to."""
        now = time.monotonic()
        if self._next == 0.0 and not self._terminal:
            self._next = now + LINE_SECONDS
        if now < self._next:
            return
        self._next = now + (DRAW_SECONDS if self._terminal else LINE_SECONDS)
        if self._rich:
            self._draw(tick)
            return
        text = ", ".join(f"{name} {value}" for name, value in cells(tick))
        if self._terminal:
            self._drawn = True
            overwrite(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _draw(self, tick: Tick) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table

        if self._live is None:
            self._live = Live(console=Console(file=sys.stderr), auto_refresh=False, transient=True)
            self._live.start()
        table = Table(title="realalloc stress", title_justify="left", show_header=False)
        for name, value in cells(tick):
            table.add_row(name, value)
        self._live.update(table, refresh=True)
