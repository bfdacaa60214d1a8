"""The memory that a trace needs, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from traces import events, facts

from realalloc.lab.trace.format import write_trace
from realalloc.lab.trace.resident import FREED, REPLAYED, Request, serve


def test_memory_of_a_peer(tmp_path: Path) -> None:
    live = events(*[("malloc", 0, k, 100_000) for k in range(40)], *[("free", 0, k) for k in range(40)])
    write_trace(tmp_path / "m.trace", live, facts(40))
    answer = serve(Request("replay", "m", "realalloc", str(tmp_path / "m.trace")))
    assert list(answer.steps) == [REPLAYED, FREED]
    assert answer.peak_bytes >= 0.9 * 40 * 100_000
    with pytest.raises(RuntimeError, match="unknown peer"):
        serve(Request("replay", "m", "nobody", str(tmp_path / "m.trace")))
