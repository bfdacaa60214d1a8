"""How numbers are spelled, and the verdicts of the overview."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reports import make_report

from realalloc.lab.intervals import Interval
from realalloc.lab.report import grids
from realalloc.lab.results import Footprint


@pytest.mark.parametrize(
    ("ns", "spelled"),
    [
        (0.31, "0.3ns"),
        (41.4, "41ns"),
        (999.4, "999ns"),
        (1000.0, "1.00us"),
        (45_600.0, "45.6us"),
        (1.5e6, "1.50ms"),
        (2.5e9, "2.50s"),
        (1.234e12, "1234s"),
        (float("nan"), "-"),
    ],
)
def test_durations(ns: float, spelled: str) -> None:
    assert grids.duration(ns) == spelled


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (None, ""),
        (0, ""),
        (9999, "9999"),
        (10_000, "10.0k"),
        (123_456, "123k"),
        (5 * 10**6, "5.0M"),
        (7 * 10**9, "7.0G"),
    ],
)
def test_counts(value: int | None, spelled: str) -> None:
    assert grids.count(value) == spelled


def test_numbers_and_ratios() -> None:
    assert [grids.ratio(value) for value in (1.234, 12.34, 1234.5, float("inf"))] == ["1.23", "12.3", "1,234", "-"]
    assert [grids.fine_ratio(value) for value in (0.9876, 12.34)] == ["0.988", "12.3"]
    assert grids.between(Interval(1.0, 0.9, 1.1), grids.ratio) == "0.90-1.10"
    assert grids.between(Interval(1.0, 1.0, 1.0), grids.ratio) == ""


def test_verdicts_of_duels() -> None:
    report = make_report(2, 3, 0)
    ours, other = report.rows[0].entries
    rounds = {"faster": (1.0, 1.0, 1.0), "slower": (4.0, 4.0, 4.0), "tied": (1.0, 2.0, 4.0)}
    report.rows = [
        replace(
            report.rows[0], case=case, entries=(replace(ours, rounds_ns=ns), replace(other, rounds_ns=(2.0, 2.0, 2.0)))
        )
        for case, ns in rounds.items()
    ]
    grid = grids.duels(report)
    assert grid is not None
    assert dict(zip((row[0] for row in grid.rows), grid.marks, strict=True)) == {
        "pair faster": grids.BEST,
        "pair slower": "",
        "pair tied": grids.TIED,
    }
    assert grid.rows[0][-2:] == ("0.500", "")
    assert [column.head for column in grid.told().columns] == ["row", "ns", "best other", "its ns", "ratio", "95 %"]


def test_counters_beside_an_entry() -> None:
    report = make_report(9, 3, 0)
    seen = replace(
        report.rows[0].entries[0].counters, minor_faults=12, major_faults=3, involuntary_switches=7, migrations=1
    )
    assert grids.counted(replace(report.rows[0].entries[0], counters=seen)) == ("15+3", "0/7", "1")
    assert grids.counted(report.rows[0].entries[0]) == ("", "", "")


def test_footprints_are_the_smallest_first() -> None:
    made = [
        Footprint("b", "large", 100 << 10, 400 << 10, 0),
        Footprint("b", "small", 100 << 10, 125 << 10, 4096),
        Footprint("a", "nothing", 0, 0, 0),
    ]
    grid = grids.footprints(replace(make_report(), footprints=made))
    assert grid is not None
    assert grid.rows == [
        ("b", "small", "100 KiB", "125 KiB", "1.25", "20%", "4 KiB"),
        ("b", "large", "100 KiB", "400 KiB", "4.00", "75%", "0 B"),
        ("a", "nothing", "0 B", "0 B", "-", "-", "0 B"),
    ]
    assert grid.marks == [grids.BEST, "", grids.BEST]
    assert grids.footprints(replace(make_report(), footprints=[])) is None
