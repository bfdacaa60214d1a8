"""Medians of rounds and their intervals, against numpy and known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.lab.intervals import Interval


def test_one_round_has_no_width() -> None:
    assert Interval.of([7.0]) == Interval(7.0, 7.0, 7.0)
    assert Interval.of([3.0] * 9) == Interval(3.0, 3.0, 3.0)


def test_no_rounds_are_refused_and_what_is_not_finite_is_nan() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        Interval.of([])
    for value in (math.nan, math.inf):
        made = Interval.of([1.0, value])
        assert math.isnan(made.value) and math.isnan(made.low) and math.isnan(made.high)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40))
def test_an_interval_holds_its_median_within_the_rounds(rounds: list[float]) -> None:
    made = Interval.of(rounds)
    assert made.value == np.median(rounds)
    assert min(rounds) <= made.low <= made.value <= made.high <= max(rounds)
    assert made == Interval.of(rounds)


def test_intervals_hold_the_true_median_about_as_often_as_they_say() -> None:
    dice = np.random.default_rng(7)
    held = [Interval.of(dice.lognormal(0, 0.3, 31)).holds(1.0) for _ in range(300)]
    assert 0.90 <= np.mean(held) <= 0.99


def test_per_second_turns_ends_round() -> None:
    assert Interval(10.0, 5.0, 20.0).per_second == Interval(1e8, 5e7, 2e8)
    assert math.isnan(Interval(0.0, 0.0, 0.0).per_second.value)
