"""The biased lock, every interleaving: a model of atomic.lock/unlock with store buffers, walked exhaustively.

Each thread is a program of small steps; plain stores go through a FIFO store buffer that may drain at any time, as on x86.
Compare-and-swap and the membarrier drain buffers: the caller's, or everybody's. Checked in every reachable state: at most
one thread is inside, and from every state all threads can still finish.
"""

from __future__ import annotations

import pytest

FREE, HELD, REVOKING, OWNER = 0, 1, 2, 99
DONE = "done"


class Model:
    """State: (LOCK, INSIDE, per thread (pc, store buffer, rounds left)). Thread 0 has the identity that LOCK is biased to."""

    def __init__(self, threads: int, rounds: int, *, barrier: bool) -> None:
        self.barrier = barrier
        self.start = (OWNER, 0, tuple(("enter", (), rounds) for _ in range(threads)))

    def read(self, memory: dict[str, int], buffer: tuple, name: str) -> int:
        """A thread sees its own buffered stores first."""
        for variable, value in reversed(buffer):
            if variable == name:
                return value
        return memory[name]

    def steps(self, state: tuple) -> list[tuple]:
        """Return all successors."""
        lock, inside, threads = state
        successors = []
        for who, (pc, buffer, rounds) in enumerate(threads):
            memory = {"lock": lock, "inside": inside}
            if buffer:  # the oldest buffered store reaches memory
                variable, value = buffer[0]
                successors.append(self.make({**memory, variable: value}, threads, who, (pc, buffer[1:], rounds)))
            for after in self.run(memory, who, pc, buffer, rounds, threads):
                successors.append(after)
        return successors

    def make(self, memory: dict[str, int], threads: tuple, who: int, mine: tuple) -> tuple:
        changed = list(threads)
        changed[who] = mine
        return (memory["lock"], memory["inside"], tuple(changed))

    def run(self, memory, who, pc, buffer, rounds, threads):
        """One step of thread ``who``."""
        see = lambda name: self.read(memory, buffer, name)
        go = lambda pc, buffer=buffer, rounds=rounds, memory=memory: [
            self.make(memory, threads, who, (pc, buffer, rounds))
        ]
        if pc == "enter":
            return go("announce") if who == 0 and see("lock") == OWNER else go("contend")
        if pc == "announce":
            return go("recheck", (*buffer, ("inside", 1)))
        if pc == "recheck":
            return go("critical") if see("lock") == OWNER else go("contend", (*buffer, ("inside", 0)))
        if pc == "contend":  # compare-and-swap: needs an empty buffer
            if buffer:
                return []
            if memory["lock"] == FREE:
                return go("critical", memory={**memory, "lock": HELD})
            if memory["lock"] == OWNER and who != 0:
                return go("barrier", memory={**memory, "lock": REVOKING})
            if memory["lock"] == OWNER:
                return go("enter")
            return []  # spins
        if pc == "barrier":
            if not self.barrier:
                return go("wait")
            drained = dict(memory)
            flushed = []
            for other_pc, other_buffer, other_rounds in threads:
                for variable, value in other_buffer:
                    drained[variable] = value
                flushed.append((other_pc, (), other_rounds))
            return [self.make(drained, tuple(flushed), who, ("wait", (), rounds))]
        if pc == "wait":
            return go("take") if see("inside") == 0 else []
        if pc == "take":
            return go("critical", (*buffer, ("lock", HELD)))
        if pc == "critical":
            return go("leave")
        if pc == "leave":
            out = ("lock", FREE) if see("lock") == HELD else ("inside", 0)
            return go("enter" if rounds > 1 else DONE, (*buffer, out), rounds - 1)
        return []


def explore(model: Model) -> tuple[bool, bool]:
    """Return (mutual exclusion holds everywhere, every state can finish)."""
    graph: dict[tuple, list[tuple]] = {}
    todo = [model.start]
    exclusive = True
    while todo:
        state = todo.pop()
        if state in graph:
            continue
        graph[state] = model.steps(state)
        todo += graph[state]
        if sum(pc in ("critical", "leave") for pc, _, _ in state[2]) > 1:
            exclusive = False
    back: dict[tuple, list[tuple]] = {}
    for state, after in graph.items():
        for nxt in after:
            back.setdefault(nxt, []).append(state)
    todo = [state for state in graph if all(pc == DONE and not buffer for pc, buffer, _ in state[2])]
    can_finish = set(todo)
    while todo:
        for before in back.get(todo.pop(), []):
            if before not in can_finish:
                can_finish.add(before)
                todo.append(before)
    return exclusive, len(can_finish) == len(graph)


@pytest.mark.parametrize(("threads", "rounds"), [(1, 3), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_biased_lock_excludes_and_never_hangs(threads: int, rounds: int) -> None:
    """One owner and up to two others: no interleaving lets two in, none gets stuck."""
    assert explore(Model(threads, rounds, barrier=True)) == (True, True)


def test_the_model_sees_what_the_barrier_is_for() -> None:
    """Without the membarrier the same walk finds two threads inside."""
    exclusive, _ = explore(Model(2, 2, barrier=False))
    assert not exclusive


class Sleepers:
    """Waiters without bias: LOCK goes FREE, HELD, WAITED; who looked long enough says WAITED and sleeps while it is that.

    State: (LOCK, per thread (pc, how it will take the lock, rounds left)). Each step is one atomic instruction or system call.
    """

    WAITED = 3

    def __init__(self, threads: int, rounds: int, *, keeps_waited: bool = True, wakes: bool = True) -> None:
        self.keeps_waited, self.wakes = keeps_waited, wakes
        self.start = (FREE, tuple(("look", HELD, rounds) for _ in range(threads)))

    def steps(self, state: tuple) -> list[tuple]:
        """Return all successors."""
        lock, threads = state
        after = []
        for who, (pc, taking, rounds) in enumerate(threads):

            def go(pc: str, lock: int = lock, taking: int = taking, rounds: int = rounds, who: int = who) -> tuple:
                return (lock, (*threads[:who], (pc, taking, rounds), *threads[who + 1 :]))

            if pc == "look" and lock == FREE:
                after.append(go("critical", lock=taking))
            elif pc == "look":  # HELD: say that somebody waits; WAITED: somebody has said so
                after.append(go("sleep", lock=self.WAITED, taking=self.WAITED if self.keeps_waited else HELD))
            elif pc == "sleep":  # the kernel compares and enqueues in one step
                after.append(go("asleep" if lock == self.WAITED else "look"))
            elif pc == "critical":
                after.append(go("wake" if lock == self.WAITED and self.wakes else "left", lock=FREE))
            elif pc == "wake":
                asleep = [k for k, thread in enumerate(threads) if thread[0] == "asleep"]
                rest = go("left")
                for k in asleep:
                    woken = ("look", *threads[k][1:])
                    after.append((lock, (*rest[1][:k], woken, *rest[1][k + 1 :])))
                if not asleep:
                    after.append(rest)
            elif pc == "left":
                after.append(go("look" if rounds > 1 else DONE, taking=HELD, rounds=rounds - 1))
        return after


def sleepers_are_safe(model: Sleepers) -> tuple[bool, bool]:
    """Return (at most one is inside, from every state all can finish without a wake-up that nobody sent)."""
    graph: dict[tuple, list[tuple]] = {}
    todo = [model.start]
    while todo:
        state = todo.pop()
        if state not in graph:
            graph[state] = model.steps(state)
            todo += graph[state]
    exclusive = all(sum(pc == "critical" for pc, _, _ in threads) <= 1 for _, threads in graph)
    stuck = [state for state, after in graph.items() if not after and any(pc != DONE for pc, _, _ in state[1])]
    return exclusive, not stuck


@pytest.mark.parametrize(("threads", "rounds"), [(1, 3), (2, 3), (3, 2), (4, 1)])
def test_sleepers_exclude_each_other_and_none_sleeps_for_ever(threads: int, rounds: int) -> None:
    """Every interleaving of looking, sleeping, releasing and waking."""
    assert sleepers_are_safe(Sleepers(threads, rounds)) == (True, True)


def test_the_model_sees_what_waited_is_for() -> None:
    """Without a wake-up, or if who slept takes the lock as if nobody else slept, somebody sleeps for ever."""
    assert sleepers_are_safe(Sleepers(2, 2, wakes=False))[1] is False
    assert sleepers_are_safe(Sleepers(3, 1, keeps_waited=False))[1] is False
