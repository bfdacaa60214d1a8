"""The protocol of waiting for an element, all interleavings of a few threads: nobody sleeps beside a free element.

A small model of realalloc/mm/waiters.py: what is done under the lock is one step, sleeping and waking are steps of their own,
as in futex(2): a sleep begins only if the word still has the expected value, a wake-up reaches who sleeps then.
The model is told to forget one precaution at a time, and must then find the schedule that goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

WAITING, GRANTED, OVER = "waiting", "granted", "over"


class State(NamedTuple):
    """Everything that threads share, and where each is. A request is (thread, need)."""

    reserve: int
    granted: int
    queue: tuple[tuple[int, int], ...]
    nodes: tuple[str, ...]  # by thread
    asleep: tuple[bool, ...]
    at: tuple[int, ...]  # by thread: the step it takes next
    held: tuple[int, ...]


class Thread(NamedTuple):
    """What a thread does: take ``need`` and return them, or first hold them and return them; it may be cancelled."""

    need: int
    holds: int = 0
    cancelled: bool = False


def put(values: tuple, k: int, value: object) -> tuple:
    return (*values[:k], value, *values[k + 1 :])


def grant(s: State, *, wakes: bool = True) -> State:
    queue, nodes, asleep, granted = list(s.queue), s.nodes, s.asleep, s.granted
    while queue and queue[0][1] <= s.reserve - granted:
        thread, need = queue.pop(0)
        granted += need
        nodes = put(nodes, thread, GRANTED)
        if wakes:
            asleep = put(asleep, thread, False)
    return s._replace(queue=tuple(queue), nodes=nodes, asleep=asleep, granted=granted)


def steps(s: State, k: int, t: Thread, forget: str) -> Iterator[State]:  # noqa: C901, PLR0911  # a table of steps
    """Yield what may come of thread ``k``'s next step."""
    at = s.at[k]
    if at == 0:  # ask: take, or queue
        if t.holds:
            yield s._replace(at=put(s.at, k, 4))
        elif s.reserve - s.granted >= t.need and (not s.queue or forget == "order"):
            yield s._replace(reserve=s.reserve - t.need, held=put(s.held, k, t.need), at=put(s.at, k, 4))
        else:
            s = s._replace(queue=(*s.queue, (k, t.need)), nodes=put(s.nodes, k, WAITING), at=put(s.at, k, 1))
            yield grant(s)
    elif at == 1:  # look, then sleep; a timeout or a cancellation may come instead
        if t.cancelled:
            yield s._replace(at=put(s.at, k, 3))
        if s.nodes[k] == GRANTED:
            yield s._replace(at=put(s.at, k, 2))
        elif forget == "compare":  # decides to sleep now, sleeps later, whatever has happened meanwhile
            yield s._replace(at=put(s.at, k, 5))
        else:
            yield s._replace(asleep=put(s.asleep, k, True), at=put(s.at, k, 6))
    elif at == 5:
        yield s._replace(asleep=put(s.asleep, k, True), at=put(s.at, k, 6))
    elif at == 6:  # asleep
        if t.cancelled:
            yield s._replace(asleep=put(s.asleep, k, False), at=put(s.at, k, 3))
        if not s.asleep[k]:
            yield s._replace(at=put(s.at, k, 1))
    elif at == 2:  # claim
        s = s._replace(reserve=s.reserve - t.need, granted=s.granted - t.need, nodes=put(s.nodes, k, OVER))
        yield s._replace(held=put(s.held, k, t.need), at=put(s.at, k, 4))
    elif at == 3:  # give the request up
        if s.nodes[k] == GRANTED and forget != "pass on":
            s = s._replace(granted=s.granted - t.need)
        s = s._replace(queue=tuple(e for e in s.queue if e[0] != k), nodes=put(s.nodes, k, OVER), at=put(s.at, k, 9))
        yield s if forget == "move up" else grant(s)
    elif at == 4 and s.held[k]:  # return one element
        s = s._replace(reserve=s.reserve + 1, held=put(s.held, k, s.held[k] - 1))
        yield grant(s, wakes=forget != "wake")
    elif at == 4:
        yield s._replace(at=put(s.at, k, 9))


def explore(threads: tuple[Thread, ...], free: int, forget: str = "") -> tuple[int, str]:
    """Return how many states there are, and what went wrong, if anything did."""
    count = len(threads)
    start = State(free, 0, (), (OVER,) * count, (False,) * count, (0,) * count, tuple(t.holds for t in threads))
    total = free + sum(t.holds for t in threads)
    seen, todo = {start}, [start]
    while todo:
        s = todo.pop()
        if s.reserve + sum(s.held) != total or s.granted > s.reserve or s.granted < 0:
            return len(seen), "an element was lost"
        after = [n for k, t in enumerate(threads) for n in steps(s, k, t, forget)]
        if not after and any(at != 9 for at in s.at):
            return len(seen), "somebody sleeps for ever"
        if not after and (s.granted or s.reserve != total):
            return len(seen), "a grant was lost"
        for n in after:
            if n not in seen:
                seen.add(n)
                todo.append(n)
    return len(seen), ""


PLAYS = [
    (Thread(1), Thread(1, holds=1)),
    (Thread(1), Thread(1), Thread(1, holds=1)),
    (Thread(1, cancelled=True), Thread(1), Thread(1, holds=1)),
    (Thread(1, cancelled=True), Thread(1, cancelled=True), Thread(1), Thread(1, holds=1)),
    (Thread(2), Thread(1), Thread(1, holds=2)),
    (Thread(2), Thread(2), Thread(1, holds=3)),
    (Thread(3, cancelled=True), Thread(2), Thread(2), Thread(1, holds=3)),
    (Thread(2, cancelled=True), Thread(1), Thread(1, holds=1), Thread(1, holds=1)),
]


@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("threads", PLAYS)
def test_in_every_interleaving_all_are_served(threads: tuple[Thread, ...], free: int) -> None:
    states, wrong = explore(threads, free)
    assert wrong == ""
    assert states > 10


@pytest.mark.parametrize(("forget", "wrong"), [
    ("compare", "somebody sleeps for ever"),  # the futex's own look at the word
    ("wake", "somebody sleeps for ever"),
    ("pass on", "a grant was lost"),  # a cancelled request keeps what it was granted
    ("move up", "somebody sleeps for ever"),  # a large request leaves, and those behind it are not looked at
])  # fmt: skip
def test_without_one_precaution_a_schedule_goes_wrong(forget: str, wrong: str) -> None:
    assert wrong in {explore(threads, free, forget)[1] for threads in PLAYS for free in (0, 1)}
