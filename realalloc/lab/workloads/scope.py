"""How large a run is: what every workload is asked for.

``scale`` is the share of the full number of operations; ``threads`` how many run side by side in rows of several threads (1:
there are no such rows). ``seed`` is that of every stream of sizes and slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from realalloc.lab.crowd import Workers

FULL, QUICK, SMOKE = 1.0, 0.2, 0.01


@dataclass
class Scope:
    """The size of a run. Close it: its workers are threads."""

    scale: float = FULL
    threads: int = 2
    seed: int = 1
    _workers: list[Workers] = field(default_factory=list)

    def count(self, full: int, least: int = 200) -> int:
        """Scale a number of operations."""
        return min(full, max(least, int(full * self.scale)))

    def crowds(self) -> Sequence[int]:
        """Return how many threads rows are measured with: one, and several."""
        return (1, self.threads) if self.threads > 1 else (1,)

    @property
    def workers(self) -> Workers:
        """Threads that stay, as many as ``threads``; made when first asked for."""
        if not self._workers:
            self._workers.append(Workers(max(self.threads, 2)))
        return self._workers[0]

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.pop().close()


def size_name(nbytes: int) -> str:
    """Format a size: ``64 B``, ``32 KiB``."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"


def threads_name(threads: int) -> str:
    """Format a number of threads."""
    return "1 thread" if threads == 1 else f"{threads} threads"
