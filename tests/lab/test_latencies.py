"""Percentiles and curves of buckets, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.lab.latencies import PERCENTILES, Latency, percentile_name


def test_percentile_names() -> None:
    assert [percentile_name(p) for p in PERCENTILES] == ["p50", "p90", "p99", "p99.9", "p99.99", "max"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=400))
def test_percentiles_are_those_of_numpy(values: list[int]) -> None:
    tops, counts = np.unique(values, return_counts=True)
    latency = Latency("alloc", tuple(zip(tops.astype(float).tolist(), counts.tolist(), strict=True)), 0.0)
    assert latency.count == len(values)
    for p in PERCENTILES:
        assert latency.at(p) == np.percentile(values, p, method="inverted_cdf")
    tails, ns = latency.curve()
    assert tails[0] == 0 and ns[0] == min(values) and ns[-1] == max(values)
    assert ns == sorted(ns) and len(tails) == len(ns)
    assert tails[-1] == pytest.approx(math.log10(len(values)))
    for tail, value in zip(tails[1:-1], ns[1:-1], strict=True):
        share = 1 - 10.0**-tail
        assert sum(v < value for v in values) <= share * len(values) + 1e-6
        assert sum(v <= value for v in values) >= share * len(values) - 1e-6


def test_nothing_timed_is_nothing() -> None:
    empty = Latency("alloc", (), 1.0)
    assert (empty.count, empty.at(99), empty.curve()) == (0, 0.0, ([], []))
