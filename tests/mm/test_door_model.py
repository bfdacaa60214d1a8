"""The door to a thread's sheaves, every interleaving: a model of threads.py with store buffers, walked exhaustively.

As in test_lock_model.py each thread is a program of small steps, and its plain stores go through a FIFO store buffer that
may drain at any time, as on x86. Compare-and-swap waits for an empty buffer. The membarrier drains the caller's buffer, then
those of the others, one after the other in any order. A record is a stack: its top and its entries are read and written by
steps of their own.

Checked in every reachable state: an owner and a drainer are never both at work on one record, and every object is in one
place: in the record as it will be when all stores have arrived, in the owner's hand, or with the drainer. From every state all
threads can still finish.
"""

from __future__ import annotations

import pytest
from models import Buffered, explore

FREE, HELD = 0, 1
NULL, KEPT = 0, 1
CAPACITY = 2
LOCK = 0  # words of the model's memory; behind the lock each owner has INSIDE, RECORD, TOP and the entries of its stack
INSIDE, RECORD, TOP, ENTRIES = 1, 2, 3, 4
OWNER_WORDS = ENTRIES + CAPACITY - INSIDE
AT_WORK = ("top", "take", "sink", "give", "raise")
DRAINS = ("look", "collect", "empty")


class Model(Buffered):
    """State: (memory, (pc, store buffer, register, hand, round) of each thread). The last thread is the drainer."""

    def __init__(self, *programs: tuple[str, ...], visits: int = 2, sabotage: str = "") -> None:
        self.programs = programs
        self.sabotage = sabotage
        self.owners = len(programs)
        self.visits = visits
        memory = [FREE]
        for who in range(self.owners):
            memory += [0, KEPT, 1, 2 * who + 1, 0]
        owners = [("enter", (), 0, (2 * who + 2,), 0) for who in range(self.owners)]
        self.start = (tuple(memory), (*owners, ("lock", (), 0, (), 0)))

    def owner(self, memory: tuple, who: int, pc: str, buffer: tuple, register: int, hand: tuple, at: int) -> list:
        """One step of an owner, who pops and puts as its program says: by the door, or with the lock if it is shut."""
        base = who * OWNER_WORDS
        verb = self.programs[who][at] if at < len(self.programs[who]) else ""
        see = lambda word: self.see(memory, buffer, word)
        go = lambda pc, *stores, register=register, hand=hand, at=at, memory=memory: [
            (memory, (pc, (*buffer, *stores), register, hand, at))
        ]
        end = "done" if at + 1 == len(self.programs[who]) else "enter"
        locked = pc.endswith("+")  # the same work, but with the lock
        plus = "+" if locked else ""
        bare = pc.rstrip("+")
        if bare == "enter" and self.sabotage == "the compiler moves the load":
            return go("announce", register=see(base + RECORD))
        if bare == "enter":
            return go("check", (base + INSIDE, 1))
        if bare == "announce":
            return go("top" if register == KEPT else "shut", (base + INSIDE, 1))
        if bare == "check":
            return go("top" if see(base + RECORD) == KEPT else "shut")
        if bare == "shut":
            return go("wait", (base + INSIDE, 0))
        if bare == "wait":  # compare-and-swap: needs an empty buffer
            return go("top+", memory=(HELD, *memory[1:])) if not buffer and memory[LOCK] == FREE else []
        if bare == "top":
            top = see(base + TOP)
            if (verb == "pop" and top == 0) or (verb == "put" and (top == CAPACITY or not hand)):
                return go("leave" + plus)
            return go(("take" if verb == "pop" else "give") + plus, register=top)
        if bare == "take":
            return go("sink" + plus, hand=(*hand, see(base + ENTRIES + register - 1)))
        if bare == "sink":
            return go("leave" + plus, (base + TOP, register - 1))
        if bare == "give":
            return go("raise" + plus, (base + ENTRIES + register, hand[-1]), hand=hand[:-1])
        if bare == "raise" and self.sabotage == "the door is shut before the last store" and not locked:
            return go("late", (base + INSIDE, 0))
        if bare == "late":
            return go(end, (base + TOP, register + 1), register=0, at=at + 1)
        if bare == "raise":
            return go("leave" + plus, (base + TOP, register + 1))
        if bare == "leave":
            return go(end, (LOCK, FREE) if locked else (base + INSIDE, 0), register=0, at=at + 1)
        return []

    def drainer(self, memory: tuple, threads: tuple, pc: object, buffer: tuple, register: int, hand: tuple, at: int):
        """One step of the drainer. Its ``register`` counts records, or says which top it has read."""
        who = self.owners
        see = lambda word: self.see(memory, buffer, word)
        word = lambda field: (register % self.owners) * OWNER_WORDS + field
        go = lambda pc, *stores, register=register, hand=hand, at=at, memory=memory: [
            (memory, self.put(threads, who, (pc, (*buffer, *stores), register, hand, at)))
        ]
        more = register + 1 < self.owners
        if pc == "lock":
            if buffer or memory[LOCK] != FREE:
                return []
            return go("shut", register=0, memory=(HELD, *memory[1:]))
        if pc == "shut":
            return go("shut" if more else "barrier", (word(RECORD), NULL), register=register + 1 if more else 0)
        if pc == "barrier" and self.sabotage == "no membarrier":
            return go("await")
        if pc == "barrier":  # a system call: what the caller has stored before is in memory
            return [] if buffer else go(tuple(range(self.owners)))
        if isinstance(pc, tuple):  # the membarrier: who has still to be reached
            return self.reach(memory, threads, pc, "await")
        if pc == "await":
            if see(word(INSIDE)) != 0 and self.sabotage != "nobody waits":
                return []
            return go("await" if more else "look", register=register + 1 if more else 0)
        if pc == "look":
            top = see(word(TOP))
            return go("collect", register=register + top * self.owners)
        if pc == "collect":
            top = register // self.owners
            if top == 0:
                return go("empty")
            return go("collect", register=register - self.owners, hand=(*hand, see(word(ENTRIES) + top - 1)))
        if pc == "empty":
            return go("look" if more else "open", (word(TOP), 0), register=register + 1 if more else 0)
        if pc == "open":
            return go("open" if more else "unlock", (word(RECORD), KEPT), register=register + 1 if more else 0)
        if pc == "unlock":
            return go("lock" if at + 1 < self.visits else "done", (LOCK, FREE), register=0, at=at + 1)
        return []

    def excludes(self, state: tuple) -> bool:
        """No owner at work by the door while the drainer is at work on its record."""
        pc, _, register, *_ = state[1][-1]
        drained = register % self.owners if pc in DRAINS else None
        return drained is None or state[1][drained][0].rstrip("+") not in (*AT_WORK, "late")

    def adds_up(self, state: tuple) -> bool:
        """Where nobody is in the middle of something, each object is in one place."""
        memory, threads = state
        if any(pc not in ("enter", "wait", "lock", "done") or buffer for pc, buffer, *_ in threads):
            return True
        found = [thing for _, _, _, hand, _ in threads for thing in hand]
        for who in range(self.owners):
            base = who * OWNER_WORDS
            found += memory[base + ENTRIES : base + ENTRIES + memory[base + TOP]]
        return sorted(found) == list(range(1, 2 * self.owners + 1))


ONE_OWNER = [("pop",), ("put",), ("pop", "put"), ("put", "pop"), ("pop", "pop"), ("put", "put"), ("pop", "put", "pop")]


@pytest.mark.parametrize("program", ONE_OWNER, ids="-".join)
def test_an_owner_and_a_drainer_who_comes_twice(program: tuple[str, ...]) -> None:
    *holds, states = explore(Model(program))
    assert holds == [True, True, True]
    assert states > 200


@pytest.mark.parametrize(
    ("first", "second", "visits"),
    [("pop", "pop", 2), ("pop", "put", 2), ("put", "put", 2), ("pop put", "put", 1), ("put pop", "pop", 1)],
)
def test_two_owners_and_a_drainer(first: str, second: str, visits: int) -> None:
    *holds, states = explore(Model(tuple(first.split()), tuple(second.split()), visits=visits))
    assert holds == [True, True, True]
    assert states > 5000


SABOTAGE = ["no membarrier", "nobody waits", "the compiler moves the load", "the door is shut before the last store"]


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_the_model_sees_what_each_step_is_for(sabotage: str) -> None:
    """The same walk finds both at work on a record, and an object lost or doubled."""
    exclusive, whole, _, _ = explore(Model(("put", "pop"), visits=1, sabotage=sabotage))
    assert (exclusive, whole) == (False, False)


def test_the_model_sees_a_door_that_is_never_opened_again_and_a_lock_that_is_kept() -> None:
    class Keeps(Model):
        def drainer(self, memory: tuple, threads: tuple, pc: object, *rest: object) -> list:
            after = super().drainer(memory, threads, pc, *rest)
            return [] if pc == "unlock" else after

    _, _, can_finish, _ = explore(Keeps(("pop",)))
    assert not can_finish
