"""The raw log: a file that a recorded program maps and writes, an event in 24 bytes, and nothing else.

    page 0      header: words, see the H_ names; from H_BYTES on the recording's facts as JSON, ended by a zero byte
    page 1 ...  events: time (ticks), address, and how: size << 20 | thread << 8 | domain << 4 | operation

Guarantee: a log can be read whenever the program that writes it stopped: an event counts if its last word, which is stored
last, is not zero. H_RESERVED counts the events for which a place was taken, so that

    reserved = written + torn + refused,    refused = max(reserved - limit, 0) or more, if the disk was full

Invariant: events are in the order in which their places were taken: a free before the memory can be had again, an allocation
after it was had, a reallocation both (OP_MOVE with the old address, then OP_MOVED with the new one, 0 if it failed).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"RAraw\x00\x00\x01"
HEADER_BYTES: Final = 4096
EVENT_BYTES: Final = 24
CHUNK_EVENTS: Final = 1 << 17  # the file grows by 3 MiB
CHUNK_BYTES: Final = CHUNK_EVENTS * EVENT_BYTES
DEFAULT_EVENTS: Final = 20_000_000
MAX_EVENTS: Final = 1 << 31
THREADS: Final = 1 << 12  # what the log can tell apart; the last one stands for all others

H_RESERVED: Final = 1  # words of the header
H_STATE: Final = 2
H_ATTACHED: Final = 3  # which domains were met, a bit each; 0: the program never came so far
H_FACTS: Final = 64  # byte

WRITING, LIMIT_REACHED, NO_SPACE = 0, 1, 2  # H_STATE

OP_MALLOC, OP_CALLOC, OP_MOVE, OP_MOVED, OP_FREE = 1, 2, 3, 4, 5
DOMAINS: Final = ("raw", "mem", "obj", "numpy")
SIZE_SHIFT, THREAD_SHIFT, DOMAIN_SHIFT = 20, 8, 4

# Words of the control block, private to the recorded process: it is what hooks read, so that a child of fork has its own.
C_ON: Final = 0
C_INSIDE: Final = 1  # the thread with the GIL that is in a hook that nests: what it calls is no event of its own
C_FILE: Final = 2  # address of the header
C_RING: Final = 3  # address of event 0
C_LIMIT: Final = 4  # events at most
C_READY: Final = 5  # events that the file has room for
C_GROWING: Final = 6  # lock
C_PATH: Final = 7  # address of the file's name
C_LEAST: Final = 8  # smallest size that is logged
C_FILTER: Final = 9  # address of the filter, 0: there is none
C_THREADS: Final = 16  # a hash table of thread identities, a multiple of 64 bytes from the start
CONTROL_WORDS: Final = C_THREADS + THREADS

# Where there is a least size, most blocks are not logged, and their frees should not be: a word is 1 if a block that falls on
# it was ever logged. A word is never cleared, so there is no order to keep; a block that shares one costs a place in the log.
FILTER_WORDS: Final = 1 << 17

# Words of a domain's record, what a hook gets as ``ctx``: the allocator that was there, and what the hook has to know.
D_ORIGINAL: Final = 0  # ctx, malloc, calloc, realloc, free
D_DOMAIN: Final = 5
D_CONTROL: Final = 6
D_NESTS: Final = 7  # 1: it is called with the GIL and calls others
DOMAIN_WORDS: Final = 8


class Log(NamedTuple):
    """A raw log as it was read. ``events``: int64 (n, 3), places never written left out; ``torn``: how many those were."""

    facts: dict[str, Any]
    events: npt.NDArray[np.int64]
    torn: int
    refused: int
    state: int
    attached: int


def file_bytes(events: int) -> int:
    """Return how large the mapping of so many events is: whole chunks."""
    return HEADER_BYTES + -(-events // CHUNK_EVENTS) * CHUNK_BYTES


def header(facts: dict[str, Any]) -> bytes:
    """Return page 0 of a fresh log."""
    text = json.dumps(facts).encode() + b"\0"
    if H_FACTS + len(text) > HEADER_BYTES:
        raise ValueError("the facts of a recording do not fit into a page")
    return (MAGIC.ljust(H_FACTS, b"\0") + text).ljust(HEADER_BYTES, b"\0")


def read_log(path: Path) -> Log:
    """Read what a program has written so far; ValueError where this is no log, with the byte where that shows."""
    with path.open("rb") as file:
        page = file.read(HEADER_BYTES)
        if len(page) < HEADER_BYTES:
            raise ValueError(f"truncated at byte {len(page)}, within the header")
        words = struct.unpack_from(f"{H_FACTS // 8}q", page)
        facts = json.loads(page[H_FACTS : page.index(b"\0", H_FACTS)])
        taken = min(words[H_RESERVED], facts["limit"])
        events = np.fromfile(file, np.int64, taken * 3)
    events = events[: len(events) // 3 * 3].reshape(-1, 3)
    whole = events[events[:, 2] != 0]
    refused = words[H_RESERVED] - taken + (taken - len(events))
    return Log(facts, whole, len(events) - len(whole), refused, words[H_STATE], words[H_ATTACHED])


def reserved(path: Path) -> int:
    """Return how many places were taken so far."""
    with path.open("rb") as file:
        return int(struct.unpack_from(f"{H_RESERVED + 1}q", file.read(HEADER_BYTES))[H_RESERVED])
