"""A budget: whole or not at all, waits, times out."""

from __future__ import annotations

import threading
import time

import pytest
from checks import Worker, eventually

from realalloc.adapters.bounded import Budget, time_left


def test_what_was_taken_is_missing_until_it_is_given() -> None:
    budget = Budget(3, "things")
    for count in (0, 1, 2, 3):
        budget.take(count, 0)
        assert budget.free == 3 - count
        budget.give(count)
    assert budget.free == 3


def test_a_wait_that_runs_out_takes_nothing() -> None:
    budget = Budget(3, "things")
    budget.take(2)
    for seconds in (0, 0.01):
        with pytest.raises(TimeoutError, match="1 of 3 things free"):
            budget.take(2, seconds)
    assert budget.free == 1


def test_a_waiter_gets_all_when_enough_came_back() -> None:
    budget = Budget(2, "things")
    budget.take(1)
    budget.take(1)
    waiter = Worker(lambda: budget.take(2, 30))
    budget.give(1)
    assert budget.free == 1
    budget.give(1)
    eventually(lambda: budget.free == 0)
    waiter.result()


@pytest.mark.parametrize("total", [0, -1, 1.5, None])
def test_nonsense_is_refused(total: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Budget(total, "things")  # type: ignore[arg-type]


def test_more_than_all_and_more_than_out_are_refused() -> None:
    budget = Budget(2, "things")
    with pytest.raises(ValueError, match="3 of 2 things can never be had"):
        budget.take(3)
    with pytest.raises(ValueError, match="1 things come back, 0 are out"):
        budget.give(1)


def test_time_left_is_never_negative() -> None:
    assert time_left(None) is None
    assert time_left(0.0) == 0.0


def test_for_ever_may_be_said_as_infinity() -> None:
    budget = Budget(1, "things")
    budget.take(1, float("inf"))
    waiter = Worker(lambda: budget.take(1, float("inf")))
    time.sleep(0.01)  # let it wait; a wait that cannot be told to the system raises at once
    budget.give(1)
    waiter.result()
    assert time_left(float("inf")) == threading.TIMEOUT_MAX
