"""The slope and its interval, against series whose slope is known."""

from __future__ import annotations

import numpy as np
import pytest

from realalloc.lab.stress.growth import MOST_POINTS, slope_of

N = 200
TIMES = np.linspace(0, 60, N)


def noise(seed: int, memory: float = 0.0) -> np.ndarray:
    """Make noise whose samples resemble those before them by so much."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=N)
    for k in range(1, N):
        made[k] += memory * made[k - 1]
    return made


def test_an_exact_line() -> None:
    found = slope_of(TIMES, 3.0 * TIMES + 7)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    assert found.points == N


def test_a_constant() -> None:
    found = slope_of(TIMES, np.full(N, 5.0))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_outliers_do_not_bend_it() -> None:
    values = 2.0 * TIMES + noise(1)
    values[::7] += 500
    assert slope_of(TIMES, values).value == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_the_interval_has_the_slope_as_often_as_it_says(memory: float) -> None:
    inside = 0
    for seed in range(100):
        found = slope_of(TIMES, 0.05 * TIMES + noise(seed, memory))
        inside += found.low <= 0.05 <= found.high
    assert inside >= 85


def test_noise_that_remembers_has_a_wider_interval() -> None:
    plain, remembers = slope_of(TIMES, noise(3)), slope_of(TIMES, noise(3, 0.9) / 2)
    assert remembers.high - remembers.low > 1.5 * (plain.high - plain.low)


def test_a_leak_in_noise_is_found() -> None:
    found = slope_of(TIMES, 0.5 * TIMES + 3 * noise(4, 0.5))
    assert found.low > 0.2


def test_many_points_are_thinned_and_bad_ones_left_out() -> None:
    times = np.linspace(0, 1000, 5000)
    values = 2 * times
    values[10:20] = np.nan
    found = slope_of(times, values)
    assert found.points <= MOST_POINTS and found.value == pytest.approx(2.0)


def test_too_few_points() -> None:
    with pytest.raises(ValueError, match="at least 12 points, not 3"):
        slope_of([1, 2, 3], [1, 2, 3])
