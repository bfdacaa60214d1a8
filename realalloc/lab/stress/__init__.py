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
    """Stress, and judge. ``on_tick`` is told how it stands, some fifty times a second; ``on_round`` is called in a worker's
    thread after each of its rounds, for tests that damage something.

    Raises ValueError or OutOfMemory for options that this machine cannot do, before anything runs.
    """
    from realalloc.lab.stress.running import Run  # numba, and an arena

    with Run(options, on_round) as made:
        return made.run(on_tick)
