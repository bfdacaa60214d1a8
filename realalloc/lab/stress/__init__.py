"""Abuse with proof: threads and processes that use an arena in every way at once, and check every block that they had.

``run(options)`` does it and returns a ``Verdict``; ``realalloc stress`` is its command line. See docs/stress.md.
Importing this package imports neither numba nor an arena: ``run`` does when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from realalloc.lab.stress.options import ABUSES, KINDS, Options
from realalloc.lab.stress.records import Check, ProcessResult, Tick, Verdict

if TYPE_CHECKING:
    from realalloc.lab.stress.worker import Worker

__all__ = ["ABUSES", "KINDS", "Check", "Options", "ProcessResult", "Tick", "Verdict", "run"]


def run(
    options: Options,
    on_tick: Callable[[Tick], None] | None = None,
    on_round: Callable[[Worker], Any] | None = None,
) -> Verdict:
    """Stress, and judge; see :func:`realalloc.lab.stress.running.run`."""
    from realalloc.lab.stress.running import run as begin  # noqa: PLC0415

    return begin(options, on_tick, on_round)
