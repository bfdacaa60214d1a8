"""Replay traces against every allocator that is there: speed and latency side by side in one process, memory in one each.

A turn is the whole trace: recorded threads are threads, blocks live as long as they did, and are freed where they were.
Between turns everything is freed, off the clock. An event is an allocation, a reallocation or a free; pauses of the program
are left out. A calloc is replayed as a malloc, as what is replayed is written by the replay.

Guarantees: those of :mod:`realalloc.lab.measure`: a row appears only if all peers did the same work, and contents survived
every reallocation. Ctrl-C keeps what is whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from realalloc.lab import clock, machine, resident
from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, WorkDiffers, check, measure
from realalloc.lab.natives import SOURCES, Native, find_natives
from realalloc.lab.peers import OURS, Peer, jitted_peers, nobody
from realalloc.lab.results import Footprint, Report
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.schedule import Schedule, schedule
from realalloc.lab.trace.walk import walk

NAME: Final = "replay"
ROUNDS: Final = 7
LEAST_RESERVE: Final = 1 << 30
ROOM: Final = 4  # times the live bytes at the peak: reserving costs nothing
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


def reserve_bytes(trace: Trace) -> int:
    """Return how large an arena is made for a trace."""
    peak = walk(trace.events, trace.slots).peak_bytes
    return max(LEAST_RESERVE, ROOM * peak + LEAST_RESERVE // 4)


class Rounds:
    """A trace on one peer, again and again; ``loop`` is ``replay_events``, or ``replay_whole`` to write every byte."""

    def __init__(self, peer: Peer, plan: Schedule, loop: str = "replay_events") -> None:
        """Touch every array of the harness, and compile."""
        self._peer, self._plan = peer, plan
        self._loop = getattr(peer.loops, loop)
        self._blocks = np.full(plan.slots + 1, 1, np.int64)  # touched; the last one only keeps it from being empty
        self._turns = np.full(plan.slots + 1, 1, np.int64)
        self._clear()
        self._part(0, 0)
        check(peer.loops.drain(peer.how(), self._blocks))

    def _clear(self) -> None:
        self._blocks.fill(0)
        self._turns.fill(0)

    def _part(self, thread: int, end: int | None = None) -> int:
        part = self._plan.parts[thread]
        given = (part.ops, part.slots, part.sizes, part.waits, part.posts)
        last = len(part.ops) if end is None else end
        return int(self._loop(self._peer.how(thread), self._blocks, self._turns, *given, 0, last))

    def run(self, _number: int) -> int:
        """Replay all of it; return the bytes asked for, below 0 if an allocation failed."""
        threads = len(self._plan.parts)
        if threads == 1:
            return self._part(0)
        for thread in range(threads):
            self._peer.how(thread)  # made here, not by several threads at once
        return sum(crowd([functools.partial(self._part, thread) for thread in range(threads)]))

    def finish(self) -> None:
        """Free what the program never freed."""
        check(self._peer.loops.drain(self._peer.how(), self._blocks))
        self._clear()

    def turn(self) -> Turn:
        """Return it as a turn of a row."""
        return Turn(self.run, teardown=self.finish, close=self.finish)


def case_of(trace: Trace) -> Case:
    """Return a trace as a row to be measured."""
    plan = schedule(trace)
    return Case(
        NAME,
        trace.name,
        max(plan.events, 1),
        lambda peer: Rounds(peer, plan).turn(),
        parameters={"slots": plan.slots, "handovers": plan.handovers, "domains": "+".join(trace.facts["domains"])},
        operation="event",
        threads=len(plan.parts),
    )


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
        with jitted_peers(self._natives, with_ours=self._with_ours, reserve=reserve_bytes(trace)) as peers:
            try:
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
