"""What pools have in common whose elements the arena knows by numbers only: made and freed by a user's functions.

The arena keeps reserve, queue and counters; a subclass makes elements (``_fill``) and gives up those that are surplus
(``_drop``), never with a lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from realalloc.errors import OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_KERNEL
from realalloc.mm import layout
from realalloc.mm.mempool_life import pool_create, pool_destroy, pool_resize
from realalloc.sizes import as_int
from realalloc.waiting import WaitingPool

if TYPE_CHECKING:
    from realalloc.arena import Arena

E = TypeVar("E")


class NumberPool(WaitingPool[E]):
    """A pool of numbered elements."""

    _serves_first: ClassVar[bool] = True
    _order: int
    _low: int
    _high: int
    _descriptor: int  # outlives a destruction by force until the last element is back

    def _create(
        self, arena: Arena, min_nr: int, backing: int, argument: int, order: int, watermarks: tuple[int, int]
    ) -> Any:
        """Make the descriptor, with an empty reserve; return the arena's words. OutOfMemory."""
        self._arena = arena
        self._order = order
        self._low, self._high = watermarks
        self._wakers = {}
        words = arena.words
        if min_nr * layout.WORD_BYTES > arena.size:
            raise arena._out_of_memory(f"a reserve of {min_nr} elements", GFP_KERNEL)
        p = arena._pressed(
            lambda: pool_create(words, min_nr, backing, argument, layout.WORD_BYTES, order, 0),
            min_nr * layout.WORD_BYTES,
        )
        if p < 0:
            raise arena._out_of_memory(f"the descriptor of a pool of {min_nr} elements", GFP_KERNEL)
        self._at = self._descriptor = p
        self.alloc: Callable[..., E] = self._alloc
        return words

    def _first_fill(self) -> None:
        """Fill the reserve; OutOfMemory, with everything given back, if ``alloc_fn`` fails."""
        try:
            filled = self._fill(self._capacity(self._words()), GFP_KERNEL)
        except BaseException:
            self.destroy()
            raise
        if not filled:
            count = self.min_nr
            self.destroy()
            raise OutOfMemory(f"mempool({count}): alloc_fn failed while the reserve was filled")

    def _fill(self, target: int, gfp: int) -> bool:
        """Bring the reserve up to ``target``; False if ``alloc_fn`` failed."""
        raise NotImplementedError

    def _drop(self, numbers: list[int]) -> None:
        """Give elements up that left the reserve."""
        raise NotImplementedError

    @staticmethod
    def _numbers_of(surplus: Any) -> list[int]:
        return [int(number) for number in surplus[1 : 1 + int(surplus[0])]]

    def _capacity(self, words: Any) -> int:
        return int(words[self.at + layout.P_CAPACITY])

    def _owed(self, words: Any) -> int:
        """Return how many elements the reserve may be given."""
        room = self._capacity(words) - int(words[self.at + layout.P_CURR_NR])
        return min(room, int(words[self.at + layout.P_MISSING])) if self._order == layout.ORDER_RESERVE_ONLY else room

    @staticmethod
    def _each(function: Callable[[Any], object], elements: Iterable[Any]) -> None:
        """Call for all, whatever some raise; then raise that."""
        errors = []
        for element in elements:
            try:
                function(element)
            except Exception as error:  # noqa: BLE001  # reported below
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("free_fn failed", errors)

    def resize(self, min_nr: int) -> None:
        """Change ``min_nr``; surplus elements go to ``free_fn``, missing ones are made now or returned later.

        BufferError while waiters want, or were just granted, more elements than that.
        """
        count = as_int(min_nr, "min_nr")
        words = self._words()
        if count * layout.WORD_BYTES > self._arena.size:
            raise self._arena._out_of_memory(f"a reserve of {count} elements", GFP_KERNEL)
        surplus = np.zeros(self._capacity(words) + 1, np.int64)
        status = self._arena._pressed(lambda: pool_resize(words, self.at, count, surplus), count * layout.WORD_BYTES)
        if status == layout.EBUSY:
            raise BufferError(f"{self!r}: somebody waits for more than {count} elements at once")
        if status != layout.OK:
            raise self._arena._out_of_memory(f"resize of a pool to {count} elements", GFP_KERNEL)
        self._drop(self._numbers_of(surplus))
        missing = int(words[self.at + layout.P_MISSING])
        self._fill(int(words[self.at + layout.P_CURR_NR]) + missing, GFP_KERNEL & ~GFP_DIRECT_RECLAIM)

    def refill(self, target: int | None = None) -> int:
        """Bring the reserve up to ``target`` elements (``min_nr``), even while elements are out; return ``curr_nr``."""
        limit = max(1, self.min_nr)
        self._fill(limit if target is None else as_int(target, "target", 0, limit), GFP_KERNEL)
        return self.curr_nr

    def destroy(self, force: bool = False) -> None:
        """Give the reserve to ``free_fn``; BufferError, with nothing changed, while elements are out or somebody waits.

        With ``force`` waiters get a ValueError, and elements that are out go to ``free_fn`` when they are freed.
        """
        words = self._words()
        p = self.at
        surplus = np.zeros(self._capacity(words) + 1, np.int64)
        if force:
            self._at = None
        if pool_destroy(words, p, int(force), surplus) != layout.OK:
            stats = self.stats()
            raise BufferError(f"the pool still has {stats.outstanding} elements out and {stats.waiters} waiters")
        self._at = None
        self._drop(self._numbers_of(surplus))

    def __repr__(self) -> str:
        """Show use and limit."""
        if self._at is None or self._arena.closed:
            return f"<{type(self).__name__} gone>"
        stats = self.stats()
        return (
            f"<{type(self).__name__} {stats.curr_nr}/{stats.min_nr} in reserve, {stats.outstanding} out, "
            f"{stats.waiters} waiting>"
        )
