"""Shared by the tests of traces: small traces and raw logs by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from realalloc.lab.trace import raw
from realalloc.lab.trace.format import EVENT, FREE, OPERATIONS, Events

ADDRESS = 0x7F0000001000


def events(*rows: tuple[Any, ...]) -> Events:
    """Make events of (operation, thread, slot, size), 64 ns apart."""
    made = np.zeros(len(rows), EVENT)
    for number, (op, thread, slot, *size) in enumerate(rows):
        domain = 3 if size and size[0] >= 4096 else 2
        made[number] = (OPERATIONS.index(op), domain, thread, slot, *(size or [0]), 64 * number)
    return made


def facts(slots: int = 1, threads: int = 1, **more: Any) -> dict[str, Any]:
    """Make the facts of a trace."""
    clock = {"unit_ns": 64, "ticks_per_second": 10**9}
    made = {
        "program": "test",
        "clock": clock,
        "domains": ["obj", "numpy"],
        "least": 0,
        "slots": slots,
        "threads": threads,
    }
    return {**made, "counts": {}, **more}


def random_events(count: int, threads: int = 1, seed: int = 1, most: int = 50) -> tuple[Events, dict[str, Any]]:
    """Make events at random: blocks are freed and reallocated by anybody."""
    dice = np.random.default_rng(seed)
    live: list[int] = []
    free = list(range(most))
    rows: list[tuple[Any, ...]] = []
    for _ in range(count):
        thread, size, kind = int(dice.integers(threads)), int(dice.exponential(300)), dice.random()
        if free and (not live or kind < 0.45):
            slot = free.pop()
            live.append(slot)
            rows.append(("malloc" if kind < 0.4 else "calloc", thread, slot, size))
        elif kind < 0.6:
            rows.append(("realloc", thread, live[int(dice.integers(len(live)))], size))
        else:
            slot = live.pop(int(dice.integers(len(live))))
            free.append(slot)
            rows.append(("free", thread, slot))
    return events(*rows), facts(most, threads)


def log_of(*places: tuple[int, int, int, int], least: int = 0, **more: Any) -> raw.Log:
    """Make a raw log of (operation, thread, address offset, size), 10 ticks apart; address offset -1: NULL."""
    table = np.zeros((len(places), 3), np.int64)
    for k, (op, thread, offset, size) in enumerate(places):
        address = 0 if offset < 0 else ADDRESS + offset
        how = size << raw.SIZE_SHIFT | thread << raw.THREAD_SHIFT | 2 << raw.DOMAIN_SHIFT | op
        table[k] = (1000 + 10 * k, address, how)
    given = {"program": "test", "domains": ["obj"], "least": least, "limit": 1000, "ns_per_tick": 6.4, **more}
    return raw.Log(given, table, 0, 0, raw.WRITING, 4)


def write_log(path: Path, log: raw.Log) -> Path:
    """Write a log as a program would have."""
    page = bytearray(raw.header(log.facts))
    page[8:32] = np.array([len(log.events), log.state, log.attached], np.int64).tobytes()
    path.write_bytes(bytes(page) + log.events.tobytes() + bytes(raw.EVENT_BYTES * 10))
    return path


def live_after(made: Events) -> dict[int, int]:
    """Return the sizes of what is live after events, by slot: the plain model."""
    live: dict[int, int] = {}
    for event in made:
        if event["op"] == FREE:
            del live[int(event["slot"])]
        else:
            live[int(event["slot"])] = int(event["size"])
    return live
