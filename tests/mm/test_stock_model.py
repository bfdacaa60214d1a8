"""The stock behind the door, every interleaving: a model of stock.py, sheaf.py and threads.py, walked exhaustively.

In test_door_model.py a record is a stack of its own. Here its sheaves are apart from it: a record names its main sheaf, and
has a word with two lists of sheaves, linked through them. The owner exchanges an empty sheaf for a full one, or the other way
round, in the steps of ``_find_full`` and ``find_room``; the drainer takes all sheaves, which then may be another owner's. With
the lock an owner gets new ones. Plain stores go through a FIFO store buffer, which may drain at any time, as on x86.

Checked in every reachable state: an owner and a drainer are never both at work on one record; where nobody is in the middle
of anything, each object and each sheaf is in one place, full ones hold something and empty ones nothing. From every state
all threads can still finish.
"""

from __future__ import annotations

import pytest
from models import Buffered, explore

FREE, HELD = 0, 1
NULL, KEPT = 0, 1
LOCK, POOL = 0, 1  # words of memory; a value may be a tuple. POOL: sheaves that nobody has
INSIDE, RECORD, MAIN, STOCK, OWNER_WORDS = 2, 3, 4, 5, 4  # STOCK: (top full sheaf, top empty one)
COUNT, NEXT, ENTRY, SHEAF_WORDS = 0, 1, 2, 3  # a sheaf holds one object
SHEAVES = 3  # that each owner begins with: the main one, a full and an empty one in stock
OUTSIDE = ("enter", "check", "shut", "wait", "lock", "done")
DRAINS = ("look", "stock", "collect")


class Model(Buffered):
    """State: (memory, (pc, store buffer, registers, hand, done so far) of each thread). The last thread is the drainer.

    Owner k begins with objects 2k + 1 (in stock) and 2k + 2 (in its main sheaf if ``full``, else in its hand).
    """

    def __init__(self, *programs: tuple[str, ...], full: bool = False, visits: int = 1, sabotage: str = "") -> None:
        self.programs, self.visits, self.sabotage = programs, visits, sabotage
        self.owners = len(programs)
        records, sheaves = [], []
        for who in range(self.owners):
            first = 1 + who * SHEAVES
            records += [0, KEPT, first, (first + 1, first + 2)]
            sheaves += [int(full), 0, (2 * who + 2) * full, 1, 0, 2 * who + 1, 0, 0, 0]
        self.sheaves = INSIDE + self.owners * OWNER_WORDS
        hands = [() if full else (2 * who + 2,) for who in range(self.owners)]
        owners = [("enter", (), (), hand, 0) for hand in hands]
        self.start = ((FREE, (), *records, *sheaves), (*owners, ("lock", (), (0,), (), 0)))

    def of(self, sheaf: int, field: int) -> int:
        return self.sheaves + (sheaf - 1) * SHEAF_WORDS + field

    def owner(self, memory: tuple, who: int, pc: str, buffer: tuple, kept: tuple, hand: tuple, at: int) -> list:
        """One step of an owner: at most one load. ``kept``: the main sheaf, its count, then what the exchange has read."""
        verb = self.programs[who][at] if at < len(self.programs[who]) else ""
        base = who * OWNER_WORDS
        see = lambda word: self.see(memory, buffer, word)
        go = lambda pc, *stores, kept=kept, hand=hand, at=at, memory=memory: [
            (memory, (pc, (*buffer, *stores), kept, hand, at))
        ]
        end = "done" if at + 1 == len(self.programs[who]) else "enter"
        locked, bare = pc.endswith("+"), pc.rstrip("+")
        plus = "+" if locked else ""
        give_up = "leave+" if locked else "shut"
        if bare == "enter":
            return go("check", (base + INSIDE, 1))
        if bare == "check":
            return go("main" if see(base + RECORD) == KEPT else "shut")
        if bare == "shut":
            return go("wait", (base + INSIDE, 0), kept=())
        if bare == "wait":  # compare-and-swap: needs an empty buffer
            return go("main+", memory=(HELD, *memory[1:])) if not buffer and memory[LOCK] == FREE else []
        if bare == "main":
            main = see(base + MAIN)
            if main == 0:
                return go("grow+" if locked and verb == "put" else give_up, kept=(0,))
            return go("count" + plus, kept=(main,))
        if bare == "count":
            count = see(self.of(kept[0], COUNT))
            if verb == "put" and not hand:
                return go("leave" + plus)
            return go(("work" if (count == 1) == (verb == "pop") else "exchange") + plus)
        if bare == "work" and verb == "pop":
            taken = see(self.of(kept[0], ENTRY))
            return go("leave" + plus, (self.of(kept[0], COUNT), 0), hand=(*hand, taken))
        if bare == "work":
            stores = (self.of(kept[0], ENTRY), hand[-1]), (self.of(kept[0], COUNT), 1)
            return go("leave" + plus, *stores, hand=hand[:-1])
        if bare == "exchange":
            lists = see(base + STOCK)
            if lists[verb == "put"] == 0:
                return go("grow+" if locked and verb == "put" else give_up)
            return go("unlink" + plus, kept=(kept[0], *lists))
        if bare == "unlink":  # the sheaf that comes goes off its list, the main one onto the other
            main, full, empty = kept
            comes, other = (full, empty) if verb == "pop" else (empty, full)
            rest = see(self.of(comes, NEXT))
            between, after = ((rest, empty), (rest, main)) if verb == "pop" else ((full, rest), (main, rest))
            stores = [
                (base + STOCK, between),
                (self.of(main, NEXT), other),
                (base + STOCK, after),
                (base + MAIN, comes),
            ]
            if self.sabotage == "the door is open before the exchange is over" and not locked:
                return go("late", *stores[:2], (base + INSIDE, 0), kept=(comes, stores[2], stores[3]))
            return go("count" + plus, *stores, kept=(comes,))
        if bare == "late":
            return go("enter", *kept[1:], kept=())
        if bare == "grow":  # with the lock: a sheaf that nobody has, for the main one, which is full, if there is one
            pool = see(POOL)
            if not pool:
                return go("leave+")
            lists = see(base + STOCK)
            stores = [(POOL, pool[1:]), (self.of(pool[0], COUNT), 0), (base + MAIN, pool[0])]
            if kept[0] != 0:
                stores += [(self.of(kept[0], NEXT), lists[0]), (base + STOCK, (kept[0], lists[1]))]
            return go("count+", *stores, kept=(pool[0],))
        if bare == "leave":
            return go(end, (LOCK, FREE) if locked else (base + INSIDE, 0), kept=(), at=at + 1)
        return []

    def drainer(self, memory: tuple, threads: tuple, pc: object, buffer: tuple, kept: tuple, hand: tuple, at: int):
        """One step of the drainer. ``kept``: which record, then the sheaves that it has still to look at."""
        who = self.owners
        see = lambda word: self.see(memory, buffer, word)
        go = lambda pc, *stores, kept=kept, hand=hand, at=at, memory=memory: [
            (memory, self.put(threads, who, (pc, (*buffer, *stores), kept, hand, at)))
        ]
        base = kept[0] * OWNER_WORDS
        more = kept[0] + 1 < self.owners
        following = (kept[0] + 1 if more else 0,)
        if pc == "lock":
            return go("shut", memory=(HELD, *memory[1:])) if not buffer and memory[LOCK] == FREE else []
        if pc == "shut":
            return go("shut" if more else "barrier", (base + RECORD, NULL), kept=following)
        if pc == "barrier" and self.sabotage == "no membarrier":
            return go("await")
        if pc == "barrier":  # a system call: what the caller has stored before is in memory
            return [] if buffer else go(tuple(range(self.owners)))
        if isinstance(pc, tuple):  # the membarrier: who has still to be reached
            return self.reach(memory, threads, pc, "await")
        if pc == "await":
            if see(base + INSIDE) != 0 and self.sabotage != "nobody waits":
                return []
            return go("await" if more else "look", kept=following)
        if pc == "look":
            main = see(base + MAIN)
            return go("stock", kept=(kept[0], *([main] if main else [])))
        if pc == "stock":
            return go("collect", kept=(*kept, *[top for top in see(base + STOCK) if top != 0]))
        if pc == "collect" and len(kept) > 1:
            sheaf, *rest = kept[1:]
            if see(self.of(sheaf, COUNT)) == 1:
                hand = (*hand, see(self.of(sheaf, ENTRY)))
            below = see(self.of(sheaf, NEXT)) if sheaf != see(base + MAIN) else 0
            again = below in rest  # never while the lists are whole; the model must end when they are not
            rest += [below] if below != 0 and not again else []
            return go("collect", (POOL, (*see(POOL), sheaf)), kept=(kept[0], *rest), hand=hand)
        if pc == "collect":
            return go("look" if more else "open", (base + MAIN, 0), (base + STOCK, (0, 0)), kept=following)
        if pc == "open":
            return go("open" if more else "unlock", (base + RECORD, KEPT), kept=following)
        if pc == "unlock":
            return go("lock" if at + 1 < self.visits else "done", (LOCK, FREE), at=at + 1)
        return []

    def excludes(self, state: tuple) -> bool:
        """No owner at work by the door while the drainer is at work on its record."""
        pc, _, kept, *_ = state[1][-1]
        return pc not in DRAINS or state[1][kept[0]][0] in OUTSIDE

    def adds_up(self, state: tuple) -> bool:
        """Where nobody is in the middle of something, objects and sheaves are in one place each."""
        memory, threads = state
        if any(pc not in ("enter", "wait", "lock", "done") or buffer for pc, buffer, *_ in threads):
            return True
        things = [thing for _, _, _, hand, _ in threads for thing in hand]
        where = list(memory[POOL])
        for who in range(self.owners):
            main, (full, empty) = (memory[who * OWNER_WORDS + word] for word in (MAIN, STOCK))
            for sheaf, count in ((main, None), (full, 1), (empty, 0)):
                while sheaf != 0 and len(where) <= SHEAVES * self.owners:
                    where.append(sheaf)
                    if count not in (None, memory[self.of(sheaf, COUNT)]):
                        return False
                    things += [memory[self.of(sheaf, ENTRY)]] * memory[self.of(sheaf, COUNT)]
                    sheaf = memory[self.of(sheaf, NEXT)] if count is not None else 0
        return sorted(things) == [*range(1, 2 * self.owners + 1)] and sorted(where) == [
            *range(1, SHEAVES * self.owners + 1)
        ]


PROGRAMS = [("pop",), ("put",), ("pop", "pop"), ("put", "put"), ("pop", "put"), ("put", "pop"), ("pop", "put", "pop")]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("program", PROGRAMS, ids="-".join)
def test_an_owner_exchanges_its_stock_beside_a_drainer_who_comes_twice(program: tuple[str, ...], full: bool) -> None:
    *holds, states = explore(Model(program, full=full, visits=2))
    assert holds == [True, True, True]
    assert states > 200


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("first", "second"), [("pop", "pop"), ("pop", "put"), ("put", "put")])
def test_sheaves_of_two_owners_change_hands(first: str, second: str, full: bool) -> None:
    *holds, states = explore(Model((first,), (second,), full=full))
    assert holds == [True, True, True]
    assert states > 5000


@pytest.mark.parametrize("sabotage", ["no membarrier", "nobody waits", "the door is open before the exchange is over"])
def test_the_model_sees_what_each_step_is_for(sabotage: str) -> None:
    """The same walk finds both at work on a record, or an object or a sheaf lost or doubled."""
    exclusive, whole, *_ = explore(Model(("pop", "put"), sabotage=sabotage), until_wrong=True)
    assert not (exclusive and whole)
