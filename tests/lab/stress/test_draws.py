"""Streams of sizes and kinds."""

from __future__ import annotations

import numpy as np
import pytest

from realalloc.lab.stress.draws import draw_kinds, draw_sizes
from realalloc.lab.stress.kernels import STREAM


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("text", ["log:8..64KiB", "uniform:3..5", "fixed:77", "mix:64=50,100=0,4KiB=50"])
def test_the_seed_decides_all(text: str) -> None:
    one, same, other = (draw_sizes(text, rng(seed)) for seed in (5, 5, 6))
    assert len(one) == STREAM and one.dtype == np.int64
    assert (one == same).all()
    assert text == "fixed:77" or (one != other).any()


def test_log_is_uniform_in_the_logarithm_and_reaches_both_ends() -> None:
    drawn = draw_sizes("log:8..64KiB", rng())
    assert drawn.min() == 8 and 65000 < drawn.max() <= 65536
    share = [((drawn >= 8 << 2 * k) & (drawn < 32 << 2 * k)).mean() for k in range(6)]
    assert max(share) < 1.3 * min(share)


def test_uniform_fixed_and_mix() -> None:
    assert set(draw_sizes("uniform:3..5", rng())) == {3, 4, 5}
    assert set(draw_sizes("fixed:77", rng())) == {77}
    drawn = draw_sizes("mix:64=90,100=0,4KiB=10", rng())
    assert set(drawn) == {64, 4096} and 0.88 < (drawn == 64).mean() < 0.92


def test_kinds_follow_the_weights() -> None:
    drawn = draw_kinds({"b": 3, "c": 1}, ("a", "b", "c"), 4, rng())
    assert drawn is not None and set(drawn) == {5, 6}
    assert 0.72 < (drawn == 5).mean() < 0.78
    assert draw_kinds({"x": 1}, ("a", "b"), 0, rng()) is None
