"""The trace file: what is written is read, byte by byte as the page says, and damage is found and located."""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import events, facts, random_events

from realalloc.lab.trace import format as file_format
from realalloc.lab.trace.format import CHUNK_EVENTS, EVENT, TraceError, read_trace, trace_bytes, write_trace


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_is_written_is_read(tmp_path: Path, count: int) -> None:
    made, said = random_events(count, threads=3)
    write_trace(tmp_path / "t.trace", made, said)
    found, told = read_trace(tmp_path / "t.trace")
    assert (found == made).all()
    assert told == {**said, "events": count, "codec": "xz"}
    assert [path.name for path in tmp_path.iterdir()] == ["t.trace"]


@given(st.lists(st.tuples(*(st.integers(0, 2**bits - 1) for bits in (2, 2, 16, 32, 40))), max_size=20))
def test_every_value_of_every_column_survives(rows: list[tuple[int, ...]]) -> None:
    made = np.zeros(len(rows), EVENT)
    for k, row in enumerate(rows):
        made[k] = (*row, 128 * k)
    for codec in file_format.CODECS:
        data = file_format._encode(made, made["time_ns"] // 64, 0, codec)
        body = lzma.decompress(data) if codec == "xz" else zlib.decompress(data)
        assert len(body) == 23 * len(rows)
        assert (file_format._decode(body, len(rows), 0, 64) == made).all()


def test_chunks_and_zlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "XZ_EVENTS", 10)
    monkeypatch.setattr(file_format, "CHUNK_EVENTS", 64)
    made, said = random_events(1000)
    write_trace(tmp_path / "t", made, said)
    found, told = read_trace(tmp_path / "t")
    assert told["codec"] == "zlib"
    assert (found == made).all()


def test_bytes_are_as_documented() -> None:
    made = events(("malloc", 0, 0, 5000), ("realloc", 1, 0, 70000), ("free", 1, 0))
    data = trace_bytes(made, facts(1, 2))
    magic, version, zero, length, checksum = struct.unpack_from("<8sHHII", data)
    assert (magic, version, zero) == (b"RAtrace\0", 1, 0)
    text = data[20 : 20 + length]
    assert zlib.crc32(text) == checksum
    assert json.loads(text)["events"] == 3
    at = 20 + length
    magic, count, length, checksum = struct.unpack_from("<4sIII", data, at)
    body = data[at + 16 : at + 16 + length]
    assert (magic, count, zlib.crc32(body)) == (b"CHNK", 3, checksum)
    plain = lzma.decompress(body)
    assert plain[:3] == bytes([0 | 3 << 2, 2 | 3 << 2, 3 | 2 << 2])
    assert plain[3:9] == bytes([0, 1, 1, 0, 0, 0])  # threads: low bytes, high bytes
    assert plain[9:21] == bytes(12)  # slots
    sizes = plain[21:45]
    assert sizes[:9] == bytes([5000 & 255, 70000 & 255, 0, 5000 >> 8, (70000 >> 8) & 255, 0, 0, 1, 0])
    assert plain[45:48] == bytes([0, 1, 1])
    at += 16 + length
    assert data[at:] == struct.pack("<4sIIIQ", b"DONE", 0, 0, zlib.crc32(struct.pack("<Q", 3)), 3)


def test_a_file_that_is_cut_anywhere_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "CHUNK_EVENTS", 16)
    made, said = random_events(40)
    data = trace_bytes(made, said)
    path = tmp_path / "cut.trace"
    seen = set()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(TraceError, match=rf"cut\.trace: truncated at byte {end}, after event (\d+)$") as info:
            read_trace(path)
        seen.add(int(str(info.value).rpartition(" ")[2]))
    assert seen == {0, 16, 32, 40}


def test_a_byte_that_is_changed_anywhere_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "CHUNK_EVENTS", 16)
    made, said = random_events(40)
    data = bytearray(trace_bytes(made, said))
    path = tmp_path / "bad"
    for at in range(0, len(data), 5):
        data[at] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(TraceError, match="bad: (truncated|damaged|not a trace|a trace of version)"):
            read_trace(path)
        data[at] ^= 0x55
    path.write_bytes(data)
    assert len(read_trace(path)[0]) == 40


@pytest.mark.parametrize("missing", ["codec", "clock", "program", "slots", "threads", "counts"])
def test_facts_that_are_missing_are_damage(tmp_path: Path, missing: str) -> None:
    data = trace_bytes(*random_events(5))
    length, _ = struct.unpack_from("<II", data, 12)
    told = json.loads(data[20 : 20 + length])
    del told[missing]
    text = json.dumps(told).encode()
    path = tmp_path / "x"
    path.write_bytes(file_format.HEADER.pack(b"RAtrace\0", 1, 0, len(text), zlib.crc32(text)) + text + data[20 + length :])
    with pytest.raises(TraceError, match="damaged header at byte 20"):
        read_trace(path)


def test_other_versions_are_refused(tmp_path: Path) -> None:
    data = bytearray(trace_bytes(*random_events(5)))
    data[8] = 2
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TraceError, match="version 2, and this reads version 1"):
        read_trace(tmp_path / "x")


def test_chunks_are_whole_powers() -> None:
    assert CHUNK_EVENTS & (CHUNK_EVENTS - 1) == 0
