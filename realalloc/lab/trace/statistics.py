"""What is in a trace, in numbers: events by operation and domain, sizes, lifetimes, what is live at the peak, threads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from realalloc.lab.trace.format import FREE, OPERATIONS
from realalloc.lab.trace.raw import DOMAINS
from realalloc.lab.trace.reading import Trace
from realalloc.lab.trace.walk import walk


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of a trace; ``as_dict`` is what JSON can say.

    ``sizes``: (largest size of the bucket, how many, bytes asked for), by powers of two; of allocations and reallocations.
    ``lifetimes``: (blocks lived less than so many ns, how many); 0: it was freed within a unit of the clock.
    """

    program: str
    events: int
    operations: dict[str, dict[str, int]]  # domain -> operation -> how many
    sizes: list[tuple[int, int, int]]
    lifetimes: list[tuple[int, int]]
    threads: int
    events_by_thread: list[int]
    remote_frees: int
    peak_bytes: int
    peak_at_event: int
    peak_blocks: int
    left_bytes: int
    left_blocks: int
    seconds: float
    missing: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


def _by_powers(sizes: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    powers = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    counts = np.bincount(powers, minlength=1)
    amounts = np.bincount(powers, weights=sizes, minlength=1)
    return [(1 << k, int(n), int(amount)) for k, (n, amount) in enumerate(zip(counts, amounts, strict=True)) if n]


def statistics(trace: Trace) -> Statistics:
    """Look at all of a trace once."""
    events = trace.events
    walked = walk(events, trace.slots)
    table = np.bincount(events["domain"].astype(np.int64) * 4 + events["op"], minlength=16).reshape(4, 4)
    operations = {
        domain: dict(zip(OPERATIONS, row.tolist(), strict=True))
        for domain, row in zip(DOMAINS, table, strict=True)
        if row.any()
    }
    lifetimes = [(1 << k if k else 0, int(count)) for k, count in enumerate(walked.lifetimes_ns) if count]
    return Statistics(
        program=str(trace.facts["program"]),
        events=len(events),
        operations=operations,
        sizes=_by_powers(events["size"][events["op"] != FREE]),
        lifetimes=lifetimes if events["time_ns"].any() else [],
        threads=trace.threads,
        events_by_thread=np.bincount(events["thread"], minlength=trace.threads).tolist(),
        remote_frees=walked.remote_frees,
        peak_bytes=walked.peak_bytes,
        peak_at_event=walked.peak_at,
        peak_blocks=walked.peak_blocks,
        left_bytes=walked.left_bytes,
        left_blocks=walked.left_blocks,
        seconds=float(events["time_ns"][-1]) / 1e9 if len(events) else 0.0,
        missing={name: count for name, count in trace.facts["counts"].items() if count},
    )
