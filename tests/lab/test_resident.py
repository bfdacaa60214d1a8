"""Resident memory in children: what a child answers, that one that fails is named, and curves on one time axis."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from checks import some

from realalloc.lab import resident
from realalloc.lab.peers import OURS, OURS_FINE
from realalloc.lab.resident import Answer, Request, ask, series, status_bytes
from realalloc.rss import rss

FRAGMENTS = "400k x 16..4096"
SCALE = 0.02 if some(1, 0) else 0.0005  # 6 MB live: more than what glibc's heap may have free from the imports before


def test_the_system_tells_the_resident_set() -> None:
    assert status_bytes("VmRSS") == pytest.approx(rss(), rel=0.2)
    assert status_bytes("VmHWM") >= status_bytes("VmRSS") * 0.8
    with pytest.raises(OSError, match="has no VmNothing"):
        status_bytes("VmNothing")


@pytest.mark.parametrize("peer", [OURS, OURS_FINE, "glibc"])
def test_a_child_sees_what_the_workload_holds(peer: str) -> None:
    answer = ask(Request("fragments", FRAGMENTS, peer, SCALE))
    assert list(answer.steps)[:3] == ["filled", "a tenth left", "freed"]
    assert ("trimmed" in answer.steps) == (peer != "glibc")
    count = int(400_000 * SCALE)
    live = count * (4096 - 16) / math.log(4096 / 16)  # the mean of log-uniform sizes
    if some(1, 0):
        assert 0.7 * live < answer.steps["filled"] < 3 * live + (4 << 20)
        assert answer.peak_bytes >= 0.7 * live
    assert len(answer.seconds) == len(answer.rss_bytes) >= 2
    assert answer.seconds == sorted(answer.seconds) and min(answer.rss_bytes) >= 0
    if peer != "glibc" and some(1, 0):
        assert answer.steps["trimmed"] < answer.steps["filled"] / 2


def test_a_case_of_nanoseconds() -> None:
    answer = ask(Request("ring", "as sh6bench", OURS, SCALE / 10))
    assert list(answer.steps) == ["prepared", "run"] and answer.peak_bytes >= 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("fragments", FRAGMENTS, "nobody"), "RuntimeError: unknown peer nobody"),
        (Request("fragments", "no case", "glibc", SCALE), "KeyError: 'no case'"),
        (Request("pair", "no case", "glibc", SCALE), "RuntimeError: there is no such case"),
    ],
)
def test_a_child_that_fails_is_named(request_: Request, reason: str) -> None:
    with pytest.raises(RuntimeError) as info:
        ask(request_)
    text = str(info.value)
    assert text == f"{request_.workload} {request_.case} with {request_.peer}: exit 1: {reason}"


def test_a_child_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet = tmp_path / "python"
    quiet.write_text("#!/bin/sh\nexit 3\n")
    quiet.chmod(0o755)
    monkeypatch.setattr(resident.sys, "executable", str(quiet))
    with pytest.raises(RuntimeError, match="w c with p: exit 3: no reason given"):
        ask(Request("w", "c", "p"))


def test_curves_on_one_time_axis() -> None:
    made = series({"a": Answer(0, {}, [0.0, 2.0, 4.0], [10, 20, 30]), "b": Answer(0, {}, [1.0, 2.0], [7, 9])})
    assert made.seconds == (0.0, 1.0, 2.0, 4.0) and made.unit == "bytes"
    assert made.columns["a"] == (10, 10, 20, 30)  # what was seen last is what is
    before, *seen, after = made.columns["b"]
    assert math.isnan(before) and seen == [7, 9] and math.isnan(after)  # not begun, and over


def test_curves_of_nothing() -> None:
    assert series({}).seconds == ()
    made = series({"a": Answer(0, {}, [0.0], [5]), "b": Answer()})
    assert made.columns["a"] == (5,) and math.isnan(made.columns["b"][0])
