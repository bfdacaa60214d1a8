"""The trace file, version 1: a header and compressed chunks, each with a checksum, so that damage is found and located.

    header   magic (8), version u16, 0 u16, length u32 of the facts, CRC-32 u32 of the facts; the facts: JSON in UTF-8
    chunk    "CHNK", events u32, compressed bytes u32, CRC-32 u32 of these; then they: xz or zlib, as the facts say
    end      "DONE", 0 u32, 0 u32, CRC-32 u32 of the number of all events as u64; then that number, u64

All numbers are little endian. A chunk holds up to CHUNK_EVENTS events as columns: kind u8 (operation | domain << 2), thread
u16, slot u32, size u64, time u64 (since the event before, in units of the clock). Columns are stored by bytes: the first byte
of all, the second of all.

Facts: program, clock ({"unit_ns", "ticks_per_second"}), domains, least, events, slots, threads, codec, and counts of what is
missing. Nothing in a trace says who recorded it, where or when.

Guarantees: a file is written whole or not at all. A reader returns every event or raises TraceError, which says at which byte
and after which event a file ends or is damaged.
"""

from __future__ import annotations

import json
import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from realalloc.lab.report.files import PathLike, write_bytes

MAGIC: Final = b"RAtrace\x00"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHII")
CHUNK: Final = struct.Struct("<4sIII")
TOTAL: Final = struct.Struct("<Q")
CHUNK_EVENTS: Final = 1 << 17
XZ_EVENTS: Final = 1 << 20  # more than that is compressed by zlib: ten times as fast, half as well
MAX_FACTS: Final = 1 << 20
CODECS: Final = ("xz", "zlib")
NEEDED: Final = (
    ("program", str),
    ("domains", list),
    ("least", int),
    ("slots", int),
    ("threads", int),
    ("counts", dict),
)

OPERATIONS: Final = ("malloc", "calloc", "realloc", "free")
MALLOC, CALLOC, REALLOC, FREE = range(4)
COLUMNS: Final = (("kind", 1), ("thread", 2), ("slot", 4), ("size", 8), ("time", 8))  # bytes of an event in a chunk
EVENT_BYTES: Final = sum(width for _, width in COLUMNS)
EVENT: Final = np.dtype(
    [("op", "u1"), ("domain", "u1"), ("thread", "<u2"), ("slot", "<u4"), ("size", "<i8"), ("time_ns", "<i8")]
)

Events = npt.NDArray[Any]  # of EVENT


class TraceError(ValueError):
    """A file is no trace, or a damaged one: the message says where."""


def _planes(column: npt.NDArray[Any], width: int) -> bytes:
    """Return a column by bytes: the lowest of all values, then the next."""
    return column.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def _encode(events: Events, times: npt.NDArray[Any], before: int, codec: str) -> bytes:
    columns = {name: events[name] for name in ("thread", "slot", "size")}
    columns |= {"kind": events["op"] | events["domain"] << 2, "time": np.diff(times, prepend=before)}
    body = b"".join(_planes(columns[name], width) for name, width in COLUMNS)
    return lzma.compress(body, preset=6) if codec == "xz" else zlib.compress(body, 6)


def _decode(body: bytes, count: int, before: int, unit: int) -> Events:
    events = np.empty(count, EVENT)
    at = 0
    for name, width in COLUMNS:
        planes = np.frombuffer(body, np.uint8, count * width, at).reshape(width, count)
        column = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")
        at += count * width
        if name == "kind":
            events["op"], events["domain"] = column & 3, column >> 2 & 3
        elif name == "time":
            events["time_ns"] = before + np.cumsum(column.astype(np.int64)) * unit
        else:
            events[name] = column
    return events


def trace_bytes(events: Events, facts: dict[str, Any]) -> bytes:
    """Return a trace as a file has it. Processors that are there share the work of compressing."""
    codec = "xz" if len(events) <= XZ_EVENTS else "zlib"
    unit = facts["clock"]["unit_ns"]
    text = json.dumps({**facts, "events": len(events), "codec": codec}, sort_keys=True).encode()
    times = events["time_ns"] // unit

    def encoded(begin: int) -> bytes:
        part = slice(begin, begin + CHUNK_EVENTS)
        data = _encode(events[part], times[part], int(times[begin - 1]) if begin else 0, codec)
        return CHUNK.pack(b"CHNK", len(events[part]), len(data), zlib.crc32(data)) + data

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        chunks = list(pool.map(encoded, range(0, len(events), CHUNK_EVENTS)))
    total = TOTAL.pack(len(events))
    head = HEADER.pack(MAGIC, VERSION, 0, len(text), zlib.crc32(text)) + text
    return b"".join([head, *chunks, CHUNK.pack(b"DONE", 0, 0, zlib.crc32(total)), total])


def write_trace(path: PathLike, events: Events, facts: dict[str, Any]) -> None:
    """Write a trace whole, or leave what was there; OSError."""
    write_bytes(path, trace_bytes(events, facts))


class _Reader:
    """Reads a file front to back, knowing at which byte and after which event it is."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.at = self.events = 0

    def error(self, what: str, at: int | None = None) -> TraceError:
        return TraceError(f"{self.path}: {what} at byte {self.at if at is None else at}, after event {self.events}")

    def take(self, nbytes: int) -> bytes:
        data = self.file.read(nbytes)
        if len(data) < nbytes:
            raise self.error("truncated", self.at + len(data))
        self.at += nbytes
        return data

    def facts(self) -> dict[str, Any]:
        magic, version, zero, length, checksum = HEADER.unpack(self.take(HEADER.size))
        if magic != MAGIC:
            raise TraceError(f"{self.path}: not a trace")
        if version != VERSION or zero:
            raise TraceError(f"{self.path}: a trace of version {version}, and this reads version {VERSION}")
        if length > MAX_FACTS:
            raise self.error("damaged header", 12)
        text = self.take(length)
        if zlib.crc32(text) != checksum:
            raise self.error("damaged header", HEADER.size)
        facts: dict[str, Any] = json.loads(text)
        known = facts.get("codec") in CODECS and isinstance(facts.get("clock", {}).get("unit_ns"), int)
        if not known or not all(isinstance(facts.get(name), kind) for name, kind in NEEDED):
            raise self.error("damaged header", HEADER.size)
        return facts

    def chunks(self, codec: str, unit: int) -> Iterator[Events]:
        before = 0
        while True:
            start = self.at
            magic, count, length, checksum = CHUNK.unpack(self.take(CHUNK.size))
            if magic == b"DONE":
                total = self.take(TOTAL.size)
                if count or length or zlib.crc32(total) != checksum or TOTAL.unpack(total)[0] != self.events:
                    raise self.error("damaged end", start)
                if self.file.read(1):
                    raise self.error("damaged: something follows the end")
                return
            if magic != b"CHNK" or count > CHUNK_EVENTS:
                raise self.error("damaged chunk", start)
            data = self.take(length)
            if zlib.crc32(data) != checksum:
                raise self.error("damaged chunk", start)
            try:
                body = lzma.decompress(data) if codec == "xz" else zlib.decompress(data)
            except (lzma.LZMAError, zlib.error):
                raise self.error("damaged chunk", start) from None
            if len(body) != count * EVENT_BYTES:
                raise self.error("damaged chunk", start)
            events = _decode(body, count, before, unit)
            before = int(events["time_ns"][-1]) if count else before
            yield events
            self.events += count


def read_trace(path: Path) -> tuple[Events, dict[str, Any]]:
    """Read a trace file: its events and its facts. OSError, or TraceError that says where it is damaged."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        facts = reader.facts()
        parts = list(reader.chunks(facts["codec"], facts["clock"]["unit_ns"]))
    return np.concatenate(parts) if parts else np.empty(0, EVENT), facts
