"""Python's workloads: sources are opened for what the row needs and closed again, also where taking fails."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from realalloc.lab.loops.layers import PLAIN
from realalloc.lab.pythons import PythonPeer, Source
from realalloc.lab.workloads import arrays, pool, view
from realalloc.lab.workloads.scope import Scope


class Books:
    """A source that counts what is taken and given back."""

    def __init__(self, most: int = 1 << 60) -> None:
        self.out = self.most_out = 0
        self.left = most
        self.asked: list[tuple[int, int]] = []
        self.closed = 0

    def take(self, size: int) -> bytearray:
        if self.left == 0:
            raise MemoryError("no more")
        self.left -= 1
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        return bytearray(size)

    def give(self, _buffer: bytearray) -> None:
        self.out -= 1

    def close(self) -> None:
        assert self.out == 0
        self.closed += 1

    def peer(self) -> PythonPeer:
        def opened(size: int, live: int) -> Any:
            self.asked.append((size, live))
            return {"take": self.take, "give": self.give, "size": size}, self.close

        return PythonPeer(Source("counted", "take(size)", opened, "give(x)"), PLAIN)


@pytest.mark.parametrize("workload", [view, pool, arrays], ids=lambda workload: workload.NAME)
def test_what_is_taken_is_given_back(workload) -> None:
    for case in workload.cases(Scope(0.001)):
        books = Books()
        turn = case.make(books.peer())
        sums = {turn.run(case.number) for _ in range(2)}
        turn.close()
        assert len(sums) == 1 and books.closed == 1
        ((size, live),) = books.asked
        assert case.size_bytes in (None, size) and size == case.parameters["size_bytes"]
        assert books.most_out == case.parameters.get("live", 0) + 1
        assert live >= case.parameters.get("live", 1)


@pytest.mark.parametrize("most", [0, 1, 5, 16, 20])
def test_arrays_that_cannot_be_had_are_given_back(most: int) -> None:
    books = Books(most)
    case = next(iter(arrays.cases(Scope(0.001))))
    with pytest.raises(MemoryError):
        case.make(books.peer())
    assert books.out == 0 and books.closed == 1


def test_arrays_keep_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[deque[Any]] = []

    class Held(deque[Any]):
        def __init__(self) -> None:
            super().__init__()
            kept.append(self)

    monkeypatch.setattr(arrays, "deque", Held)
    case = next(iter(arrays.cases(Scope(0.001))))
    turn = case.make(Books().peer())
    turn.run(40)
    assert len(kept[0]) == case.parameters["live"]
    assert all(buffer[0] == buffer[4096] == 1 and buffer[1] == 0 for buffer in kept[0])  # a byte of each page
    turn.close()
    assert not kept[0]
