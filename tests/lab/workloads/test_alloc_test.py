"""alloc-test: the slots of all threads are shared out, and none of them reaches beyond its own."""

from __future__ import annotations

import numpy as np
import pytest

from realalloc.lab import streams
from realalloc.lab.workloads import alloc_test
from realalloc.lab.workloads.scope import Scope


@pytest.mark.parametrize("threads", range(1, 9))
@pytest.mark.parametrize("scale", [0.0005, 0.01, 1.0])
def test_no_thread_reaches_beyond_its_slots(threads: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "pareto", lambda places, number, _seed: np.resize(np.arange(places)[::-1], number))
    for case in alloc_test.cases(Scope(scale, threads)):
        given = case.make.keywords
        assert 0 <= given["slots"].min() and given["slots"].max() < given["places"]
        assert given["places"] * given["threads"] <= case.parameters["slots"]
        assert len(given["slots"]) >= case.number and len(given["sizes"]) >= max(case.number, given["places"] // 2)
        assert given["slots"].max() > given["places"] * 0.9  # and it uses them
