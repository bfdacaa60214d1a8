"""A whole stress run: this process and the extra ones, started, watched, ended and merged into one verdict.

Guarantees: bad options raise before a process is started. Ctrl-C ends the running part, and everything is freed, checked and
reported; a second one ends it all. No process, thread, file or signal handler is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from realalloc.lab.machine import describe
from realalloc.lab.stress.children import Child, Children
from realalloc.lab.stress.engine import Engine, OnRound
from realalloc.lab.stress.interrupts import Interrupts
from realalloc.lab.stress.options import Options
from realalloc.lab.stress.records import Tick, Verdict
from realalloc.lab.stress.reproduce import command, shortest

POLL_SECONDS = 0.05

OnTick = Callable[[Tick], None]


class Run:
    """A run that can be: the constructor refuses what this machine cannot do, before anything runs. A context manager."""

    def __init__(self, options: Options, on_round: OnRound | None = None) -> None:
        """Make the arena of this process; ValueError or OutOfMemory. ``on_round`` is for tests, see :class:`Worker`."""
        self.options = options
        self._engine = Engine(options, on_round=on_round)

    def run(self, on_tick: OnTick | None = None) -> Verdict:
        """Stress, once, and judge. ``on_tick`` is told how it stands, some fifty times a second."""
        options, engine = self.options, self._engine
        verdict = Verdict(options, describe())
        with Children(options) as children:
            engine.prepare()
            children.wait_ready()
            children.go()
            with Interrupts(engine.stop) as interrupts:
                engine.run(_merged(children, on_tick))
                while options.operations and children.running() and not interrupts.seen:
                    time.sleep(POLL_SECONDS)  # with seconds they are told to stop; with operations they may need longer
                    if on_tick is not None:
                        on_tick(merge(engine.tick(), children.all))
            verdict.interrupted = interrupts.seen
            children.stop()
            own = engine.finish()
            verdict.processes = [own, *children.end()]
            verdict.lost = children.lost
        if not verdict.ok:
            verdict.reproduce = command(shortest(verdict))
        return verdict

    def __enter__(self) -> Self:
        """Return the run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the arena."""
        self._engine.close()


def _merged(children: Children, on_tick: OnTick | None) -> OnTick | None:
    if on_tick is None:
        return None

    def tell(own: Tick) -> None:
        on_tick(merge(own, children.all))

    return tell


def merge(own: Tick, children: list[Child]) -> Tick:
    """Add up what the processes say; fragmentation is the worst one's."""
    every = [own, *(child.tick for child in children if child.tick is not None)]

    def total(name: str) -> float:
        return sum(float(getattr(tick, name)) for tick in every)

    names = ("verified", "rss", "committed", "allocated", "waiters", "processes", "wrong")
    return replace(
        own,
        per_second=total("per_second"),
        fragmentation=max(tick.fragmentation for tick in every),
        **{name: int(total(name)) for name in names},
    )
