"""What is done to an arena while threads use it: trims, walks, resizes, shrinks, shortages, forks, collections, signals,
rebirths.

Each has a rate, and comes due on the main thread's clock; what comes due is done one after another, and what could not be
done in time is not made up for. Guarantees: ``did`` counts what was done; what went wrong is in ``books`` or ``children``,
never raised.
"""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable
from typing import Any

from realalloc.errors import CorruptionError, OutOfMemory
from realalloc.lab.stress.forks import fork_and_check
from realalloc.lab.stress.pelting import Pelting
from realalloc.lab.stress.site import RESERVE_ELEMENTS, Site
from realalloc.lab.stress.worker import Worker

SQUEEZE_SECONDS = 0.003  # how long nothing is left
NAMED = 5


class Abuse:
    """The schedule of one process."""

    def __init__(self, site: Site, workers: list[Worker], pelting: Pelting | None) -> None:
        """Begin now: the first of each kind comes after one interval."""
        self.site = site
        self.workers = workers
        self.pelting = pelting
        self.books: list[str] = []
        self.children: list[str] = []
        self.did: dict[str, int] = {}
        self._dice = random.Random(site.options.seed + 1)  # noqa: S311  # no secret
        acts: dict[str, Callable[[], object]] = {
            "trim": site.arena.trim,
            "validate": self._validate,
            "resize": self._resize,
            "shrink": self._shrink,
            "squeeze": self._squeeze,
            "fork": self._fork,
            "gc": gc.collect,
            "signal": self._signal,
            "rebirth": self._rebirth,
        }
        rates = {name: rate for name, rate in site.options.rates.items() if rate > 0}
        if pelting is None:
            rates.pop("signal", None)
        now = time.perf_counter()
        self._acts = {name: acts[name] for name in rates}
        self._every = {name: 1 / rate for name, rate in rates.items()}
        self._due = {name: now + every for name, every in self._every.items()}

    def step(self) -> float:
        """Do what is due; return the seconds until more is."""
        for name, act in self._acts.items():
            now = time.perf_counter()
            if now < self._due[name]:
                continue
            self._due[name] = max(self._due[name] + self._every[name], now)
            act()
            self.did[name] = self.did.get(name, 0) + 1
        return max(0.0, min(self._due.values(), default=now_plus(1.0)) - time.perf_counter())

    def _validate(self) -> None:
        arena = self.site.arena
        try:
            arena.validate()
            for pool in (self.site.bounded, self.site.reserve):
                pool.validate()
        except CorruptionError as error:
            if len(self.books) < NAMED:
                self.books.append(f"after {self.site.seconds():.2f} s: {error}")

    def _resize(self) -> None:
        dice, site = self._dice, self.site
        with contextlib.suppress(OutOfMemory, BufferError):  # no room; or somebody waits for more: both are answers
            site.reserve.resize(dice.randint(1, 4 * RESERVE_ELEMENTS))
        with contextlib.suppress(OutOfMemory, BufferError):
            site.bounded.resize(dice.randint(1, max(1, site.options.threads)))

    def _shrink(self) -> None:
        self._dice.choice(self.site.caches).shrink()

    def _squeeze(self) -> None:
        """Take all memory there is, so that everybody's requests fail; then let it go."""
        arena = self.site.arena
        held: list[Any] = []
        for order in range(int(self.site.cache_table[-1]), -1, -1):
            with contextlib.suppress(OutOfMemory):
                while True:
                    held.append(arena.alloc_pages(order))
        time.sleep(SQUEEZE_SECONDS)
        held.clear()

    def _fork(self) -> None:
        found = fork_and_check(self.site.arena)
        if found is not None and len(self.children) < NAMED:
            self.children.append(f"after {self.site.seconds():.2f} s: {found}")

    def _signal(self) -> None:
        if self.pelting is not None:
            self.pelting.interrupt(self._dice.choice(self.workers).native_id)

    def _rebirth(self) -> None:
        self._dice.choice(self.workers).reborn = True


def now_plus(seconds: float) -> float:
    """Return a time on the schedule's clock."""
    return time.perf_counter() + seconds
