"""replacement: in rows of several threads each has a heap that no other touches, from the first object to the last."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from realalloc.lab.measure import Case
from realalloc.lab.workloads import replacement
from realalloc.lab.workloads.scope import Scope


class Witness:
    """A peer that notes who works on which heap."""

    def __init__(self, failing: int = -1) -> None:
        """Let the filling of one thread's heap fail."""
        self.seen: dict[int, list[tuple[str, int]]] = {}  # by the heap
        self.heaps: list[Any] = []  # so that no two have one id
        self.failing = failing
        self.loops = SimpleNamespace(replace=self.replace, drain=self.drain)

    def how(self, thread: int = 0) -> int:
        return thread

    def note(self, verb: str, blocks: Any) -> None:
        self.heaps.append(blocks)
        self.seen.setdefault(id(blocks), []).append((verb, threading.get_ident()))

    def replace(self, how: int, blocks: Any, *_: Any) -> int:
        if how == self.failing:
            return -1
        self.note("replace", blocks)
        return 1

    def drain(self, _how: int, blocks: Any) -> int:
        self.note("drain", blocks)
        return 0


def rows(scope: Scope) -> list[Case]:
    found = [case for case in replacement.cases(scope) if case.parameters.get("threads") or "threads" in case.case]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("threads", [2, 3])
def test_a_thread_fills_replaces_and_frees_its_own_heap(threads: int) -> None:
    scope = Scope(0.001, threads)
    try:
        for case in rows(scope):
            peer = Witness()
            turn = case.make(peer)
            assert turn.run(5) == turn.run(5) == threads
            turn.close()
            assert [[verb for verb, _ in heap] for heap in peer.seen.values()] == [
                ["replace", "replace", "replace", "drain"]
            ] * threads
            owners = [{thread for _, thread in heap} for heap in peer.seen.values()]
            assert all(len(heap) == 1 for heap in owners)
            assert len(set.union(*owners)) == threads and threading.get_ident() not in set.union(*owners)
    finally:
        scope.close()


def test_no_memory_for_one_heap_frees_the_other() -> None:
    scope = Scope(0.001, 2)
    try:
        for case in rows(scope):
            peer = Witness(failing=1)
            with pytest.raises(MemoryError):
                case.make(peer)
            assert [[verb for verb, _ in heap] for heap in peer.seen.values()] == [["replace", "drain"]]
    finally:
        scope.close()
