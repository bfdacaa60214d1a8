"""A whole benchmark: which workloads and peers, row after row, and what is known about the machine; the result is a Report.

Guarantees: what cannot be measured is refused before anything runs (ValueError that names what there is, or why nobody is).
Peers that are not on this machine are named with the reason. A row that fails (WorkDiffers, no memory) is a warning, and the
others go on; Ctrl-C ends the run and keeps every whole row.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from realalloc.lab import clock, machine, pythons, resident, workloads
from realalloc.lab.measure import Case, WorkDiffers, measure
from realalloc.lab.natives import SOURCES, find_natives
from realalloc.lab.peers import OURS, jitted_peers, nobody
from realalloc.lab.pythons import NOBODY, CannotTakePart, PythonPeer, Source
from realalloc.lab.results import JITTED, PYTHON, Report
from realalloc.lab.workloads import fragments
from realalloc.lab.workloads.scope import FULL, QUICK, Scope

ROUNDS: Final = 11
QUICK_ROUNDS: Final = 7
OnProgress = Callable[[str, int, int], None]
_SOURCES: Final = {"pool": pythons.POOLS}  # of a Python workload; all others take blocks


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. Empty: everything."""

    workloads: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    views: tuple[str, ...] = (PYTHON, JITTED)
    rounds: int | None = None  # 11, or 7 if quick
    seed: int = 1
    threads: int = 2
    quick: bool = False
    latency: bool = True
    rss: bool | None = None  # the resident set over time, in processes of their own: unless quick
    scale: float | None = None  # of the number of operations: 1, or 0.2 if quick

    @property
    def wants_rss(self) -> bool:
        """Whether the resident set is looked at."""
        if self.rss is not None:
            return self.rss
        asked = fragments.NAME in self.workloads or (not self.workloads and not self.quick)
        return asked and JITTED in self.views


def workload_names() -> list[str]:
    """Return all names that ``Options.workloads`` may have."""
    return [*(workload.NAME for workload in workloads.ALL), fragments.NAME]


def peer_names() -> list[str]:
    """Return all names that ``Options.peers`` may have, whether they are on this machine or not."""
    natives = [source.name for source in SOURCES]
    return list(dict.fromkeys([OURS, *natives, *(source.name for source in (*pythons.BLOCKS, *pythons.POOLS))]))


def _known(what: str, given: Iterable[str], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            raise ValueError(f"unknown {what} {name!r}; there are: {', '.join(names)}")


class Suite:
    """One benchmark run; a context manager, as its workers are threads."""

    def __init__(self, options: Options) -> None:
        """Check the options, and find the peers."""
        _known("workload", options.workloads, workload_names())
        _known("peer", options.peers, peer_names())
        self.options = options
        self.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
        scale = options.scale or (QUICK if options.quick else FULL)
        usable = len(os.sched_getaffinity(0))
        self.scope = Scope(scale, min(options.threads, usable), options.seed)
        found, missing = find_natives()
        self.natives = [native for native in found if not options.peers or native.name in options.peers]
        self.blocks, no_blocks = pythons.find(pythons.BLOCKS, options.peers)
        self.pools, no_pools = pythons.find(pythons.POOLS, options.peers)
        self.with_ours = not options.peers or OURS in options.peers
        self.failed = False
        self.report = Report("bench", machine.describe(), asdict(options) | {"rounds": self.rounds, "scale": scale})
        self.report.started = time.strftime("%Y-%m-%d %H:%M:%S")
        wanted = [line for line in missing if not options.peers or line.partition(":")[0] in options.peers]
        self.report.skipped = [*wanted, *no_blocks, *no_pools]
        if options.threads > usable:
            self.report.skipped.append(f"rows of {options.threads} threads: {usable} processors")
        self.cases = [case for case in workloads.cases(self.scope, options.workloads) if self._wants(case)]

        if not self.cases and not (self.options.wants_rss and self._jitted_names):
            raise ValueError("; ".join(["nothing is left to measure", *self.report.skipped]))

    def _wants(self, case: Case) -> bool:
        quick = not self.options.quick or bool(self.options.workloads) or case.name in workloads.QUICK_CASES
        return quick and case.view in self.options.views and bool(self._names(case))

    @property
    def _jitted_names(self) -> list[str]:
        return [OURS] * self.with_ours + [native.name for native in self.natives]

    def _names(self, case: Case) -> list[str]:
        """Return who takes part in a row."""
        return [source.name for source in self._sources(case)] if case.view == PYTHON else self._jitted_names

    def _sources(self, case: Case) -> list[Source]:
        return self.pools if _SOURCES.get(case.workload) is pythons.POOLS else self.blocks

    def __enter__(self) -> Self:
        """Return the suite."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        self.scope.close()

    def run(self, on_progress: OnProgress | None = None) -> Report:
        """Measure everything; the report is whole, or says that it was interrupted."""
        tell = on_progress or (lambda _stage, _done, _total: None)
        try:
            self._look_around()
            for number, case in enumerate(self.cases):
                tell(case.name, number, len(self.cases))
                self._row(case)
            if self.options.wants_rss:
                self._memory(tell)
        except KeyboardInterrupt:
            self.report.interrupted = True
        finally:
            self.scope.close()
        return self.report

    def _look_around(self) -> None:
        self.report.floors = {
            "reading the cycle counter": clock.reading_ns(),
            "step of the cycle counter": clock.resolution_ns(),
            "reading Python's clock": pythons.clock_ns(),
        }
        noisy = machine.noise()
        if noisy:
            self.report.warnings.append(noisy)

    @contextlib.contextmanager
    def _contestants(self, case: Case) -> Iterator[tuple[list[Any], Any]]:
        if case.view == PYTHON:
            yield [PythonPeer(source) for source in self._sources(case)], PythonPeer(NOBODY)
            return
        with jitted_peers(self.natives, with_ours=self.with_ours) as peers:
            yield list(peers), nobody()

    def _row(self, case: Case) -> None:
        seed, latency = self.options.seed, self.options.latency
        absent: set[str] = set()  # who has no room for this row
        while True:
            try:
                with self._contestants(case) as (everybody, alone):
                    contestants = [who for who in everybody if who.name not in absent]
                    if not contestants:
                        return
                    row = measure(case, contestants, self.rounds, harness=alone, seed=seed, latency=latency)
                self.report.rows.append(row)  # now that nothing was left behind
            except CannotTakePart as error:
                absent.add(error.peer)
                self.report.skipped.append(f"{error.peer} in {case.name}: {error.reason}")
                continue
            except (WorkDiffers, MemoryError, OSError) as error:
                self._fail(f"{case.name} was not measured: {error}")
            return

    def _fail(self, reason: str) -> None:
        self.report.warnings.append(reason)
        self.failed = True

    def _memory(self, tell: OnProgress) -> None:
        names = self._jitted_names
        sets = list(fragments.SETS)
        for number, case in enumerate(sets):
            answers = {}
            for step, peer in enumerate(names):
                tell(f"resident memory, {case}", number * len(names) + step, len(sets) * len(names))
                request = resident.Request(fragments.NAME, case, peer, self.scope.scale, self.scope.seed)
                try:
                    answers[peer] = resident.ask(request)
                except RuntimeError as error:
                    self._fail(str(error))
            if answers:
                self.report.resident[f"{fragments.NAME} {case}"] = resident.series(answers)
