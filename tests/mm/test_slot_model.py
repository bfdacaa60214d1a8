"""Slots that change hands, every interleaving: a model of threads.py with store buffers, walked exhaustively.

What test_door_model.py takes for granted, that a slot is its thread's, is what is looked at here. Threads look for their slot
by its key, at their near place and behind it, without the lock; with it they take a free slot, move to a nearer one, or give
theirs up when they end. A drainer shuts the doors of all slots that have a key. The model's steps are those of threads.py;
plain stores go through a FIFO store buffer, as there. A record is a number which its owner reads, and stores one higher.

Checked in every reachable state: two threads never use one slot; nobody is at work on a record that is being drained; no
visit to a record is lost; no thread has two slots. From every state all threads can still finish.
"""

from __future__ import annotations

from typing import Any

import pytest
from models import Buffered, explore

from realalloc.mm.jit import POINTERS

FREE, HELD = 0, 1
NOBODY = 0
LOCK, FARTHEST, SLOTS = 0, 1, 2  # words of memory; then KEY, INSIDE and RECORD of each slot, then the records
KEY, INSIDE, RECORD, SLOT_WORDS = 0, 1, 2, 3
OPEN, SHUT = 1, 0
NR_SLOTS = 2
RECORDS = SLOTS + NR_SLOTS * SLOT_WORDS  # record 0 is nobody's
AT_SLOT = ("check", "read", "write", "leave")
AT_WORK = ("read", "write")
DRAINS = ("collect", "empty")


class Model(Buffered):
    """State: (memory, (pc, store buffer, slot, register, done so far) of each thread). The last one is the drainer.

    Thread k has identity k + 1, record k + 1, and its near place is ``near[k]``; what it does is ``programs[k]``.
    """

    def __init__(
        self, near: tuple[int, ...], having: tuple[int, ...], programs: tuple[tuple[str, ...], ...],
        *, biased: bool = False, visits: int = 1, sabotage: str = "",
    ) -> None:  # fmt: skip
        self.near, self.programs, self.biased = near, programs, biased
        self.visits, self.sabotage = visits, sabotage
        self.owners = len(programs)
        memory = [FREE, 0, *(word for who in having for word in (who, 0, OPEN)), *[0] * (self.owners + 1)]
        far = [self.distance(who - 1, slot) for slot, who in enumerate(having) if who != NOBODY]
        memory[FARTHEST] = max(far, default=0)
        self.start = (tuple(memory), (*[("seek", (), 0, 0, 0)] * self.owners, ("lock", (), 0, 0, 0)))

    def distance(self, who: int, slot: int) -> int:
        return (slot - self.near[who]) % NR_SLOTS

    def word(self, slot: int, field: int) -> int:
        return SLOTS + slot % NR_SLOTS * SLOT_WORDS + field

    def slot_of(self, who: int, see: Any) -> int | None:
        """own_slot with the lock held."""
        for far in range(see(FARTHEST) + 1):
            if see(self.word(self.near[who] + far, KEY)) == who + 1:
                return (self.near[who] + far) % NR_SLOTS
        return None

    def farthest(self, see: Any, changes: dict[int, int]) -> int:
        """_measure_distances, with some keys changed."""
        far = [0]
        for slot in range(NR_SLOTS):
            key = changes.get(slot, see(self.word(slot, KEY)))
            if key != NOBODY:
                far.append(self.distance(key - 1, slot))
        return 0 if self.sabotage == "the farthest is forgotten" else max(far)

    def settle(self, who: int, see: Any, verb: str) -> tuple[list[tuple[int, int]], int | None]:
        """With the lock: the stores that find the thread a slot, or a nearer one, or end it; and the slot."""
        slot = self.slot_of(who, see)
        if verb == "end":
            changes = {slot: NOBODY} if slot is not None else {}
            stores = [(self.word(slot, KEY), NOBODY)] if slot is not None else []
            return [*stores, (FARTHEST, self.farthest(see, changes))], None
        for far in range(NR_SLOTS):
            place = (self.near[who] + far) % NR_SLOTS
            if place == slot:
                return [], slot
            taken = see(self.word(place, KEY)) != NOBODY
            if not taken or (self.sabotage == "a living thread's slot is taken" and slot is None):
                changes = {place: who + 1} | ({slot: NOBODY} if slot is not None else {})
                stores = [(self.word(place, INSIDE), 0), (self.word(place, RECORD), OPEN)]
                stores.append((self.word(place, KEY), who + 1))
                if slot is not None:
                    stores.append((self.word(slot, KEY), NOBODY))
                return [*stores, (FARTHEST, self.farthest(see, changes))], place
        return [], None

    def owner(self, memory: tuple, who: int, pc: str, buffer: tuple, slot: int, register: int, at: int) -> list:
        verb = self.programs[who][at] if at < len(self.programs[who]) else ""
        see = lambda word: self.see(memory, buffer, word)
        go = lambda pc, *stores, slot=slot, register=register, at=at, memory=memory: [
            (memory, (pc, (*buffer, *stores), slot, register, at))
        ]
        end = "done" if at + 1 == len(self.programs[who]) else "seek"
        record = RECORDS + who + 1
        if pc == "seek":  # slot: the place to look at; register: how much farther, and whether a place was free
            return go("wait" if verb == "end" else "look", slot=self.near[who], register=see(FARTHEST) * 2)
        if pc == "look":
            key = see(self.word(slot, KEY))
            if key == who + 1:
                return go("wait" if register & 1 else "enter", register=0)
            if register < 2:
                return go("wait", register=0)
            return go("look", slot=(slot + 1) % NR_SLOTS, register=(register - 2) | (key == NOBODY))
        if pc == "enter":
            return go("check", (self.word(slot, INSIDE), 1))
        if pc == "check":
            opened = see(self.word(slot, RECORD)) == OPEN
            return go("read") if opened else go("wait", (self.word(slot, INSIDE), 0))
        if pc == "read":
            return go("write", register=see(record))
        if pc == "write":
            return go("leave", (record, register + 1), register=0)
        if pc == "leave":
            return go(end, (self.word(slot, INSIDE), 0), slot=0, at=at + 1)
        if pc == "wait" and self.sabotage == "it moves without the lock" and self.slot_of(who, see) is not None:
            return go("seek", *self.settle(who, see, verb)[0])
        if pc == "wait":  # the lock; a biased one may be had with stores still on their way
            if memory[LOCK] != FREE or (buffer and not self.biased):
                return []
            return go("settle", memory=(HELD, *memory[1:]))
        if pc == "settle":
            stores, _ = self.settle(who, see, verb)
            return go("unlock" if verb == "end" else "read+", *stores)
        if pc == "read+":
            return go("write+", register=see(record))
        if pc == "write+":
            return go("unlock", (record, register + 1), register=0)
        if pc == "unlock":
            return go(end, (LOCK, FREE), slot=0, at=at + 1)
        return []

    def drainer(
        self, memory: tuple, threads: tuple, pc: Any, buffer: tuple, slot: int, hand: int, at: int
    ) -> list[tuple]:  # fmt: skip
        who = self.owners
        see = lambda word: self.see(memory, buffer, word)
        go = lambda pc, *stores, slot=slot, hand=hand, at=at, memory=memory: [
            (memory, self.put(threads, who, (pc, (*buffer, *stores), slot, hand, at)))
        ]
        more = slot + 1 < NR_SLOTS
        key = see(self.word(slot, KEY))
        following = slot + 1 if more else 0
        if pc == "lock":
            return go("shut", slot=0, memory=(HELD, *memory[1:])) if not buffer and memory[LOCK] == FREE else []
        if pc == "shut":
            stores = [(self.word(slot, RECORD), SHUT)] if key != NOBODY else []
            return go("shut" if more else "barrier", *stores, slot=following)
        if pc == "barrier":  # a system call: what the caller has stored before is in memory
            return [] if buffer else go(tuple(range(self.owners)))
        if isinstance(pc, tuple):  # the membarrier: who has still to be reached
            return self.reach(memory, threads, pc, "await")
        if pc == "await":
            if key != NOBODY and see(self.word(slot, INSIDE)) != 0:
                return []
            return go("await" if more else "collect", slot=following)
        if pc == "collect":  # the record that the slot names
            return go("empty", hand=hand + see(RECORDS + key))
        if pc == "empty":
            return go("collect" if more else "open", (RECORDS + key, 0), slot=following)
        if pc == "open":
            stores = [(self.word(slot, RECORD), OPEN)] if key != NOBODY else []
            return go("open" if more else "unlock", *stores, slot=following)
        if pc == "unlock":
            return go("lock" if at + 1 < self.visits else "done", (LOCK, FREE), slot=0, at=at + 1)
        return []

    def excludes(self, state: tuple) -> bool:
        """Nobody is at work on a record that is drained, and nobody at somebody else's slot."""
        memory, threads = state
        at_slot = [mine[2] for mine in threads[:-1] if mine[0] in AT_SLOT]
        if len(set(at_slot)) != len(at_slot):
            return False
        pc, buffer, slot, *_ = threads[-1]
        if pc not in DRAINS:
            return True
        key = self.see(memory, buffer, self.word(slot, KEY))
        return key == NOBODY or threads[key - 1][0] not in AT_WORK

    def adds_up(self, state: tuple) -> bool:
        """Where nobody is in the middle of something: each visit is counted once, and nobody has two slots."""
        memory, threads = state
        if memory[LOCK] != FREE or any(mine[1] or mine[0] not in ("seek", "lock", "done") for mine in threads):
            return True
        keys = [memory[self.word(slot, KEY)] for slot in range(NR_SLOTS)]
        owned = [key for key in keys if key != NOBODY]
        visits = sum(program[: mine[4]].count("work") for program, mine in zip(self.programs, threads, strict=False))
        return len(set(owned)) == len(owned) and sum(memory[RECORDS:]) + threads[-1][3] == visits


WORK, END = "work", "end"
CASES = {  # near places, who has the slots, what they do
    "one moves to a place that is free": ((0,), (0, 1), ((WORK, WORK, WORK),)),
    "one moves away from where another wants to be": ((0, 1), (0, 1), ((WORK, WORK), (WORK, WORK))),
    "one ends, and the other moves": ((0, 0), (1, 2), ((WORK, END), (WORK, WORK, WORK))),
    "one ends, and the other has none": ((0, 0), (1, 0), ((END,), (WORK, WORK, WORK))),
    "both want the same place": ((0, 0), (0, 0), ((WORK, WORK), (WORK, WORK))),
    "both end and come again": ((0, 0), (1, 2), ((END, WORK), (END, WORK))),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_slots_change_hands_beside_a_drainer(name: str, biased: bool) -> None:
    *holds, states = explore(Model(*CASES[name], biased=biased))
    assert holds == [True, True, True]
    assert states > 200


@pytest.mark.skipif(not POINTERS, reason="the model is Python in every leg: the jitted ones explore the largest")
def test_three_threads_for_two_slots() -> None:
    *holds, states = explore(Model((0, 0, 1), (1, 2), ((WORK, END), (WORK, WORK), (WORK,))))
    assert holds == [True, True, True]
    assert states > 10_000


@pytest.mark.parametrize(
    ("sabotage", "name"),
    [
        ("a living thread's slot is taken", "one moves away from where another wants to be"),
        ("it moves without the lock", "one moves to a place that is free"),
        ("the farthest is forgotten", "one ends, and the other moves"),
    ],
)
def test_the_model_sees_what_each_precaution_is_for(sabotage: str, name: str) -> None:
    near, having, programs = CASES[name]
    if sabotage == "a living thread's slot is taken":
        having = (0, 1)
        near = (1, 1)
    exclusive, whole, *_ = explore(Model(near, having, programs, sabotage=sabotage), until_wrong=True)
    assert not (exclusive and whole)
