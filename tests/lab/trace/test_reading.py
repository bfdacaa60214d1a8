"""One reader for traces, logs, older traces and shipped ones; events that cannot have happened are refused."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from checks import some
from traces import events, facts, log_of, random_events, write_log

from realalloc.lab.trace.format import TraceError, write_trace
from realalloc.lab.trace.raw import OP_FREE, OP_MALLOC
from realalloc.lab.trace.reading import RECORDED, find, load, shipped
from realalloc.lab.trace.walk import walk


def older(path: Path, *pairs: tuple[int, int], count: int | None = None) -> Path:
    """Write a trace in the older form."""
    numbers = [2, 1, len(pairs) if count is None else count, *(n for pair in pairs for n in pair)]
    path.write_bytes(lzma.compress(np.array(numbers, "<i4").tobytes()))
    return path


def test_a_trace(tmp_path: Path) -> None:
    made, said = random_events(300, threads=2)
    write_trace(tmp_path / "job.trace", made, said)
    trace = load(str(tmp_path / "job.trace"))
    assert (trace.name, trace.slots, trace.threads) == ("job", said["slots"], 2)
    assert (trace.events == made).all()


def test_a_raw_log(tmp_path: Path) -> None:
    path = write_log(tmp_path / "x.rawtrace", log_of((OP_MALLOC, 3, 0, 77), (OP_FREE, 3, 0, 0)))
    trace = load(str(path))
    assert (len(trace.events), trace.threads, trace.slots) == (2, 1, 1)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TraceError, match=r"x\.rawtrace: truncated at byte 50"):
        load(str(path))


def test_an_older_trace(tmp_path: Path) -> None:
    trace = load(str(older(tmp_path / "git.trc.xz", (0, 10), (1, 0), (0, -1), (0, 30))))
    assert trace.name == "git"
    assert trace.events["op"].tolist() == [0, 0, 3, 0]
    assert trace.events["size"].tolist() == [10, 0, 0, 30]
    assert (trace.slots, trace.threads) == (2, 1)


def test_an_older_trace_that_is_cut(tmp_path: Path) -> None:
    path = older(tmp_path / "a.trc.xz", *[(0, 5), (0, -1)] * 5000)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(TraceError, match=rf"truncated at byte {len(data) - 40}, after event \d+"):
        load(str(path))
    path.write_bytes(data[:40] + bytes(20) + data[60:])
    with pytest.raises(TraceError, match="damaged before byte"):
        load(str(path))
    older(path, (0, 5), count=7)
    with pytest.raises(TraceError, match="truncated at byte 20 of what is compressed, after event 1"):
        load(str(path))
    path.write_bytes(lzma.compress(b"short"))
    with pytest.raises(TraceError, match="not a trace"):
        load(str(path))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([("malloc", 0, 1, 5)], "event 0 has slot 1 of 1"),
        ([("malloc", 1, 0, 5)], "event 0 has thread 1 of 1"),
        ([("malloc", 0, 0, 5), ("malloc", 0, 0, 5)], "event 1 allocates into a slot that is taken"),
        ([("free", 0, 0)], "event 0 frees or reallocates a slot that is empty"),
    ],
)
def test_what_cannot_have_happened(tmp_path: Path, rows: list[tuple[object, ...]], match: str) -> None:
    write_trace(tmp_path / "t", events(*rows), facts())
    with pytest.raises(TraceError, match=match):
        load(str(tmp_path / "t"))


def test_more_slots_than_events(tmp_path: Path) -> None:
    write_trace(tmp_path / "t", events(("malloc", 0, 0, 1)), facts(slots=10**9))
    with pytest.raises(TraceError, match="1000000000 slots in 1 events"):
        load(str(tmp_path / "t"))


@pytest.mark.parametrize("content", [b"", b"hello", b"RAtrace\0", bytes(100)])
def test_no_trace_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TraceError, match="t: (not a trace|truncated at byte)"):
        load(str(tmp_path / "t"))
    with pytest.raises(FileNotFoundError):
        load(str(tmp_path / "missing"))


def test_shipped_traces_are_small_and_sound() -> None:
    assert shipped() == ["http_server", "json_csv", "numpy_pipeline"]
    for name in shipped():
        assert find(name) == RECORDED / f"{name}.trace"
        assert find(name).stat().st_size < 300_000
        text = find(name).read_bytes()[:600]
        assert b"/" not in text[20 : text.index(b"CHNK")], "a path"
    if some(1, 0):  # 200 000 events take a while in plain Python
        for name in shipped():
            trace = load(name)
            assert trace.facts["program"] == name
            assert len(trace.events) > 100_000
            assert walk(trace.events, trace.slots).status is None
        assert load("http_server").threads > 4
        assert "numpy" in load("numpy_pipeline").facts["domains"]


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "json_csv", *random_events(10, most=5))
    assert len(load("json_csv").events) == 10
