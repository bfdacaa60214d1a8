"""Budgets: how much of an arena a part of a program may hold, in a tree (kernel: memory cgroups, memory.max and memory.high).

``with budget:`` charges what the block allocates; caches, pools and arrays are charged to the budget that they were given. Use
counts in the parents too; the root of the tree is the arena's own ``limit``. Which budget pays for a block is in
:mod:`realalloc.payers`, what budgets say of themselves in :mod:`realalloc.budget_stats`.

Invariant: what kmalloc, vmalloc and pages give in a block of budget *b* has *b* in its lease's tag, and its usable bytes (of
an area: the whole pages asked for) are in B_BYTES of *b* until the lease dies.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from realalloc.budget_stats import BudgetStats, largest_holders, read_budget, scratch
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_NORETRY
from realalloc.lease import tag_of
from realalloc.mm import layout
from realalloc.mm.budget import (
    OVERAGE_SHIFT,
    budget_bound,
    budget_close,
    budget_create,
    budget_overage,
    budget_refuser,
    budget_throttled,
)
from realalloc.mm.charge import attach
from realalloc.mm.reclaim import reclaim
from realalloc.sizes import as_bytes, format_bytes

if TYPE_CHECKING:
    from realalloc.arena import Arena

BATCH_BYTES: Final = 64 << layout.PAGE_SHIFT  # kernel: MEMCG_CHARGE_BATCH
PENALTY: Final = 64.0  # seconds for a batch at twice the high mark (kernel: MEMCG_DELAY_SCALING_SHIFT)
SHORTEST_SLEEP_S: Final = 1e-3  # what is due is saved up to that
LONGEST_SLEEP_S: Final = 0.1


def _bound(value: int | str | None, what: str) -> int:
    return layout.NO_LIMIT if value is None else as_bytes(value, what)


def _encoded(name: Any) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    raw = name.encode()
    if not raw or len(raw) > layout.BUDGET_NAME_BYTES or any(ch.isspace() or ch in "\0/" for ch in name):
        most = layout.BUDGET_NAME_BYTES
        raise ValueError(f"a budget needs a name of 1 to {most} bytes without spaces and slashes, not {name!r}")
    return raw


def check_budget(arena: Arena, budget: Any) -> None:
    """TypeError or ValueError for what cannot pay for a cache, a pool or arrays of ``arena``; None can: nobody pays."""
    if budget is None:
        return
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, not {type(budget).__name__}")
    if budget.arena is not arena:
        raise ValueError("the budget is one of another arena")
    budget._check_open()


class Budget:
    """A bound on what a part of a program holds of an arena; made by :meth:`realalloc.Arena.budget`.

    As a ``with`` block it charges what the block allocates from its arena: kmalloc, kzalloc, kcalloc, krealloc, vmalloc,
    kvmalloc and pages, by usable bytes, until the last view is gone. Of nested blocks the innermost pays. May be entered
    often, by many threads and tasks at once. A budget that nothing refers to any more is closed when
    the next one is made or looked at.
    """

    def __init__(
        self, arena: Arena, name: str, limit: int | str | None, high: int | str | None, parent: Budget | None
    ) -> None:
        """Make it; see :meth:`realalloc.Arena.budget`."""
        self._handle = scratch(1 + layout.BUDGET_WORDS - layout.B_NAME)
        raw = _encoded(name)
        if parent is not None and not isinstance(parent, Budget):
            raise TypeError(f"parent must be a Budget, not {type(parent).__name__}")
        if parent is not None and parent._arena is not arena:
            raise ValueError("the parent is a budget of another arena")
        self._arena: Arena = arena
        self._parent: Budget | None = parent
        self._blocks = arena._blocks
        self._owed = 0.0  # seconds of sleep
        self.name = name
        self.path: str = name if parent is None else f"{parent.path}/{name}"
        bounds = _bound(limit, "limit"), _bound(high, "high")
        self._blocks.has_high |= high is not None
        words = arena.words
        self._blocks.keep(self, self._handle)
        padded = raw.ljust(layout.BUDGET_NAME_BYTES, b"\0")
        self._handle[1:] = np.frombuffer(padded, np.int64)
        above = 0 if parent is None else parent._at
        status = arena._pressed(lambda: budget_create(words, above, *bounds, self._handle), 0)
        if status == layout.EEXIST:
            raise ValueError(f"a budget {self.path!r} exists")
        if status == layout.EDQUOT:
            raise ValueError(f"budget {self.path.rpartition('/')[0]!r} is closed")
        if status < 0:
            raise arena._out_of_memory(f"the descriptor of budget {self.path!r}", GFP_DIRECT_RECLAIM)

    @property
    def _at(self) -> int:
        return int(self._handle[0])

    @property
    def arena(self) -> Arena:
        """The arena whose memory it counts."""
        return self._arena

    @property
    def parent(self) -> Budget | None:
        """The budget that this one counts in, None for one right below the arena."""
        return self._parent

    @property
    def used(self) -> int:
        """Bytes charged, here and below."""
        return int(self._arena.words[self._at + layout.B_USED])

    @property
    def closed(self) -> bool:
        """Whether it takes no charges any more."""
        return self._arena.closed or bool(self._arena.words[self._at + layout.B_STATE] != layout.BUDGET_OPEN)

    def budget(self, name: str, limit: int | str | None = None, high: int | str | None = None) -> Budget:
        """Make a budget below this one; see :meth:`realalloc.Arena.budget`."""
        return self._arena.budget(name, limit, high, parent=self)

    def _check_open(self) -> None:
        self._arena._check_open()
        if self.closed:
            raise ValueError(f"budget {self.path!r} is closed")

    def __enter__(self) -> Self:
        """Charge what this thread or task allocates from now on; ValueError if it is closed."""
        self._check_open()
        self._blocks.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Charge as before; RuntimeError if another block was entered since and not left, unless a Ctrl-C may have kept it
        from being left.
        """
        self._blocks.leave(self, error)

    # -- bounds ----------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int | str | None) -> None:
        """Move the bound on its bytes, None for none; ValueError, with nothing changed, if more than that is used."""
        self._check_open()
        words, nbytes = self._arena.words, _bound(limit, "limit")
        if budget_bound(words, self._at, layout.B_LIMIT, nbytes) == layout.OK:
            return
        reclaim(words)
        if budget_bound(words, self._at, layout.B_LIMIT, nbytes) != layout.OK:
            used = format_bytes(self.used)
            raise ValueError(f"limit {limit} is below what budget {self.path!r} uses: {used}; free some first")

    def set_high(self, high: int | str | None) -> None:
        """Move the mark above which allocations reclaim and slow down, None for none."""
        self._check_open()
        nbytes = _bound(high, "high")
        self._blocks.has_high |= high is not None
        budget_bound(self._arena.words, self._at, layout.B_HIGH, nbytes)

    # -- what allocations ask ----------------------------------------------------------------------------------------------

    def _tag(self, verb: int) -> int:
        return tag_of(verb, self._at)

    def _attach(self, at: int) -> None:
        """Have the cache or pool whose word ``at`` is charge this budget."""
        if attach(self._arena.words, at, self._at) != layout.OK:
            raise ValueError(f"budget {self.path!r} is closed")

    def _could_fit(self, nbytes: int) -> bool:
        """Tell whether empty budgets could take a charge: nobody gives anything up for one that they could not."""
        words, b = self._arena.words, self._at
        while b != 0:
            if words[b + layout.B_STATE] != layout.BUDGET_OPEN or nbytes > words[b + layout.B_LIMIT]:
                return False
            b = int(words[b + layout.B_PARENT])
        return True

    def _refusal(self, nbytes: int, *, sure: bool = False) -> str | None:
        """Say why a charge of ``nbytes`` is refused: which budget is full, and who holds it. None if it would not be, and
        nobody is ``sure`` that it was.
        """
        words = self._arena.words
        b = int(budget_refuser(words, self._at, nbytes))
        if b == 0:
            return f"budget {self.path!r}, or one above it, was full a moment ago; try again" if sure else None
        s = read_budget(words, b)
        if s.closed:
            return f"budget {s.path!r} is closed and takes no charges"
        limit = format_bytes(s.limit or 0)
        return (
            f"budget {s.path!r} is full: {format_bytes(s.used)} of {limit} used, {format_bytes(nbytes)} wanted; "
            f"largest holders: {largest_holders(words, b)}; free some, or raise its limit with set_limit()"
        )

    def _slow_down(self, gfp: int, nbytes: int) -> None:
        """Above a high mark: give back what can be given back, and sleep, the longer the farther above (kernel:
        mem_cgroup_handle_over_high). Not for requests that may not wait.
        """
        if not self._blocks.has_high or not gfp & GFP_DIRECT_RECLAIM:
            return
        words = self._arena.words
        over = int(budget_overage(words, self._at))
        if over == 0:
            return
        share = over / (1 << OVERAGE_SHIFT)
        self._owed += min(share * share * PENALTY * nbytes / BATCH_BYTES, LONGEST_SLEEP_S)
        if self._owed < SHORTEST_SLEEP_S:
            return
        due, self._owed = min(self._owed, LONGEST_SLEEP_S), 0.0
        reclaim(words)
        self._arena._shrinkers.relieve(words, self._is_low, gfp | GFP_NORETRY)
        if budget_overage(words, self._at) == 0:
            return
        budget_throttled(words, self._at)
        del words  # nobody's mapping is kept over a sleep
        time.sleep(due)

    def _is_low(self) -> bool | None:
        return True if budget_overage(self._arena.words, self._at) == 0 else None

    # -- looking and ending --------------------------------------------------------------------------------------------------

    def stats(self) -> BudgetStats:
        """Return what is charged, here and in the budgets below."""
        words = self._arena.words
        self._blocks.sweep(words)
        return read_budget(words, self._at)

    def close(self) -> None:
        """Take no charges any more; what is charged stays counted, also in the parents, until it goes back. Idempotent.

        BufferError, with nothing changed, while a budget below it is open. Open blocks, caches and pools of it get an
        OutOfMemory for what they ask from now on.
        """
        if self.closed:
            return
        self._blocks.sweep(self._arena.words)
        if budget_close(self._arena.words, self._at) != layout.OK:
            names = ", ".join(repr(s.path) for s in self.stats().children if not s.closed)
            raise BufferError(f"budget {self.path!r} has open budgets below it: {names}; close them first")

    def __reduce__(self) -> Any:
        """Refuse: a copy would count the same memory."""
        raise TypeError("a Budget can be neither copied nor pickled")

    def __repr__(self) -> str:
        """Show use and limit."""
        if self.closed:
            return f"<Budget {self.path!r} closed>"
        s = self.stats()
        limit = "" if s.limit is None else f" of {format_bytes(s.limit)}"
        return f"<Budget {s.path!r} {format_bytes(s.used)}{limit}>"
