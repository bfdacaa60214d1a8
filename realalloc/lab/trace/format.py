"""The trace file, version 1: a header and compressed chunks, each with a checksum, so that damage is found and located.

    header   magic (8), version u16, 0 u16, length u32 of the facts, CRC-32 u32 of the facts; the facts: JSON in UTF-8
    chunk    "CHNK", events u32, compressed bytes u32, CRC-32 u32 of these; then they: xz or zlib, as the facts say
    end      "DONE", 0 u32, 0 u32, CRC-32 u32 of the number of all events as u64; then that number, u64

All numbers are little endian. A chunk holds up to CHUNK_EVENTS events as columns: kind u8 (operation | domain << 2), thread u16,
slot u32, size u64, time u64 (ns since the event before). Columns are stored by bytes: the first byte of all, the second of all.

Facts: program, clock ({"unit": "ns", "ticks_per_second"}), domains, least, events, slots, threads, codec, and what is missing.
Nothing in a trace says who recorded it, where or when.

Guarantees: a file is written whole or not at all. A reader returns every event or raises TraceError, which says at which byte and
after which event a file ends or is damaged.
"""

from __future__ import annotations

import json
import lzma
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"RAtrace\x00"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8sHHII")
CHUNK: Final = struct.Struct("<4sIII")
TOTAL: Final = struct.Struct("<Q")
CHUNK_EVENTS: Final = 1 << 17
XZ_EVENTS: Final = 1 << 20  # more than that is compressed by zlib: ten times as fast, half as well
MAX_FACTS: Final = 1 << 20
WORKERS: Final = 4

OPERATIONS: Final = ("malloc", "calloc", "realloc", "free")
MALLOC, CALLOC, REALLOC, FREE = range(4)
COLUMNS: Final = (("kind", 1), ("thread", 2), ("slot", 4), ("size", 8), ("time_ns", 8))  # bytes of an event in a chunk
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


def _encode(events: Events, before: int, codec: str) -> bytes:
    times = np.diff(events["time_ns"], prepend=before)
    columns = {"kind": events["op"] | events["domain"] << 2, "time_ns": times}
    body = b"".join(_planes(columns.get(name, events[name] if name in EVENT.names else None), width) for name, width in COLUMNS)
    return lzma.compress(body, preset=6) if codec == "xz" else zlib.compress(body, 6)


def _decode(body: bytes, count: int, before: int) -> Events:
    events = np.empty(count, EVENT)
    at = 0
    for name, width in COLUMNS:
        planes = np.frombuffer(body, np.uint8, count * width, at).reshape(width, count)
        column = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")
        at += count * width
        if name == "kind":
            events["op"], events["domain"] = column & 3, column >> 2
        elif name == "time_ns":
            events[name] = before + np.cumsum(column.astype(np.int64))
        else:
            events[name] = column
    return events


def _write(file: BinaryIO, events: Events, facts: dict[str, Any]) -> None:
    codec = "xz" if len(events) <= XZ_EVENTS else "zlib"
    text = json.dumps({**facts, "events": len(events), "codec": codec}, sort_keys=True).encode()
    file.write(HEADER.pack(MAGIC, VERSION, 0, len(text), zlib.crc32(text)) + text)

    def encoded(begin: int) -> bytes:
        part = events[begin : begin + CHUNK_EVENTS]
        data = _encode(part, int(events["time_ns"][begin - 1]) if begin else 0, codec)
        return CHUNK.pack(b"CHNK", len(part), len(data), zlib.crc32(data)) + data

    with ThreadPoolExecutor(min(WORKERS, len(os.sched_getaffinity(0)))) as pool:
        for data in pool.map(encoded, range(0, len(events), CHUNK_EVENTS)):
            file.write(data)
    total = TOTAL.pack(len(events))
    file.write(CHUNK.pack(b"DONE", 0, 0, zlib.crc32(total)) + total)


def write_trace(path: Path, events: Events, facts: dict[str, Any]) -> None:
    """Write a trace under a temporary name beside ``path``, then rename it; OSError leaves nothing behind."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            _write(file, events, facts)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


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
        return facts

    def chunks(self, codec: str) -> Iterator[Events]:
        before = 0
        while True:
            start = self.at
            magic, count, length, checksum = CHUNK.unpack(self.take(CHUNK.size))
            if magic == b"DONE":
                total = self.take(TOTAL.size)
                if zlib.crc32(total) != checksum or TOTAL.unpack(total)[0] != self.events:
                    raise self.error("damaged end", start)
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
            events = _decode(body, count, before)
            before = int(events["time_ns"][-1]) if count else before
            yield events
            self.events += count


def read_trace(path: Path) -> tuple[Events, dict[str, Any]]:
    """Read a trace file: its events and its facts. OSError, or TraceError that says where it is damaged."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        facts = reader.facts()
        parts = list(reader.chunks(facts["codec"]))
    return np.concatenate(parts) if parts else np.empty(0, EVENT), facts
