"""Replays as a command runs them: peers are checked, a row that fails is a warning, Ctrl-C keeps what is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checks import some
from traces import events, facts, random_events

from realalloc.lab.trace.format import write_trace
from realalloc.lab.trace.reading import Trace, load
from realalloc.lab.trace.replay import Options, Replay, peer_names


def made(threads: int = 1, count: int | None = None, seed: int = 1) -> Trace:
    """Make a trace at random."""
    return Trace("t", *random_events(count or some(3000, 200), threads, seed))


def test_a_row_that_fails_is_a_warning(tmp_path: Path) -> None:
    huge = events(("malloc", 0, 0, 1 << 50))
    write_trace(tmp_path / "huge.trace", huge, facts())
    trace = load(str(tmp_path / "huge.trace"))
    for peer in ("glibc", "realalloc"):
        replay = Replay([trace], Options(peers=(peer,), rounds=1, memory=False), [""])
        report = replay.run()
        assert replay.failed
        assert not report.rows
        assert any("replay huge was not measured" in line for line in report.warnings)


def test_peers_are_checked() -> None:
    assert peer_names()[:2] == ["realalloc", "glibc"]
    with pytest.raises(ValueError, match="unknown peer 'x'"):
        Replay([], Options(peers=("x",)), [])


def test_ctrl_c_keeps_what_is_whole(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.trace", *random_events(50))
    traces = [load(str(tmp_path / "a.trace"))] * 2
    seen: list[Any] = []

    def stop(*stage: Any) -> None:
        seen.append(stage)
        if len(seen) == 2:
            raise KeyboardInterrupt

    replay = Replay(traces, Options(peers=("glibc",), rounds=1, latency=False), ["", ""])
    report = replay.run(stop)
    assert report.interrupted and len(report.rows) == 1 and not report.footprints
