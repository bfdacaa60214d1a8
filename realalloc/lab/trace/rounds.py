"""A trace as turns of a row: the whole of it, again and again, on one peer.

Every recorded thread is a thread. Between turns everything is freed, off the clock. Guarantee: a turn that could not allocate
raises MemoryError, in whichever thread that was, and the next one starts from nothing.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np

from realalloc.arena import MAX_BYTES
from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.schedule import Schedule, schedule
from realalloc.lab.trace.walk import walk

NAME: Final = "replay"
LEAST_RESERVE: Final = 1 << 30
ROOM: Final = 4  # times the live bytes at the peak: reserving costs nothing


def reserve_bytes(trace: Trace) -> int:
    """Return how large an arena is made for a trace."""
    peak = walk(trace.events, trace.slots).peak_bytes
    return min(max(LEAST_RESERVE, ROOM * peak), MAX_BYTES)


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
        """Replay all of it; return the bytes asked for. MemoryError if an allocation failed."""
        threads = len(self._plan.parts)
        if threads == 1:
            return check(self._part(0))
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
