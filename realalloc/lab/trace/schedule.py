"""What each thread of a replay does, and whom it waits for.

Guarantees: a thread does its events in their order; two events on one slot happen in the trace's order, whoever does them.
A thread waits only for events that came earlier in the trace, so a replay always comes to its end.
Recorded threads are replaying threads, up to MOST_THREADS; above that several are one, which keeps every order there was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from realalloc.lab.streams import LEAST
from realalloc.lab.trace.format import FREE
from realalloc.lab.trace.reading import Trace

Numbers = npt.NDArray[Any]
MOST_THREADS: Final = 64


@dataclass(frozen=True)
class Part:
    """A thread's events, as loops take them. ``waits``, ``posts``: 0, or the number of a hand-over of the slot."""

    ops: Numbers
    slots: Numbers
    sizes: Numbers
    waits: Numbers
    posts: Numbers


@dataclass(frozen=True)
class Schedule:
    """A trace, ready to be replayed."""

    parts: tuple[Part, ...]
    slots: int
    events: int
    handovers: int


def schedule(trace: Trace) -> Schedule:
    """Divide a trace among its threads."""
    events = trace.events
    threads = events["thread"].astype(np.int64) % MOST_THREADS
    waits, posts = np.zeros(len(events), np.int32), np.zeros(len(events), np.int32)
    # events of one slot side by side, in their order
    order = np.argsort(events["slot"], kind="stable")
    slots, doers = events["slot"][order], threads[order]
    handed = (slots[1:] == slots[:-1]) & (doers[1:] != doers[:-1])
    counted = np.cumsum(handed)  # hand-overs so far; those of earlier slots taken off: each slot counts from 1
    starts = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]])) if len(slots) else np.zeros(0, np.int64)
    before = np.concatenate([[0], counted])[starts]
    numbers = counted - np.repeat(before, np.diff(np.append(starts, len(slots))))[1:] if len(slots) else counted
    posts[order[:-1][handed]] = numbers[handed]
    waits[order[1:][handed]] = numbers[handed]
    sizes = np.where(events["op"] == FREE, 0, np.maximum(events["size"], LEAST))
    parts = []
    for thread in range(int(threads.max()) + 1 if len(threads) else 1):
        mine = np.flatnonzero(threads == thread)
        columns = (events["op"], events["slot"].astype(np.int32), sizes, waits, posts)
        parts.append(Part(*(np.ascontiguousarray(column[mine]) for column in columns)))
    return Schedule(tuple(parts), trace.slots, len(events), int(handed.sum()))
