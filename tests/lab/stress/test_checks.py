"""Each check of a process fails for its own reason, and for no other."""

from __future__ import annotations

from typing import Any

import pytest
from stressed import MIB, failing, result

from realalloc.lab.stress import Options
from realalloc.lab.stress.records import Waits


def test_a_good_run_passes_every_check() -> None:
    found = result()
    assert failing(found) == [] and found.ok
    assert [check.name for check in found.checks if not check.judged] == ["rss bound"]
    assert [check.mark for check in found.checks] == ["ok", "ok", "-", "ok", "ok", "ok", "ok"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("contents", {"wrong": ["thread 1: kmalloc block 3: word 7 is 0x1, not 0x2"]}),
        ("accounting", {"books": ["12 objects left when everything was freed"]}),
        ("accounting", {"freed": {"kmalloc": 99}}),
        ("rss back", {"rss_end": 217 * MIB}),
        ("fairness", {"by_thread": [90, 90, 10]}),
        ("fairness", {"waits": Waits(1000, 0.001, 5.0)}),
        ("children", {"children": ["child 7 of a fork: exit 1"]}),
        ("children", {"hung": ["thread 0 did not end within 60 s"]}),
        ("no growth", {"per_second": 2.0 * MIB}),
    ],
)
def test_each_fails_alone(name: str, changes: dict[str, Any]) -> None:
    found = result(**changes)
    assert failing(found) == [name] and not found.ok


def test_the_bound_of_the_resident_set() -> None:
    assert failing(result(options=Options(rss_limit=220 * MIB))) == []
    found = result(options=Options(rss_limit=220 * MIB - 1))
    assert failing(found) == ["rss bound"]
    assert "peak 220 MiB of 220.0 MiB" in next(check.detail for check in found.checks if not check.held)


def test_growth_within_the_tolerance_passes() -> None:
    assert failing(result(per_second=0.3 * MIB)) == []  # 5 MiB over the judged 16 s


def test_what_is_too_short_is_not_judged() -> None:
    found = result(series={}, seconds=2.0, by_thread=[100, 1])
    assert found.ok
    assert {check.name for check in found.checks if not check.judged} == {"rss bound", "no growth", "fairness"}


def test_a_wait_may_be_long_where_waits_are() -> None:
    assert failing(result(waits=Waits(10, 0.1, 9.0))) == []


def test_many_reasons_are_counted_not_listed() -> None:
    found = result(wrong=[f"reason {k}" for k in range(9)])
    assert found.checks[0].detail == "reason 0; reason 1; reason 2; and 6 more"
