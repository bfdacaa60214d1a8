"""Shrinkers: functions of the user's that give memory up when an allocation would fail (kernel: mm/shrinker.c).

An allocation that may reclaim and finds nothing comes here, after the jitted reclaim of sheaves, empty slabs and lazy areas
found nothing either. Shrinkers are asked for a growing share of what they hold, from ``freeable >> 12`` up to all of it, and
the allocation is tried again after each step in which one was asked to scan.

No lock of the arena is held here. Never called: by a thread that is inside a shrinker (kernel: PF_MEMALLOC), inside a
collection or a ``__del__``, at interpreter exit, for a request that could not be served by an empty arena. One thread at a
time runs the shrinkers of an arena; who comes meanwhile waits for its end, TURN_SECONDS at most.

Invariant, of a shrinker that keeps its word:     deferred = min(deferred before + delta - scanned, 2 * freeable), at least 0
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from realalloc.closing import Closing
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_DMA, GFP_NORETRY
from realalloc.mm import layout
from realalloc.mm.jit import Words
from realalloc.mm.pressure import account_stall
from realalloc.records import Record
from realalloc.sizes import as_int
from realalloc.zones import zone_pages

T = TypeVar("T")

SHRINK_STOP: Final = -1  # from scan: nothing can be freed now (kernel: ~0UL)
SHRINK_EMPTY: Final = -2  # from count: there is nothing to free (kernel: ~0UL - 1)
DEFAULT_SEEKS: Final = 2
SHRINK_BATCH: Final = 128
DEF_PRIORITY: Final = 12  # the first step scans freeable >> 12
MAX_RECLAIM_RETRIES: Final = 16  # rounds after which no page was free that was not before
MAX_BATCHES: Final = 1024  # of one shrinker in one step: what is left is deferred, and the allocation tried meanwhile
_FULL_NS: Final = layout.PRESSURE + layout.PSI_FULL_NS
FIRST_PAUSE_SECONDS: Final = 0.0005  # of who cannot fail
LAST_PAUSE_SECONDS: Final = 0.016
TURN_SECONDS: Final = 1.0  # a shrinker may wait for what the waiting thread holds

_here = threading.local()  # .busy: this thread is inside of here
_registries: weakref.WeakSet[Shrinkers] = weakref.WeakSet()
# Written by callbacks of the collector that run no bytecode: in one that did, a Ctrl-C that came during the collection would
# be handled, and lost.
_phases = OrderedDict.fromkeys(("start", "stop"))  # the present phase is last
_latest: dict[str, Any] = {}  # what all callbacks are given
_watchers: Final[tuple[Any, ...]] = (
    _phases.move_to_end,
    _latest.__setitem__,
    _here.__setattr__,
)  # the last one: for the collecting thread


@dataclass(frozen=True, slots=True)
class ShrinkerStats(Record):
    """What a shrinker was asked, and what it said: counts of calls, and of objects as it counts them."""

    name: str
    seeks: int
    batch: int
    counts: int  # calls of count
    scans: int  # calls of scan
    scanned: int  # objects that scan was asked to look at
    freed: int  # objects that scan said it freed
    deferred: int  # objects that were due and not yet scanned
    stops: int  # SHRINK_STOP
    errors: int  # calls that raised, or returned what means nothing


class Step(NamedTuple):
    """What came of asking once: calls of scan, objects freed, objects that were due."""

    scans: int
    freed: int
    due: int


class _Report:
    """A callback of a weak reference that raises: Python itself hands the error to ``sys.unraisablehook``."""

    def __init__(self, owner: str, error: Exception) -> None:
        self._owner, self._error = owner, error

    def __call__(self, _reference: object) -> None:
        raise self._error

    def __repr__(self) -> str:
        return self._owner


class _Mortal:
    __slots__ = ("__weakref__",)


def _report(owner: str, error: Exception) -> None:
    mortal = _Mortal()
    _kept = weakref.ref(mortal, _Report(owner, error))
    del mortal


class Shrinker(Closing):
    """A registered pair of ``count`` and ``scan``; made by :meth:`realalloc.Arena.register_shrinker`.

    Registered until :meth:`close`, the end of its ``with`` block, or the arena's close.
    """

    __slots__ = ("__weakref__", "_calls", "_deferred", "_home", "batch", "name", "seeks")

    def __init__(
        self,
        home: Shrinkers,
        count: Callable[[], int],
        scan: Callable[[int], int],
        seeks: int,
        batch: int,
        name: str | None,
    ) -> None:
        """Check the arguments; nothing is registered yet."""
        for what, function in (("count", count), ("scan", scan)):
            if not callable(function):
                raise TypeError(f"{what} must be callable, not {type(function).__name__}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        self.seeks = as_int(seeks, "seeks")
        self.batch = as_int(batch, "batch", 1)
        self.name: str = name or getattr(scan, "__qualname__", None) or type(scan).__name__
        self._home = weakref.ref(home)  # which has the functions: a handle that is kept keeps nothing else alive
        self._deferred = 0
        self._calls = dict.fromkeys(("counts", "scans", "scanned", "freed", "stops", "errors"), 0)

    @property
    def closed(self) -> bool:
        """Whether it is no longer registered."""
        home = self._home()
        return home is None or self not in home.functions

    def close(self) -> None:
        """Unregister: no call begins any more; one that another thread is in comes to its end. Idempotent."""
        home = self._home()
        if home is not None:
            home.functions.pop(self, None)

    unregister = close

    def __repr__(self) -> str:
        """Show what it did."""
        state = "closed" if self.closed else f"{self._calls['freed']} freed"
        return f"<Shrinker {self.name!r} {state}>"

    def stats(self) -> ShrinkerStats:
        """Return what it was asked and what it said."""
        return ShrinkerStats(name=self.name, seeks=self.seeks, batch=self.batch, deferred=self._deferred, **self._calls)

    # -- one step: kernel, do_shrink_slab --------------------------------------------------------------------------------

    def _ask(self, what: str, function: Callable[..., int], other: int, *args: int) -> int:
        """Call a function of the user's: a count, or ``other``. What it raises is reported, and counts as SHRINK_STOP."""
        self._calls["counts" if what == "count" else "scans"] += 1
        try:
            found = as_int(function(*args), f"what {what} returns", SHRINK_EMPTY, sys.maxsize)
        except Exception as error:  # noqa: BLE001  # reported, and no progress
            self._calls["errors"] += 1
            _report(f"shrinker {self.name!r}: {what}", error)
            return SHRINK_STOP
        if found < 0 and found != other:
            self._calls["errors"] += 1
            _report(
                f"shrinker {self.name!r}: {what}", ValueError(f"{what} returned {found}, which is not its to return")
            )
            return SHRINK_STOP
        return found

    def step(self, priority: int) -> Step:
        """Have ``freeable >> priority`` and what was deferred scanned, in batches."""
        home = self._home()
        functions = None if home is None else home.functions.get(self)
        if functions is None:
            return Step(0, 0, 0)
        count, scan = functions
        freeable = self._ask("count", count, SHRINK_EMPTY)
        if freeable <= 0:
            return Step(0, 0, 0)
        if self.seeks:
            delta = -(-4 * (freeable >> priority) // self.seeks)
        else:  # costs nothing to make again: half of it at once; up, or the last one would never go
            delta = (freeable + 1) // 2
        deferred, self._deferred = self._deferred, 0
        left = min((deferred >> priority) + delta, 2 * freeable)
        scans = scanned = freed = 0
        while (left >= self.batch or left >= freeable) and left > 0 and scans < MAX_BATCHES and not self.closed:
            share = min(self.batch, left)
            found = self._ask("scan", scan, SHRINK_STOP, share)
            scans += 1
            if found == SHRINK_STOP:
                self._calls["stops"] += 1
                break
            freed += found
            left -= share
            scanned += share
        self._calls["scanned"] += scanned
        self._calls["freed"] += freed
        self._deferred = min(max(deferred + delta - scanned, 0), 2 * freeable)
        return Step(scans, freed, delta)


class Shrinkers:
    """The shrinkers of one arena, in order of registration, and the rounds in which they run."""

    def __init__(self) -> None:
        """Hold none."""
        # Each use is one atomic step: signal handlers may register and close, too.
        self.functions: dict[Shrinker, tuple[Callable[[], int], Callable[[int], int]]] = {}
        self._turn = threading.RLock()  # only an RLock can tell who was interrupted whether it has it
        self._closed = False
        _registries.add(self)

    def __len__(self) -> int:
        """Return how many there are: none is what makes a failed allocation as cheap as it was."""
        return len(self.functions)

    def register(self, count: Any, scan: Any, seeks: int, batch: int, name: str | None) -> Shrinker:
        """Check and add one."""
        made = Shrinker(self, count, scan, seeks, batch, name)
        for watcher in _watchers:
            if watcher not in gc.callbacks:
                gc.callbacks.append(watcher)
        self.functions[made] = (count, scan)
        return made

    def close(self) -> None:
        """Unregister all, and begin no call any more."""
        self._closed = True
        self.functions.clear()

    def relieve(self, words: Words, attempt: Callable[[], T | None], gfp: int, nbytes: int = 0) -> T | None:
        """Run shrinkers until ``attempt`` returns something, or none of them helps; None then.

        ``attempt`` failed before; it may raise, and so may Ctrl-C. Flags without GFP_DIRECT_RECLAIM run none, with
        GFP_NORETRY one round (kernel: __alloc_pages_slowpath). ``words`` keeps the range mapped.
        """
        if not self.functions or not gfp & GFP_DIRECT_RECLAIM or not _may_run() or not could_fit(words, gfp, nbytes):
            return None
        turn = self._turn
        try:
            _here.busy = True
            if not turn.acquire(blocking=False):
                has_turn = turn.acquire(timeout=TURN_SECONDS)
                found = attempt()  # the other thread may have made room for both
                if found is not None or not has_turn:
                    return found
            return self._stalled(words, attempt, gfp)
        finally:
            _here.busy = False  # no call before this and the release: no Ctrl-C is looked at
            try:  # noqa: SIM105
                turn.release()
            except RuntimeError:  # it is not ours
                pass

    def _stalled(self, words: Words, attempt: Callable[[], T | None], gfp: int) -> T | None:
        """Run the rounds; the time is a stall of this thread, but for what the kernels have counted as one of all."""
        begin, before = time.monotonic_ns(), int(words[_FULL_NS])
        try:
            return self._rounds(words, attempt, gfp)
        finally:
            account_stall(words, time.monotonic_ns() - begin - (int(words[_FULL_NS]) - before))

    def _rounds(self, words: Words, attempt: Callable[[], T | None], gfp: int) -> T | None:
        lowest = int(words[layout.H_ALLOCATED_PAGES])
        stalled = 0
        while stalled < MAX_RECLAIM_RETRIES:
            scans = freed = due = 0
            for priority in range(DEF_PRIORITY, -1, -1):
                step = self._step(priority)
                scans, freed, due = scans + step.scans, freed + step.freed, due + step.due
                if step.scans:  # whatever they said: they may have freed without saying so
                    found = attempt()
                    if found is not None:
                        return found
            pages = int(words[layout.H_ALLOCATED_PAGES])
            progress = freed > 0 or pages < lowest
            if gfp & GFP_NORETRY or self._closed or not (progress or (due and not scans)):
                return None
            stalled = 0 if pages < lowest else stalled + 1
            lowest = min(lowest, pages)
        return None

    def _step(self, priority: int) -> Step:
        scans = freed = due = 0
        for shrinker in list(self.functions):  # those that are registered now; one that goes meanwhile is not asked
            step = shrinker.step(priority)
            scans, freed, due = scans + step.scans, freed + step.freed, due + step.due
        return Step(scans, freed, due)

    def after_fork(self) -> None:
        """In a child: what other threads held is free."""
        try:
            self._turn.release()
        except RuntimeError:  # it is with a thread that does not exist here, or with nobody
            self._turn = threading.RLock()
        else:
            self._turn.acquire()


def insist(attempt: Callable[[], T | None]) -> T | None:
    """Ask until ``attempt``, which failed before, returns something (GFP_NOFAIL); it may raise, and so may Ctrl-C.

    Between two attempts the thread sleeps, without the GIL, at most LAST_PAUSE_SECONDS. None at once where shrinkers may not
    run, inside one of them among others: there an allocation fails, or it would wait for itself.
    """
    if not _may_run():
        return None
    pause = FIRST_PAUSE_SECONDS
    while True:
        time.sleep(pause)
        found = attempt()
        if found is not None:
            return found
        pause = min(2 * pause, LAST_PAUSE_SECONDS)


def could_fit(words: Words, gfp: int, nbytes: int) -> bool:
    """Tell whether an empty arena could serve a request of that size: nobody gives anything up for one that it could not."""
    zone = layout.ZONE_DMA if gfp & GFP_DMA else layout.ZONE_NORMAL
    if zone >= words[layout.H_NR_ZONES]:
        return False
    return nbytes <= zone_pages(words, zone) * layout.PAGE_BYTES


def _may_run() -> bool:
    """Tell whether code of the user's may run here: not inside a shrinker, a collection or a ``__del__``, not at exit."""
    if getattr(_here, "busy", False) or _is_collecting() or sys.is_finalizing():
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "__del__":
            return False
    return True


def _is_collecting() -> bool:
    """Tell whether this very thread is inside a collection."""
    return next(reversed(_phases)) == "start" and getattr(_here, "start", None) is _latest.get("start")


def _after_fork_in_child() -> None:
    for registry in list(_registries):
        registry.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
