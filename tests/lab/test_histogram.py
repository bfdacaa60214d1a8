"""The jitted histogram: every edge of every bucket, its error, and the same numbers as HdrHistogram's own code."""

from __future__ import annotations

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st
from support import JIT

from realalloc.lab import histogram
from realalloc.lab.histogram import BUCKETS, HALF, MAX_BITS, bucket_of, counted, filled, highest
from realalloc.lab.latencies import PERCENTILES, Latency

LARGEST = (1 << MAX_BITS) - 1


def _edges():
    for bits in range(MAX_BITS + 1):
        for near in (-2, -1, 0, 1, 2):
            if 0 <= (1 << bits) + near <= LARGEST:
                yield (1 << bits) + near


def test_buckets_at_every_power_of_two() -> None:
    for value in _edges():
        bucket = int(bucket_of(value))
        low = int(highest(bucket - 1)) + 1 if bucket else 0
        assert low <= value <= highest(bucket)
        assert bucket_of(low) == bucket == bucket_of(int(highest(bucket)))
        assert int(highest(bucket)) - low <= low // HALF


def test_buckets_tile_the_range() -> None:
    tops = np.asarray(highest(np.arange(BUCKETS)))
    assert (np.diff(tops) > 0).all()
    assert (tops[: 2 * HALF] == np.arange(2 * HALF)).all()  # a bucket each
    assert tops[-1] == LARGEST
    values = np.concatenate([tops, tops[:-1] + 1])
    found = np.array([int(bucket_of(int(value))) for value in values])
    assert (found == np.concatenate([np.arange(BUCKETS), np.arange(1, BUCKETS)])).all()


@given(st.integers(0, LARGEST))
def test_the_error_is_below_one_in_128(value: int) -> None:
    top = int(highest(int(bucket_of(value))))
    assert value <= top <= value + value / HALF


@given(st.integers(0, LARGEST - 1))
def test_larger_values_are_in_no_lower_bucket(value: int) -> None:
    assert 0 <= bucket_of(value + 1) - bucket_of(value) <= 1


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_everything_has_a_bucket(value: int) -> None:
    bucket = bucket_of(value)
    assert bucket == bucket_of(min(max(value, 0), LARGEST))
    assert 0 <= bucket < BUCKETS


def test_what_is_out_of_range_is_counted_at_its_ends() -> None:
    made = counted(np.array([-1, -(1 << 62), 0, LARGEST, LARGEST + 1, (1 << 63) - 1], np.int64))
    assert made[0] == made[-1] == 3 and made.sum() == 6


def _same_as_hdr(values: np.ndarray, percentiles=(*PERCENTILES, 1.0, 25.0, 75.0, 99.5)) -> None:
    theirs = HdrHistogram(1, LARGEST, 2)
    for value in values.tolist():
        assert theirs.record_value(value)
    made = counted(values)
    assert made.sum() == len(values) == theirs.get_total_count()
    tops, counts = filled(made)
    recorded = {item.value_iterated_to: item.count_added_in_this_iter_step for item in theirs.get_recorded_iterator()}
    assert dict(zip(tops.tolist(), counts.tolist(), strict=True)) == recorded
    ours = Latency("alloc", tuple(zip(tops.tolist(), counts.tolist(), strict=True)), 0.0)
    for percentile in percentiles:  # theirs rounds ranks, ours never down: equal where they are whole numbers
        assert ours.at(percentile) == theirs.get_value_at_percentile(percentile), percentile


SAMPLES = 200_000 if JIT else 5000


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_as_hdrhistogram_lognormal(spread: float) -> None:
    values = np.random.default_rng(1).lognormal(7, spread, SAMPLES // 4)
    _same_as_hdr(np.clip(values, 0, LARGEST).astype(np.int64))


@pytest.mark.parametrize("shape", [0.3, 1.1])
def test_as_hdrhistogram_heavy_tails(shape: float) -> None:
    values = 20 * (1 + np.random.default_rng(2).pareto(shape, SAMPLES // 4))
    _same_as_hdr(np.clip(values, 0, LARGEST).astype(np.int64))


def test_as_hdrhistogram_every_edge() -> None:
    _same_as_hdr(np.array(sorted(set(_edges())), np.int64), percentiles=(100.0,))


@given(st.lists(st.integers(-10, 1 << 50), max_size=50))
def test_the_buckets_add_up(values: list[int]) -> None:
    made = counted(np.array(values, np.int64))
    tops, counts = filled(made)
    assert made.sum() == counts.sum() == len(values)
    assert (counts > 0).all() and (np.diff(tops) > 0).all()


def test_several_histograms_in_one_array() -> None:
    words = np.zeros(2 * BUCKETS + 4, np.int64)
    for value in (1, 1, 300):
        histogram.count(words, 4 + BUCKETS, value)
    assert words[: 4 + BUCKETS].sum() == 0
    assert (words[4 + BUCKETS :] == counted(np.array([1, 1, 300], np.int64))).all()
