"""A raw log becomes events: addresses become slots, ticks become nanoseconds, threads are numbered as they appear.

A *slot* is where a replay keeps a block; it is used again when its block is freed, first by the thread that freed it (the last
one first), else by a thread that has none of its own (the one that is free for longest), so that slots are as few as blocks
were live at once, and threads wait for each other no more than they have to.

Guarantees: each thread's events keep their order, and all of them the log's. In the events every slot is allocated, maybe
reallocated, and freed, in turn. What does not fit is counted, never guessed:

    written = events + moves + unknown frees + failed reallocations + small ones

where *unknown* are blocks from before the recording or below its least size, and an allocation at an address that is live (its
free was not seen) counts as a reallocation of it, ``overwritten``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from realalloc.lab.trace.format import CALLOC, EVENT, FREE, MALLOC, REALLOC, Events
from realalloc.lab.trace.raw import (
    DOMAIN_SHIFT,
    OP_CALLOC,
    OP_FREE,
    OP_MALLOC,
    OP_MOVE,
    SIZE_SHIFT,
    THREAD_SHIFT,
    THREADS,
    Log,
)
from realalloc.lab.trace.walk import cached_njit

Numbers = npt.NDArray[Any]
FIRST_BITS: Final = 10  # of the table of addresses
MIX: Final = 0x5851F42D
NONE: Final = -1
UNIT_NS: Final = 64  # of times in a trace: finer ones would double its size
UNKNOWN_FREES, MOVES, FAILED, ADOPTED, OVERWRITTEN, SMALL, SLOTS = range(7)  # counts
COUNTS: Final = ("unknown_frees", "moves", "failed_reallocations", "adopted", "overwritten", "small")


@cached_njit
def _home(address: int, mask: int) -> int:
    return ((address >> 4) * MIX >> 11) & mask


@cached_njit
def _find(keys: Numbers, address: int) -> int:
    """Return where an address is, or where it would be."""
    mask = len(keys) - 1
    at = _home(address, mask)
    while keys[at] != 0 and keys[at] != address:
        at = (at + 1) & mask
    return at


@cached_njit
def _remove(keys: Numbers, slots: Numbers, hole: int) -> None:
    """Empty a place, and move up what was put behind it."""
    mask = len(keys) - 1
    at = hole
    while True:
        at = (at + 1) & mask
        if keys[at] == 0:
            break
        home = _home(int(keys[at]), mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            keys[hole], slots[hole] = keys[at], slots[at]
            hole = at
    keys[hole] = 0


@cached_njit
def _larger(keys: Numbers, slots: Numbers) -> tuple[Numbers, Numbers]:
    wide_keys, wide_slots = np.zeros(2 * len(keys), np.int64), np.zeros(2 * len(keys), np.int32)
    for k in range(len(keys)):
        if keys[k] != 0:
            at = _find(wide_keys, int(keys[k]))
            wide_keys[at], wide_slots[at] = keys[k], slots[k]
    return wide_keys, wide_slots


@cached_njit
def _take(heads: Numbers, tails: Numbers, before: Numbers, after: Numbers, thread: int) -> int:
    """Take a free slot: this thread's latest, else another's oldest. There is one."""
    slot = heads[thread]
    owner = thread
    if slot == NONE:
        while tails[owner] == NONE:
            owner = owner + 1 if owner + 1 < len(tails) else 0
        slot = tails[owner]
    left, right = before[slot], after[slot]
    if left == NONE:
        heads[owner] = right
    else:
        after[left] = right
    if right == NONE:
        tails[owner] = left
    else:
        before[right] = left
    return int(slot)


@cached_njit
def _give(heads: Numbers, tails: Numbers, before: Numbers, after: Numbers, thread: int, slot: int) -> None:
    """Put a slot before a thread's other free ones."""
    first = heads[thread]
    before[slot], after[slot] = NONE, first
    heads[thread] = slot
    if first == NONE:
        tails[thread] = slot
    else:
        before[first] = slot


@cached_njit
def _resolve(log: Numbers, numbers: Numbers, threads: int, least: int, out: Numbers, counts: Numbers) -> int:
    """Fill ``out`` (op, domain, thread, slot, size, index in the log) and ``counts``; return how many events there are."""
    keys, places = np.zeros(1 << FIRST_BITS, np.int64), np.zeros(1 << FIRST_BITS, np.int32)
    heads, tails = np.full(threads, NONE, np.int32), np.full(threads, NONE, np.int32)
    room = 1 << FIRST_BITS
    before, after = np.zeros(room, np.int32), np.zeros(room, np.int32)
    moving, moved_from = np.full(threads, NONE, np.int32), np.zeros(threads, np.int64)
    live = free = slots = made = 0
    for k in range(len(log)):
        address, how = int(log[k, 1]), int(log[k, 2])
        op, domain, size = how & 15, (how >> DOMAIN_SHIFT) & 15, how >> SIZE_SHIFT
        thread = int(numbers[(how >> THREAD_SHIFT) & (THREADS - 1)])
        kind, slot = FREE, NONE
        if op == OP_MOVE or op == OP_FREE:
            at = _find(keys, address)
            if keys[at] != 0:
                slot = int(places[at])
                _remove(keys, places, at)
                live -= 1
            if op == OP_MOVE:
                moving[thread], moved_from[thread] = slot, address
                counts[MOVES] += 1
                continue
            if slot == NONE:
                counts[UNKNOWN_FREES] += 1
                continue
            _give(heads, tails, before, after, thread, slot)
            free += 1
        else:
            if op == OP_MALLOC:
                kind = MALLOC
            elif op == OP_CALLOC:
                kind = CALLOC
            else:
                slot = int(moving[thread])
                kind = MALLOC if slot == NONE else REALLOC
                moving[thread] = NONE
                if address == 0:
                    counts[FAILED] += 1
                    if slot == NONE:
                        continue
                    address = int(moved_from[thread])
                elif slot == NONE and size < least:
                    counts[SMALL] += 1
                    continue
                elif slot == NONE:
                    counts[ADOPTED] += 1
            if 2 * live >= len(keys):
                keys, places = _larger(keys, places)
            at = _find(keys, address)
            if keys[at] != 0:
                counts[OVERWRITTEN] += 1
                if slot == NONE:
                    slot, kind = int(places[at]), REALLOC
            else:
                live += 1
            if slot == NONE and free > 0:
                slot = _take(heads, tails, before, after, thread)
                free -= 1
            elif slot == NONE:
                slot = slots
                slots += 1
                if slots > room:
                    before, after = np.append(before, before), np.append(after, after)
                    room *= 2
            keys[at], places[at] = address, slot
            if op != OP_MALLOC and op != OP_CALLOC and log[k, 1] == 0:
                continue  # it failed: the block is where it was
        out[made, 0], out[made, 1], out[made, 2], out[made, 3] = kind, domain, thread, slot
        out[made, 4], out[made, 5] = size if kind != FREE else 0, k
        made += 1
    counts[SLOTS] = slots
    return made


def _in_order(log: Log) -> tuple[Numbers, int]:
    """Number threads as they appear; return the number of each of the log's, and how many there are."""
    seen, first = np.unique((log.events[:, 2] >> THREAD_SHIFT) & (THREADS - 1), return_index=True)
    numbers = np.zeros(THREADS, np.int64)
    numbers[seen[np.argsort(first)]] = np.arange(len(seen))
    return numbers, len(seen)


def resolve(log: Log) -> tuple[Events, dict[str, Any]]:
    """Return the events of a log, and the facts of the trace."""
    numbers, threads = _in_order(log)
    table = np.zeros((len(log.events), 6), np.int64)
    counts = np.zeros(len(COUNTS) + 1, np.int64)
    made = _resolve(log.events, numbers, max(threads, 1), log.facts["least"], table, counts)
    events = np.empty(made, EVENT)
    for column, name in enumerate(("op", "domain", "thread", "slot", "size")):
        events[name] = table[:made, column]
    ticks = log.events[table[:made, 5], 0]
    if made:
        ticks = np.maximum.accumulate(ticks) - int(ticks[0])
    tick_ns = float(log.facts["ns_per_tick"])
    events["time_ns"] = (ticks * (tick_ns / UNIT_NS)).astype(np.int64) * UNIT_NS
    missing = {name: int(counts[k]) for k, name in enumerate(COUNTS)}
    missing |= {"torn": log.torn, "refused": log.refused}
    facts = {
        "program": log.facts["program"],
        "clock": {"unit_ns": UNIT_NS, "ticks_per_second": round(1e9 / tick_ns)},
        "domains": log.facts["domains"],
        "least": log.facts["least"],
        "slots": int(counts[SLOTS]),
        "threads": threads,
        "counts": missing,
    }
    return events, facts
