"""What the models of protocols share: threads with store buffers, and the walk through every state that can be reached.

A state is (memory, threads); a thread is (pc, store buffer, ...), and the last one is the drainer. A plain store goes through
the FIFO store buffer of its thread, which may drain at any time, as on x86; a thread sees its own buffered stores first.
"""

from __future__ import annotations

from typing import Any


class Buffered:
    """A model of owners and a drainer; who inherits says what ``owner`` and ``drainer`` do next, and what must hold."""

    owners: int
    start: tuple

    def owner(self, memory: tuple, who: int, *mine: Any) -> list:
        """Return (memory, thread) for all steps of an owner."""
        raise NotImplementedError

    def drainer(self, memory: tuple, threads: tuple, *mine: Any) -> list:
        """Return the states for all steps of the drainer."""
        raise NotImplementedError

    def excludes(self, state: tuple) -> bool:
        """Tell whether nobody is where somebody else is at work."""
        raise NotImplementedError

    def adds_up(self, state: tuple) -> bool:
        """Tell whether nothing is lost or doubled."""
        raise NotImplementedError

    def done(self, state: tuple) -> bool:
        """Tell whether all threads have come to their end."""
        return all(pc == "done" and not buffer for pc, buffer, *_ in state[1])

    def see(self, memory: tuple, buffer: tuple, word: int) -> int:
        """A thread sees its own buffered stores first."""
        for where, value in reversed(buffer):
            if where == word:
                return value
        return memory[word]

    def put(self, threads: tuple, who: int, made: tuple) -> tuple:
        """Replace a thread."""
        return (*threads[:who], made, *threads[who + 1 :])

    def steps(self, state: tuple) -> list[tuple]:
        """Return all successors."""
        memory, threads = state
        after = []
        for who, mine in enumerate(threads):
            if mine[1]:  # the oldest buffered store reaches memory
                (word, value), *rest = mine[1]
                stored = (*memory[:word], value, *memory[word + 1 :])
                after.append((stored, self.put(threads, who, (mine[0], tuple(rest), *mine[2:]))))
            if who == self.owners:
                after += self.drainer(memory, threads, *mine)
            else:
                after += [(changed, self.put(threads, who, made)) for changed, made in self.owner(memory, who, *mine)]
        return after

    def reach(self, memory: tuple, threads: tuple, left: tuple, then: str) -> list[tuple]:
        """The membarrier reaches one of the threads that are left: its stores arrive."""
        reached = []
        for other in left:
            pc, held, *rest = threads[other]
            arrived = list(memory)
            for where, value in held:
                arrived[where] = value
            still = tuple(k for k in left if k != other)
            changed = self.put(threads, other, (pc, (), *rest))
            drainer = (still or then, *threads[self.owners][1:])
            reached.append((tuple(arrived), self.put(changed, self.owners, drainer)))
        return reached


def explore(model: Buffered, until_wrong: bool = False) -> tuple[bool, bool, bool, int]:
    """Return (exclusion holds everywhere, nothing is lost or doubled, every state can finish, states)."""
    back: dict[tuple, list[tuple]] = {model.start: []}
    todo = [model.start]
    exclusive = whole = True
    finished = []
    while todo:
        state = todo.pop()
        exclusive = exclusive and model.excludes(state)
        whole = whole and model.adds_up(state)
        if until_wrong and not (exclusive and whole):
            break
        if model.done(state):
            finished.append(state)
        for after in model.steps(state):
            if after not in back:
                back[after] = []
                todo.append(after)
            back[after].append(state)
    can_finish = set(finished)
    while finished:
        for before in back[finished.pop()]:
            if before not in can_finish:
                can_finish.add(before)
                finished.append(before)
    return exclusive, whole, len(can_finish) == len(back), len(back)
