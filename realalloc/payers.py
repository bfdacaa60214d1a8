"""Which budget pays: the open ``with`` blocks of an arena's budgets, in each thread and each asyncio task.

The innermost block is a context variable: each thread and each task has its own, and a task begins with its maker's.
``arena.kmalloc`` is machine code behind a gate that is shut while any block of this arena's budgets is open in any context;
it then takes the slow path, which looks here.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from realalloc.mm.budget import budget_drop
from realalloc.mm.jit import Words

if TYPE_CHECKING:
    from realalloc.budget import Budget

FEW_BLOCKS: Final = 64


class _Entered:
    """An open block: which budget, and the block around it. It lives as long as a context that it is open in."""

    __slots__ = ("__weakref__", "budget", "outer")

    def __init__(self, budget: Budget, outer: _Entered | None) -> None:
        self.budget = budget
        self.outer = outer


_innermost: ContextVar[_Entered | None] = ContextVar("realalloc_budget_blocks", default=None)
_registries: weakref.WeakSet[Blocks] = weakref.WeakSet()


class Blocks:
    """The open blocks of one arena's budgets, and the gate of its ``kmalloc``: shut while there are any.

    ``gate`` is the base of the arena while it is open and no block is, else 0. Copied from the arena's own gate in one step of
    the interpreter: whoever closes the arena meanwhile finds it shut for good.
    """

    def __init__(self, source: Any, gate: Any) -> None:
        """Begin with no block. ``source`` is the arena's gate, ``gate`` that of kmalloc; both are arrays of one word."""
        self._source = source
        self._gate = gate
        # References without callbacks: in those, and in a __del__, the handler of a Ctrl-C would raise into nowhere.
        self._open: dict[weakref.ref[_Entered], None] = {}
        self._room = FEW_BLOCKS
        self.has_high = False  # whether a budget of this arena ever had a high mark
        self._handles: dict[weakref.ref[Budget], Any] = {}
        self._turn = threading.RLock()
        _registries.add(self)

    def enter(self, budget: Budget) -> None:
        """Open a block in this context."""
        entered = _Entered(budget, _innermost.get())
        with self._turn:
            if len(self._open) >= self._room:  # most are of contexts that are gone
                self._open = {reference: None for reference in list(self._open) if reference() is not None}
                self._room = max(FEW_BLOCKS, 2 * len(self._open))
            self._open[weakref.ref(entered)] = None
            self._gate[0] = 0
        try:
            _innermost.set(entered)
        except BaseException:  # a Ctrl-C right after it: nobody would leave the block
            _innermost.set(entered.outer)
            raise

    def leave(self, budget: Budget, error: BaseException | None) -> None:
        """Close this context's innermost block; RuntimeError if it is another budget's, unless an ``error`` leaves several."""
        top = _innermost.get()
        while error is not None and top is not None and top.budget is not budget:
            top = top.outer
        if top is None or top.budget is not budget:
            raise RuntimeError(f"this is not the innermost block of a budget that was entered here: {budget.path!r}")
        _innermost.set(top.outer)

    def _any_open(self) -> bool:
        """Tell whether a block is open in any context, and forget those that are not."""
        while self._open:
            reference = next(iter(self._open))
            if reference() is not None:
                return True
            self._open.pop(reference, None)
        return False

    def current(self) -> Budget | None:
        """Return the budget of this context's innermost block of this arena; opens the gate again where no block is left."""
        entered = _innermost.get()
        while entered is not None:
            if entered.budget._blocks is self:
                return entered.budget
            entered = entered.outer
        if self._gate[0] == 0:
            self.reopen()
        return None

    def reopen(self) -> None:
        """Open the gate, if the arena is open and no block is."""
        with self._turn:
            if not self._any_open():
                memoryview(self._gate).cast("B")[:] = memoryview(self._source).cast("B")  # one step, read and write
            if self._any_open():  # a finalizer or signal handler came between
                self._gate[0] = 0

    def keep(self, budget: Budget, handle: Any) -> None:
        """Note the handle of a budget that is being made, and let go of those of budgets that are no more."""
        self.sweep(budget._arena.words)
        self._handles[weakref.ref(budget)] = handle

    def sweep(self, words: Words) -> None:
        """Close budgets that nobody can charge any more. Interrupted, it is done the next time."""
        for reference in list(self._handles):
            handle = self._handles.get(reference)
            if reference() is None and handle is not None:
                budget_drop(words, handle)
                self._handles.pop(reference, None)

    def after_fork(self) -> None:
        """In a child: what other threads held is free."""
        self._turn = threading.RLock()


def _after_fork_in_child() -> None:
    for registry in list(_registries):
        registry.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
