"""How a row is measured: contestants take turns in shuffled order, in every round, as the machine is shared and noisy.

A *turn* runs a number of operations on the clock, with work before and after it off the clock. A *contestant* gives a fresh
turn for each layer: ``plain`` turns make the nanoseconds, a ``checked`` turn the checksum, ``timed`` turns the latencies, so
that neither proof nor timing is in what the others measure. Threads of a turn that have not all arrived yet are off the clock.
Guarantees: a row appears only if every contestant did the same work: the checksums, or what the loops return, are equal; an
allocation that fails is an error, as a fast failure is no result. Whatever happens, every turn that was begun is torn down
and closed; Ctrl-C waits until the turn that runs is over.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from realalloc.lab import counters, gate
from realalloc.lab.interrupts import Checkpoint, deferred
from realalloc.lab.latencies import Latency
from realalloc.lab.loops.crowds import CORRUPT
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.results import JITTED, Counters, Entry, Row

TIMED_TURNS: Final = 3
LEAST_NS: Final = 1.0  # where the channel hides the work, nothing is left of it but noise


class WorkDiffers(AssertionError):
    """Two contestants did not do the same work, or did not find what they had written."""


def _nothing() -> None:
    """Do nothing."""


@dataclass
class Turn:
    """Work on the clock, ``run(operations)``, which returns a sum; and off it: before and after every turn, and at the end.

    ``cost_ns`` answers ns per operation of the last run where that is not the time of the wall: response times of a schedule.
    """

    run: Callable[[int], int]
    prepare: Callable[[], object] = _nothing
    teardown: Callable[[], object] = _nothing
    close: Callable[[], object] = _nothing
    cost_ns: Callable[[], float] | None = None


@dataclass(frozen=True)
class Case:
    """A row to be measured. ``make`` gives a peer's turn; ``content`` says that the layer ``checked`` proves the work: that
    the first words of objects hold the same for everybody. Else what ``run`` returns does.
    """

    workload: str
    case: str
    number: int  # operations in a round
    make: Callable[[Any], Turn]
    parameters: dict[str, Any] = field(default_factory=dict)
    operation: str = "alloc + free"
    view: str = JITTED
    threads: int = 1
    size_bytes: int | None = None
    content: bool = True
    timed: bool = True
    harness: bool = True
    subtracted: bool = False  # the harness is a channel between threads: it is taken off, round by round

    @property
    def name(self) -> str:
        """Workload and case."""
        return f"{self.workload} {self.case}".strip()


# A row of whole rounds: no operation is timed alone, no loop runs without an allocator, and what loops return is compared.
whole_rounds = functools.partial(Case, content=False, timed=False, harness=False)


class Contestant(Protocol):
    """Somebody who takes turns in a row."""

    name: str

    def layered(self, layer: str) -> Any:
        """Return the same with a layer around it."""

    def latencies(self) -> tuple[Latency, ...]:
        """Return what ``timed`` recorded."""

    def checksum(self) -> int:
        """Return what ``checked`` counted."""


OnRound = Callable[[str, int, int], None]


def check(result: int) -> int:
    """Return what a loop returned; raise where an allocation failed or contents had changed."""
    if result == CORRUPT:
        raise WorkDiffers("a workload did not find what it had written")
    if result < 0:
        raise MemoryError("an allocation of a workload failed")
    return result


@dataclass
class _Seen:
    rounds: list[float] = field(default_factory=list)
    counted: list[Counters] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Keep the cyclic collector from running in the middle of a turn."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _one(turn: Turn, number: int, seen: _Seen) -> None:
    try:
        turn.prepare()
        before = counters.now()
        begin = time.perf_counter_ns() - gate.waited_ns()
        returned = turn.run(number)
        spent = (time.perf_counter_ns() - gate.waited_ns() - begin) / number
        counted = counters.since(before)
    finally:
        turn.teardown()
    seen.rounds.append(spent if turn.cost_ns is None else turn.cost_ns())
    seen.counted.append(counted)
    seen.returned.append(int(returned))  # without jit numpy's integers come out of loops, which are spelled otherwise


def take_turns(
    turns: Mapping[str, Turn],
    number: int,
    rounds: int,
    seed: int = 1,
    on_round: Callable[[int], None] | None = None,
    checkpoint: Checkpoint = _nothing,
) -> dict[str, _Seen]:
    """Run every turn once a round, in another order each; the first round warms up and is not kept. Nothing is closed."""
    seen = {name: _Seen() for name in turns}
    order = list(turns)
    dice = random.Random(seed)  # noqa: S311  # who goes first is no secret
    with without_collector():
        for round_ in range(rounds + 1):
            dice.shuffle(order)
            for name in order:
                checkpoint()
                _one(turns[name], number, seen[name] if round_ else _Seen())
            if on_round is not None and round_:
                on_round(round_)
    return seen


def sample(turns: Mapping[str, Turn], number: int, rounds: int, seed: int = 1) -> dict[str, list[float]]:
    """Run every turn once a round, close them; return ns per operation of every round."""
    with deferred() as checkpoint, contextlib.ExitStack() as stack:
        for turn in turns.values():
            stack.callback(turn.close)
        seen = take_turns(turns, number, rounds, seed, checkpoint=checkpoint)
    return {name: found.rounds for name, found in seen.items()}


def _layered(case: Case, contestant: Contestant, layer: str, turns: int, checkpoint: Checkpoint) -> Any:
    """Run a contestant alone with a layer around it, and return that."""
    checkpoint()
    layered = contestant.layered(layer)
    turn, seen = case.make(layered), _Seen()
    with contextlib.ExitStack() as stack, without_collector():
        stack.callback(turn.close)
        for _ in range(turns):
            checkpoint()
            _one(turn, case.number, seen)
    return layered


def _agree(case: Case, found: Mapping[str, Any]) -> None:
    if len(set(map(str, found.values()))) > 1:
        raise WorkDiffers(f"{case.name}: not the same work: {dict(found)}")


def measure(
    case: Case,
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    harness: Contestant | None = None,
    seed: int = 1,
    latency: bool = True,
    on_round: Callable[[int], None] | None = None,
) -> Row:
    """Measure one row; WorkDiffers or MemoryError if it is none."""
    with deferred() as checkpoint:
        return _measure(
            case, contestants, rounds, harness if case.harness else None, seed, latency, on_round, checkpoint
        )


def _measure(
    case: Case,
    contestants: Sequence[Contestant],
    rounds: int,
    harness: Contestant | None,
    seed: int,
    latency: bool,
    on_round: Callable[[int], None] | None,
    checkpoint: Checkpoint,
) -> Row:
    checks = [who for who in contestants if case.content]
    sums = {who.name: _layered(case, who, CHECKED, 1, checkpoint).checksum() for who in checks}
    _agree(case, sums)
    turns: dict[str, Turn] = {}
    with contextlib.ExitStack() as stack:
        for who in [*contestants, *([harness] if harness is not None else [])]:
            checkpoint()
            turns[who.name] = case.make(who.layered(PLAIN))
            stack.callback(turns[who.name].close)
        seen = take_turns(turns, case.number, rounds, seed, on_round, checkpoint)
    alone = None if harness is None else seen.pop(harness.name).rounds
    _agree(case, {name: found.returned for name, found in seen.items()})
    if case.subtracted and alone is not None:
        for found in seen.values():
            found.rounds = [max(spent - channel, LEAST_NS) for spent, channel in zip(found.rounds, alone, strict=True)]
    timed = {}
    if latency and case.timed:
        timed = {who.name: _layered(case, who, TIMED, TIMED_TURNS, checkpoint).latencies() for who in contestants}
    entries = tuple(
        Entry(
            peer=name,
            rounds_ns=tuple(found.rounds),
            latencies=timed.get(name, ()),
            counters=counters.total(found.counted),
            checksum=sums.get(name, found.returned[-1]),
        )
        for name, found in seen.items()
    )
    return Row(
        workload=case.workload,
        case=case.case,
        view=case.view,
        operation=case.operation,
        operations=case.number,
        parameters={**case.parameters, "threads": case.threads},
        entries=entries,
        harness_ns=None if alone is None else sorted(alone)[len(alone) // 2],
        size_bytes=case.size_bytes,
    )
