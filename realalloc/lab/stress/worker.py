"""A stressing thread: rounds of the jitted loop without the GIL, and between them its share of Python's leases.

Guarantees: a worker ends soon after ``site.stop``, frees what it held, each block read in full, and says so by ``ended``;
also when it failed, whose reason is in ``error``. It may be reborn: another thread goes on with its slots, and frees what
it did not take. May not: be waited for without a limit; a thread that hangs is a finding.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from realalloc.lab.stress.kernels import (
    COUNTS,
    DICE,
    F_BYTES,
    F_EXPECTED,
    F_FOUND,
    F_KIND,
    F_OFFSET,
    F_SEQUENCE,
    F_WHAT,
    F_WORD,
    FAILURE_WORDS,
    FREED,
    NEIGHBOUR,
    NUMBER,
    POSITION,
    RECORD,
    REFUSED,
    SEEN,
    SHORT,
    STATE_MASK,
    STYLE,
    WRONG,
    clear,
    roll,
    work,
)
from realalloc.lab.stress.leases import LeaseWork
from realalloc.lab.stress.options import KINDS
from realalloc.lab.stress.site import Site
from realalloc.mm.jit import JIT
from realalloc.sizes import format_bytes

ROUND_TURNS: Final = 4000 if JIT else 12  # of a round, both kinds of work together: some milliseconds
ERRAND_TURNS: Final = 200 if JIT else 2
LEASE_SLOTS: Final = 64
FINDINGS: Final = {
    WRONG: "word {word} is {found:#x}, not {expected:#x}",
    NEIGHBOUR: "word {word} is {found:#x}, not {expected:#x}, after another block was freed or filled",
    REFUSED: "its free was refused with {found}",
    SHORT: "it has {found} usable bytes, not {expected}",
}


def describe(failure: Any) -> str:
    """Say what the first failure of a loop was."""
    found = [int(value) for value in failure]
    what = FINDINGS[found[F_WHAT]].format(word=found[F_WORD], found=found[F_FOUND], expected=found[F_EXPECTED])
    block = f"{KINDS[found[F_KIND]]} block {found[F_SEQUENCE]} of {format_bytes(found[F_BYTES])}"
    return f"{block} at offset {found[F_OFFSET]:#x}: {what}"


class Worker:
    """One lane of work; ``on_round`` is called in its thread after each round, for tests that damage something."""

    def __init__(self, site: Site, number: int, on_round: Callable[[Worker], None] | None = None) -> None:
        """Prepare; nothing runs yet."""
        self.site = site
        self.number = number
        self.counts = np.zeros(COUNTS, np.int64)
        self.failure = np.zeros(FAILURE_WORDS, np.int64)
        self.table = np.zeros(site.slots * RECORD, np.int64)
        self.state = np.zeros(4, np.int64)
        self.state[DICE] = roll((site.options.seed * 64 + number + 1) & STATE_MASK)
        self.state[NUMBER] = (number + 1) << 40  # sequence numbers that no other thread has
        self.state[POSITION], self.state[STYLE] = 0, site.style
        errand = None if site.raw_kinds is None else lambda: self._raw(ERRAND_TURNS)
        self.leases = LeaseWork(
            site, site.lease_kinds, site.options.seed * 64 + number, self.counts, LEASE_SLOTS, errand
        )
        self.ended = threading.Event()
        self.error: str | None = None
        self.first_wrong_seconds: float | None = None
        self.births = 0
        self.native_id = 0
        self.reborn = False  # wish: let another thread go on
        self._on_round = on_round
        self._debt = 0.0

    @property
    def verified(self) -> int:
        """Blocks read in full and freed so far."""
        return int(self.counts[FREED : FREED + len(KINDS)].sum())

    def start(self) -> None:
        """Let a thread take over."""
        self.births += 1
        threading.Thread(target=self._live, name=f"realalloc-stress-{self.number}", daemon=True).start()

    def prepare(self) -> None:
        """Do a little of everything, for what is compiled or made at first use; what is shared then is the site's to clear."""
        self._round(min(ROUND_TURNS, 500))
        self.leases.clear()
        clear(self.site.words, self.table, self.counts, self.failure)

    def _live(self) -> None:
        self.native_id = threading.get_native_id()
        try:
            while not self._is_over():
                if self.reborn:
                    self.reborn = False
                    self.start()
                    return
                self._round(ROUND_TURNS)
                if self._on_round is not None:
                    self._on_round(self)
            clear(self.site.words, self.table, self.counts, self.failure)
            self.leases.clear()
            self._watch()
        except BaseException:  # noqa: BLE001  # whatever it is, it is a finding
            self.error = traceback.format_exc(limit=-6)
        self.ended.set()

    def _is_over(self) -> bool:
        site = self.site
        quota = -(-site.options.operations // site.options.threads)
        return bool(site.stop[0]) or 0 < quota <= self.verified

    def _round(self, turns: int) -> None:
        site = self.site
        if site.raw_kinds is not None:
            self._raw(max(1, round(turns * (1 - site.lease_share))))
        if site.lease_kinds is not None:
            self._debt += turns * site.lease_share
            while self._debt >= 1 and not site.stop[0]:
                self._debt -= 1
                self.leases.turn()
        self._watch()

    def _raw(self, turns: int) -> None:
        site = self.site
        work(
            site.words, self.table, site.shared, site.sizes, site.raw_kinds, site.cache_table, self.state, site.stop,
            self.counts, self.failure, turns,
        )  # fmt: skip

    def _watch(self) -> None:
        if self.first_wrong_seconds is None and self.failure[SEEN]:
            self.first_wrong_seconds = self.site.seconds()

    def findings(self) -> list[str]:
        """Return what was wrong with contents and frees, the first of each in words."""
        found = [describe(self.failure)] if self.failure[SEEN] else []
        return [f"thread {self.number}: {text}" for text in (*found, *self.leases.wrong)]
