"""Records of a stress run, through JSON and back."""

from __future__ import annotations

import json

from stressed import failing, result, verdict

from realalloc.lab.stress import ProcessResult


def test_a_result_through_json() -> None:
    found = result(per_second=1e7, wrong=["x"], first_wrong_seconds=1.5)
    again = ProcessResult.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.as_dict().keys() == found.as_dict().keys()
    assert again.checks == found.checks and again.waits == found.waits
    assert again.series["memory"] == found.series["memory"]
    assert failing(again) == ["contents", "no growth"] and not again.ok


def test_a_verdict_holds_only_if_everybody_answered_and_passed() -> None:
    good, bad = result(), result("process 1", books=["x"])
    assert verdict(good).ok and not verdict(good, bad).ok and not verdict().ok
    assert [(name, check.name) for name, check in verdict(good, bad).failed()] == [("process 1", "accounting")]
    lost = verdict(good)
    lost.lost = ["process 1: exit -11"]
    assert not lost.ok
    data = json.loads(json.dumps(verdict(good, bad).as_dict()))
    assert (data["ok"], data["verified"]) == (False, 200)
    assert [process["ok"] for process in data["processes"]] == [True, False]
