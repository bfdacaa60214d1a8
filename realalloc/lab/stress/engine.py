"""One process of a stress run, from its arena to its record: prepare, run for a while, free everything, look, judge.

Guarantees: ``stop()``, from any thread or handler, ends the running part only: everything is still freed, read, checked and
reported; so it is after an exception, which passes through. ``prepare`` compiles and makes what is made at first use, so
that the resident set at the start is that of a process that has done a little of everything. Signal handlers, the switch
interval and the collector's state are put back. May not: print, or judge by anything but the record.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from realalloc.lab.stress.abuse import Abuse
from realalloc.lab.stress.checks import judge
from realalloc.lab.stress.kernels import FREED, FULL, LEASE, NUMPY, READ_WORDS, REALLOCS, TAKEN, clear
from realalloc.lab.stress.leases import LeaseWork
from realalloc.lab.stress.options import KINDS, Options
from realalloc.lab.stress.pelting import Pelting
from realalloc.lab.stress.records import ProcessResult, Tick, Waits
from realalloc.lab.stress.sampling import arena_numbers, as_series
from realalloc.lab.stress.site import Site
from realalloc.lab.stress.worker import Worker, describe
from realalloc.lease import factory
from realalloc.mm.jit import JIT, warm_up
from realalloc.progress import compile_progress
from realalloc.rss import ProcessSampler, rss, trim_heap

END_SECONDS = 60.0  # for a thread to free what it holds
STEP_SECONDS = 0.02  # the main thread looks at least so often
SWITCH_SECONDS = 5e-4  # between threads that want the GIL: often, to meet in as many places as there are
PELTED_SLOTS, PELTED_TURNS = 16, 20 if JIT else 3

OnRound = Callable[[Worker], None]


class Engine:
    """One process's run. Use it once: ``prepare``, ``run``, ``finish``, and ``close`` in any case."""

    def __init__(self, options: Options, name: str = "main", on_round: OnRound | None = None) -> None:
        """Make the arena; ValueError or OutOfMemory where that cannot be."""
        self.options = options
        self.result = ProcessResult(name, options.seed)
        with compile_progress():
            factory()
            if JIT:
                warm_up()
            self.site = Site(options)
        self.workers = [Worker(self.site, number, on_round) for number in range(options.threads)]
        self._pelted: LeaseWork | None = None
        self._pelted_counts = np.zeros_like(self.site.counts)
        in_main = threading.current_thread() is threading.main_thread()
        self._pelting = Pelting(options.seed) if in_main and options.rates.get("signal") else None
        # without machine code the kernels are Python, too, which a handler would leave in the middle, lock in hand
        if JIT and self._pelting is not None and self.site.lease_kinds is not None:
            # not NumPy: a handler that raises while a `with` block of arena.numpy() is entered leaves the block entered
            kinds = np.where(self.site.lease_kinds == NUMPY, LEASE, self.site.lease_kinds)
            self._pelted = LeaseWork(self.site, kinds, options.seed + 7, self._pelted_counts, PELTED_SLOTS)
        self._sampler = ProcessSampler(options.interval, arena_numbers(self.site, self.verified))
        self._rate = (0.0, 0, 0.0)  # seconds, verified, per second

    def verified(self) -> int:
        """Blocks read in full and freed so far."""
        own = int(self.site.counts[FREED : FREED + len(KINDS)].sum())
        return own + sum(worker.verified for worker in self.workers)

    def stop(self) -> None:
        """End the running part soon."""
        self.site.stop[0] = 1

    def prepare(self) -> None:
        """Compile, do a little of everything, and note the resident set."""
        with compile_progress():
            for worker in self.workers:
                worker.prepare()
        site = self.site
        clear(site.words, site.shared, site.counts, site.failure)
        for counts in (site.counts, *(worker.counts for worker in self.workers)):
            counts[:] = 0
        site.arena.trim()
        gc.collect()
        trim_heap()
        self.result.rss_start = rss()

    def run(self, on_tick: Callable[[Tick], None] | None = None) -> None:
        """Let the threads work, and abuse the arena meanwhile, until time, work or ``stop`` end it."""
        site = self.site
        with contextlib.ExitStack() as stack:
            stack.enter_context(_hurried())
            if self._pelting is not None:
                stack.enter_context(self._pelting)
            site.begun = time.perf_counter()
            stack.enter_context(self._sampler)
            abuse = Abuse(site, self.workers, self._pelting)
            for worker in self.workers:
                worker.start()
            try:
                self._watch(abuse, on_tick)
            finally:
                self.result.seconds = site.seconds()
                self.stop()
                self._join()
                self.result.abuses = abuse.did
                self.result.books += abuse.books
                self.result.children += abuse.children

    def _watch(self, abuse: Abuse, on_tick: Callable[[Tick], None] | None) -> None:
        site, limit = self.site, self.options.rss_limit
        while not site.stop[0]:
            left = self.options.seconds - site.seconds() if not self.options.operations else STEP_SECONDS
            if left <= 0 or all(worker.ended.is_set() for worker in self.workers):
                return
            if limit and self._sampler.peak > limit:
                return  # more would only endanger the machine
            pause = min(abuse.step(), STEP_SECONDS, left)
            if self._pelted is not None and self._pelting is not None:
                self._pelting.under_fire(self._be_pelted)
            elif pause > 0:
                time.sleep(pause)
            if on_tick is not None:
                on_tick(self.tick())

    def _be_pelted(self) -> None:
        assert self._pelted is not None
        for _ in range(PELTED_TURNS):
            self._pelted.turn()
        time.sleep(0.002)  # the signal comes here if it has not come yet

    def tick(self) -> Tick:
        """Say how the run stands."""
        stats, seconds, verified = self.site.arena.stats(), self.site.seconds(), self.verified()
        at, before, rate = self._rate
        if seconds - at >= 0.5:
            rate = (verified - before) / (seconds - at)
            self._rate = seconds, verified, rate
        wrong = sum(len(worker.findings()) for worker in self.workers)
        total = 0.0 if self.options.operations else self.options.seconds
        return Tick(
            seconds, total, verified, rate, rss(), stats.committed, stats.allocated, self.site.fragmentation(),
            self.site.waiters(), 1, wrong,
        )  # fmt: skip

    def _join(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        for worker in self.workers:
            if worker.births and not worker.ended.wait(max(0.0, deadline - time.monotonic())):
                self.result.hung.append(f"thread {worker.number} did not end within {END_SECONDS:g} s")

    def finish(self) -> ProcessResult:
        """Free everything, look at everything, and judge."""
        site, result = self.site, self.result
        stats = site.arena.stats()
        result.arena = {name: value for name, value in stats.as_dict().items() if isinstance(value, int)}
        result.injected = site.reserve.stats().injected_failures
        if self._pelted is not None:
            self._pelted.clear()
        if self._pelting is not None:
            result.pelted = self._pelting.raised
        gc.collect()
        if not result.hung:
            result.books += site.finish()
        self._count()
        trim_heap()
        result.rss_end = rss()
        result.rss_peak = max(self._sampler.peak, result.rss_start)
        result.series = as_series(self._sampler.rows)
        result.checks = judge(result, self.options)
        return result

    def _count(self) -> None:
        site, result = self.site, self.result
        counts = sum((worker.counts for worker in self.workers), site.counts)
        for k, kind in enumerate(KINDS):
            result.taken[kind], result.freed[kind] = int(counts[TAKEN + k]), int(counts[FREED + k])
            result.full[kind] = int(counts[FULL + k])
        result.read_bytes, result.reallocs = 8 * int(counts[READ_WORDS]), int(counts[REALLOCS])
        result.by_thread = [worker.verified for worker in self.workers]
        result.wrong += [text for worker in self.workers for text in worker.findings()]
        if site.failure.any():
            result.wrong.append(f"shared: {describe(site.failure)}")
        if self._pelted is not None:
            result.wrong += [f"under signals: {text}" for text in self._pelted.wrong]
        result.books += [f"thread {worker.number}: {worker.error}" for worker in self.workers if worker.error]
        moments = [
            at for w in self.workers for at in (w.first_wrong_seconds, w.leases.first_wrong_seconds) if at is not None
        ]
        result.first_wrong_seconds = min(moments, default=None)
        waits = [worker.leases.waits for worker in self.workers]
        number, total = sum(w[0] for w in waits), sum(w[1] for w in waits)
        longest = max((w[2] for w in waits), default=0)
        result.waits = Waits(number, total / max(1, number) / 1e9, longest / 1e9)

    def close(self) -> None:
        """Close the arena, unless a thread that hangs may still use it."""
        self.stop()
        if not self.result.hung:
            self.workers, self._pelted = [], None
            self.site.close()


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Let threads take turns often, and the collector look at what is new only."""
    interval, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if not frozen:
            gc.unfreeze()
