"""mstress: a row counts the objects that are made, those of all threads: the second thread makes twice as many."""

from __future__ import annotations

import pytest
from cheats import CALLS, OUT, failing, how

from realalloc.lab.peers import Peer
from realalloc.lab.workloads import mstress
from realalloc.lab.workloads.scope import Scope


@pytest.mark.parametrize(("threads", "scale"), [(1, 0.01), (2, 0.01), (2, 0.02), (3, 0.01)])
def test_operations_are_objects(threads: int, scale: float) -> None:
    scope = Scope(scale, threads)
    case = next(case for case in mstress.cases(scope) if case.threads == threads)
    books = [how() for _ in range(threads)]
    turn = case.make(Peer("counted", failing, lambda thread: books[thread]))
    before = sum(int(mine[CALLS]) for mine in books)
    turn.prepare()
    turn.run(case.number)
    turn.teardown()
    turn.close()
    made = sum(int(mine[CALLS]) for mine in books) - before
    arrays = 3 * threads * mstress.ITERATIONS  # that remember what a thread has
    assert case.number * 0.97 - 3 <= made <= case.number + arrays
    assert sum(int(mine[OUT]) for mine in books) == 0


def test_a_full_row_is_four_iterations() -> None:
    for case in mstress.cases(Scope(1.0, 2)):
        objects = mstress.YOUNG * 3 // 2 * case.threads * (case.threads + 1) // 2
        assert case.number == mstress.ITERATIONS * objects
