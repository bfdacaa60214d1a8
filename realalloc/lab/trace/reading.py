"""One way to read every trace: a file, the raw log of a program that runs or died, an older trace, a shipped one by name.

Older traces (``*.trc.xz``): int32 slots, warm, operations; then pairs of slot and size, -1 frees. They have one thread, no
reallocations and no times.
Guarantee: events that come out of here make sense: each slot is allocated, maybe reallocated, and freed, in turn, and threads
and slots are as few as the facts say. Whatever does not is a TraceError that says where.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from realalloc.lab.trace import raw
from realalloc.lab.trace.format import EVENT, FREE, MAGIC, MALLOC, Events, TraceError, read_trace
from realalloc.lab.trace.resolve import resolve
from realalloc.lab.trace.walk import MEANINGS, walk

RECORDED: Final = Path(__file__).parent / "recorded"
SUFFIX: Final = ".trace"
XZ_MAGIC: Final = b"\xfd7zXZ\x00"
BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Trace:
    """A program's allocations, in the order in which they happened."""

    name: str
    events: Events
    facts: dict[str, Any]

    @property
    def slots(self) -> int:
        """How many blocks a replay has to keep at once."""
        return int(self.facts["slots"])

    @property
    def threads(self) -> int:
        """How many threads there were."""
        return int(self.facts["threads"])


def shipped() -> list[str]:
    """Name the traces that come with the package."""
    return sorted(path.stem for path in RECORDED.glob(f"*{SUFFIX}"))


def find(name: str) -> Path:
    """Return a file of that name, or the shipped trace."""
    path = Path(name)
    return RECORDED / f"{name}{SUFFIX}" if not path.exists() and name in shipped() else path


def load(name: str) -> Trace:
    """Read a trace, by path or by name. OSError, or TraceError that says what is wrong and where."""
    path = find(name)
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic.startswith(XZ_MAGIC):
        events, facts = _older(path)
    elif magic == raw.MAGIC:
        try:
            events, facts = resolve(raw.read_log(path))
        except (ValueError, KeyError) as error:
            raise TraceError(f"{path}: {error}") from None
    else:
        events, facts = read_trace(path)
    _check(path, events, facts)
    return Trace(path.name.partition(".")[0] or path.name, events, facts)


def _check(path: Path, events: Events, facts: dict[str, Any]) -> None:
    """Refuse events that cannot have happened: loops that replay them do not look."""
    slots, threads = facts["slots"], facts["threads"]
    for column, most in (("slot", slots), ("thread", threads)):
        wrong = np.flatnonzero(events[column] >= most)
        if len(wrong):
            raise TraceError(f"{path}: damaged: event {wrong[0]} has {column} {events[column][wrong[0]]} of {most}")
    if slots > len(events):
        raise TraceError(f"{path}: damaged: {slots} slots in {len(events)} events")
    status = walk(events, slots).status
    if status:
        raise TraceError(f"{path}: damaged: event {status.event} {MEANINGS[status.problem]}")


def _older(path: Path) -> tuple[Events, dict[str, Any]]:
    numbers = np.frombuffer(_unpacked(path), "<i4")
    _, _, count = (int(value) for value in numbers[:3])
    pairs = numbers[3 : 3 + 2 * count].reshape(-1, 2)
    if len(pairs) < count:
        raise TraceError(
            f"{path}: truncated at byte {4 * len(numbers)} of what is compressed, after event {len(pairs)}"
        )
    events = np.zeros(count, EVENT)
    events["slot"] = pairs[:, 0]
    events["op"] = np.where(pairs[:, 1] < 0, FREE, MALLOC)
    events["size"] = np.maximum(pairs[:, 1], 0)
    facts = {
        "program": path.name.partition(".")[0],
        "clock": {"unit_ns": 1},
        "domains": ["raw"],
        "least": 0,
        "slots": int(numbers[0]),
        "threads": 1,
        "counts": {},
    }
    return events, facts


def _unpacked(path: Path) -> bytes:
    """Decompress; TraceError that says after which event the file ends or is damaged."""
    unpacker = lzma.LZMADecompressor()
    parts: list[bytes] = []
    at = 0
    problem = ""
    with path.open("rb") as file:
        while not unpacker.eof and not problem:
            block = file.read(BLOCK_BYTES)
            try:
                parts.append(unpacker.decompress(block))
            except (lzma.LZMAError, EOFError):
                problem = "damaged before"
            at += len(block)
            if not block:
                problem = problem or "truncated at"
    data = b"".join(parts)
    if problem:
        raise TraceError(f"{path}: {problem} byte {at}, after event {max(len(data) // 4 - 3, 0) // 2}")
    if len(data) < 12 or len(data) % 4:
        raise TraceError(f"{path}: not a trace")
    return data
