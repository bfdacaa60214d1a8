"""Replay traces against every allocator that is there: speed and latency side by side in one process, memory in one each.

A turn is the whole trace: recorded threads are threads, blocks live as long as they did, and are freed where they were.
Between turns everything is freed, off the clock. An event is an allocation, a reallocation or a free; pauses of the program
are left out. A calloc is replayed as a malloc, as what is replayed is written by the replay.

Guarantees: those of :mod:`realalloc.lab.measure`: a row appears only if all peers did the same work, and contents survived
every reallocation. Ctrl-C keeps what is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from realalloc.lab import clock, machine, resident
from realalloc.lab.measure import WorkDiffers, measure
from realalloc.lab.natives import SOURCES, Native, find_natives
from realalloc.lab.peers import OURS, jitted_peers, nobody
from realalloc.lab.results import Footprint, Report
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.rounds import NAME, case_of, reserve_bytes
from realalloc.lab.trace.walk import walk

ROUNDS: Final = 7
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay. No peers: all that are there."""

    peers: tuple[str, ...] = ()
    rounds: int = ROUNDS
    latency: bool = True
    memory: bool = True


def peer_names() -> list[str]:
    """Return all names that ``Options.peers`` may have, whether they are on this machine or not."""
    return [OURS, *(source.name for source in SOURCES)]


class Replay:
    """A run over traces."""

    def __init__(self, traces: Sequence[Trace], options: Options, paths: Iterable[str]) -> None:
        """Check the peers, and find them. ``paths``: where the traces are, for the processes that measure memory."""
        for name in options.peers:
            if name not in peer_names():
                raise ValueError(f"unknown peer {name!r}; there are: {', '.join(peer_names())}")
        self._traces, self._options, self._paths = traces, options, list(paths)
        found, missing = find_natives()
        self._natives: list[Native] = [each for each in found if not options.peers or each.name in options.peers]
        self._with_ours = not options.peers or OURS in options.peers
        told: dict[str, Any] = {"traces": ", ".join(trace.name for trace in traces), "rounds": options.rounds}
        self.report = Report(NAME, machine.describe(), told)
        self.report.skipped = [line for line in missing if not options.peers or line.partition(":")[0] in options.peers]
        if not self._natives and not self._with_ours:
            raise ValueError(f"none of the peers is here: {'; '.join(self.report.skipped)}")
        self.failed = False

    def run(self, on_progress: OnProgress | None = None) -> Report:
        """Replay everything; the report is whole, or says that it was interrupted."""
        tell = on_progress or (lambda _stage, _done, _total: None)
        self.report.floors = {
            "reading the cycle counter": clock.reading_ns(),
            "step of the cycle counter": clock.resolution_ns(),
        }
        noisy = machine.noise()
        self.report.warnings += [noisy] if noisy else []
        try:
            for number, trace in enumerate(self._traces):
                tell("speed", number, len(self._traces))
                self._speed(trace)
            if self._options.memory:
                self._memory(tell)
        except KeyboardInterrupt:
            self.report.interrupted = True
        return self.report

    def _speed(self, trace: Trace) -> None:
        case, options = case_of(trace), self._options
        try:
            with jitted_peers(self._natives, with_ours=self._with_ours, reserve=reserve_bytes(trace)) as peers:
                row = measure(case, peers, options.rounds, harness=nobody(), latency=options.latency)
        except (WorkDiffers, MemoryError, OSError) as error:
            self._fail(f"{case.name} was not measured: {error}")
            return
        self.report.rows.append(row)

    def _fail(self, line: str) -> None:
        self.report.warnings.append(line)
        self.failed = True

    def _memory(self, tell: OnProgress) -> None:
        from realalloc.lab.trace.resident import FREED, Request, ask  # noqa: PLC0415  # it runs what is in this file

        names = [OURS] * self._with_ours + [each.name for each in self._natives]
        for number, (trace, path) in enumerate(zip(self._traces, self._paths, strict=True)):
            live = walk(trace.events, trace.slots).peak_bytes
            answers = {}
            for step, peer in enumerate(names):
                tell("memory", number * len(names) + step, len(self._traces) * len(names))
                try:
                    answer = answers[peer] = ask(Request(NAME, trace.name, peer, path))
                except RuntimeError as error:
                    self._fail(str(error))
                    continue
                left = answer.steps[FREED]
                self.report.footprints.append(Footprint(f"{NAME} {trace.name}", peer, live, answer.peak_bytes, left))
            if answers:
                self.report.resident[f"{NAME} {trace.name}"] = resident.series(answers)
