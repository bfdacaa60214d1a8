"""The benchmark of two threads over one: in every turn that counts, both are at work."""

from __future__ import annotations

import threading
import time

import pytest

from bench import scaling
from realalloc.lab.crowd import Workers
from realalloc.lab.peers import OURS


class _Heap:
    """Turns of a given length; what each returns is its number."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.turns, self.threads = seconds, 0, set()

    def go_on(self) -> float:
        time.sleep(self.seconds)
        self.threads.add(threading.get_native_id())
        self.turns += 1
        return float(self.turns)


def test_the_fast_one_goes_on_until_the_slow_one_has_had_its_turns() -> None:
    fast, slow = _Heap(0.001), _Heap(0.05)
    with Workers(2) as workers:
        found = scaling.side_by_side(workers, [fast, slow], 3)
    assert found == [2.0, 3.0, 4.0] * 2  # the first turn of each warms up
    assert slow.turns == 4 and fast.turns > 10
    assert len(fast.threads | slow.threads) == 2 and not fast.threads & slow.threads


@pytest.mark.parametrize("thread", [0, 1])
def test_alone_the_same_thread_works_and_the_others_do_not(thread: int) -> None:
    heaps = [_Heap(0), _Heap(0)]
    with Workers(2) as workers:
        scaling.side_by_side(workers, heaps, 1)
        before = [heap.turns for heap in heaps]
        assert scaling.alone(workers, heaps, thread, 5) == [before[thread] + 2.0 + k for k in range(5)]
    assert heaps[1 - thread].turns == before[1 - thread]
    assert len(heaps[thread].threads) == 1


def test_a_small_run_has_every_part(capsys) -> None:
    results = scaling.scaling([], smoke=True)
    if not results:
        assert "one processor" in capsys.readouterr().out
        return
    (row,) = results
    assert set(row.medians) == {"1 thread", "2 threads"} and min(row.medians.values()) > 0
    wanted = row.notes["times as many a second (1.9 wanted)"]
    assert wanted == pytest.approx(2 / row.ratio("1 thread"), abs=0.001)
    assert row.targets == {"1 thread": pytest.approx(2 / 1.9)}
    assert OURS not in row.notes and "harness alone" in row.notes
