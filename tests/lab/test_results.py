"""Records of measurements: what is derived from them, against numpy and known cases; and through JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import make_report

from realalloc.lab import results
from realalloc.lab.intervals import Interval
from realalloc.lab.latencies import Latency
from realalloc.lab.results import Counters, Entry, Report, Row, is_ours
from realalloc.lab.series import Series

FINITE = st.floats(0, 1e12)
NAMES = st.text(max_size=12)
JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=8)


def row(rounds: dict[str, tuple[float, ...]], **changed: Any) -> Row:
    entries = tuple(Entry(peer, values) for peer, values in rounds.items())
    return replace(Row("pair", "64 B", results.JITTED, "alloc + free", 1000, {}, entries), **changed)


def test_standings_are_fastest_first_and_ties_are_said() -> None:
    made = row({"slow": (20.0, 21, 22), "realalloc": (10.0, 10, 10), "near": (10.0, 10.1, 10.2)})
    stand = made.standings()
    assert [place.entry.peer for place in stand] == ["realalloc", "near", "slow"]
    assert [(place.best, place.tied) for place in stand] == [(True, False), (False, True), (False, False)]
    assert stand[2].ratio == Interval(2.1, 2.0, 2.2)
    assert stand[0].ratio == Interval(1.0, 1.0, 1.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    made = row({"realalloc": (1.0, 10.0, 100.0), "other": (2.0, 20.0, 200.0)})  # a processor that changes its speed
    assert made.ratio("realalloc", "other") == Interval(0.5, 0.5, 0.5)
    assert math.isnan(row({"a": (1.0,), "b": (0.0,)}).ratio("a", "b").value)
    with pytest.raises(KeyError):
        made.ratio("realalloc", "nobody")


def test_ours_is_judged_against_the_best_that_is_not_ours() -> None:
    made = row({"realalloc pool": (5.0,), "realalloc": (6.0,), "a": (8.0,), "b": (7.0,)})
    duel = made.duel()
    assert duel is not None
    assert (duel.ours.peer, duel.other.peer, duel.ratio.value) == ("realalloc pool", "b", 5 / 7)
    assert made.best_other("realalloc") == "b"
    assert row({"realalloc": (1.0,)}).duel() is None
    assert row({"a": (1.0,), "b": (1.0,)}).duel() is None
    assert row({}).standings() == [] and row({}).duel() is None
    assert [is_ours(peer) for peer in ("realalloc", "realalloc pool", "realallocs", "glibc")] == [
        True,
        True,
        False,
        False,
    ]


def test_peers_are_in_order_ours_first() -> None:
    report = Report("bench", {}, {}, [row({"b": (1.0,), "realalloc": (1.0,)}), row({"a": (1.0,), "b": (1.0,)})])
    report.resident["x"] = Series((0.0,), {"c": (1.0,), "a": (2.0,)})
    assert report.peers == ["realalloc", "b", "a", "c"]


def test_size_curves_join_rows_that_differ_in_size_only() -> None:
    rows = [
        row({"a": (20.0,)}, size_bytes=512, parameters={"size": 512, "threads": 1}),
        row({"a": (10.0,), "b": (40.0,)}, size_bytes=64, parameters={"size": 64, "threads": 1}),
        row({"a": (30.0,)}, size_bytes=64, parameters={"size": 64, "threads": 2}),  # alone in its family
        row({"a": (30.0,)}),
    ]
    (curve,) = Report("bench", {}, {}, rows).size_curves()
    assert curve.title == "pair, jitted: alloc + free"
    assert curve.points == {
        "a": [(64, Interval(1e8, 1e8, 1e8)), (512, Interval(5e7, 5e7, 5e7))],
        "b": [(64, Interval(2.5e7, 2.5e7, 2.5e7))],
    }


def records() -> st.SearchStrategy[Report]:
    latencies = st.builds(
        lambda name, buckets, overhead: Latency(name, tuple(sorted(dict(buckets).items())), overhead),
        NAMES,
        st.lists(st.tuples(FINITE, st.integers(1, 10**9)), max_size=3),
        FINITE,
    )
    counts = st.integers(0, 2**40)
    counters = st.builds(Counters, counts, counts, counts, counts, st.none() | counts)

    def rows(count: int) -> st.SearchStrategy[Row]:
        entries = st.builds(
            Entry,
            NAMES,
            st.tuples(*[FINITE] * count),
            st.lists(latencies, max_size=2).map(tuple),
            counters,
            st.none() | st.integers(),
        )
        unique = st.lists(entries, max_size=3, unique_by=lambda entry: entry.peer).map(tuple)
        optional = {"harness_ns": st.none() | FINITE, "size_bytes": st.none() | counts}
        parameters = st.dictionaries(NAMES, JSON_VALUES, max_size=2)
        views = st.sampled_from([results.JITTED, results.PYTHON])
        return st.builds(Row, NAMES, NAMES, views, NAMES, counts, parameters, unique, **optional)

    series = st.integers(0, 4).flatmap(
        lambda n: st.builds(
            Series, st.tuples(*[FINITE] * n), st.dictionaries(NAMES, st.tuples(*[FINITE] * n), max_size=2), NAMES
        )
    )
    return st.builds(
        Report,
        NAMES,
        st.dictionaries(NAMES, NAMES, max_size=2),
        st.dictionaries(NAMES, JSON_VALUES, max_size=2),
        st.lists(st.integers(1, 4).flatmap(rows), max_size=2),
        st.dictionaries(NAMES, series, max_size=2),
        st.dictionaries(NAMES, FINITE, max_size=2),
        st.lists(NAMES, max_size=2),
        st.lists(NAMES, max_size=2),
        st.booleans(),
        NAMES,
        st.lists(st.builds(results.Footprint, NAMES, NAMES, counts, counts, counts), max_size=2),
    )


@settings(max_examples=60, deadline=None)
@given(records())
def test_through_json_and_back(report: Report) -> None:
    said = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert Report.from_dict(said) == report
    assert Report.from_dict(report.as_dict()) == report


def test_what_json_cannot_say_is_null_and_nan_again() -> None:
    report = Report("stress", {}, {"where": __file__ and 1j, "n": np.int64(3), "f": math.inf})
    report.resident["x"] = Series((0.0, 1.0), {"a": (math.nan, math.inf)})
    said = report.as_dict()
    assert said["resident"]["x"]["columns"] == {"a": [None, None]}
    assert said["options"] == {"where": "1j", "n": 3, "f": None}
    back = Report.from_dict(json.loads(json.dumps(said, allow_nan=False)))
    assert all(math.isnan(value) for value in back.resident["x"].columns["a"])


def damage(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(make_report(3, 4, 50).as_dict()))
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "not a report of realalloc"),
        ({"rows": []}, "it has no 'format'"),
        ({"format": "realalloc report 99"}, "this version reads 'realalloc report 1'"),
        ({"format": results.FORMAT}, "command is missing"),
        (damage(("rows", 1, "entries", 2, "rounds_ns"), [1.0]), r"rows\[1\].entries\[2\] has 1 rounds"),
        (damage(("rows", 0, "entries", 0, "rounds_ns"), []), r"rows\[0\].entries\[0\] has 0 rounds"),
        (damage(("rows", 1, "entries", 2, "rounds_ns", 3), None), r"rows\[1\].entries\[2\].rounds_ns: a number"),
        (damage(("rows", 1, "entries", 2, "rounds_ns", 3), -1), r"a number of at least 0"),
        (damage(("rows", 1, "entries", 2, "peer"), "glibc"), r"rows\[1\] names a peer twice"),
        (damage(("rows", 2, "entries", 0, "latencies", 0, "buckets"), [[2, 1], [1, 1]]), "must ascend"),
        (damage(("rows", 2, "entries", 0, "latencies", 0, "buckets"), [[2, 0]]), "none empty"),
        (
            damage(("rows", 2, "entries", 0, "counters", "migrations"), "x"),
            r"counters.migrations must be a whole number",
        ),
        (
            damage(("resident", "larson", "columns", "glibc"), [1.0]),
            r"columns\['glibc'\] has 1 numbers for 200 seconds",
        ),
    ],
)
def test_foreign_data_is_refused_and_placed(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Report.from_dict(data)
