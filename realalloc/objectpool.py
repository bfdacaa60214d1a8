"""A mempool over a user's own ``alloc_fn(pool_data, gfp)`` and ``free_fn(element)``, for any Python object.

The contract of :mod:`realalloc.mempool`, and its machinery: the arena keeps reserve, queue and counters of a pool whose
elements are numbers; this file keeps the object of each number. Neither function is ever called with a lock held. An
``alloc_fn`` that raises or returns None has failed, and the reserve is used; a ``free_fn`` that raises has freed: its error
passes through, and the books are right already.

Invariant: objects = those in the reserve + those out; numbers are never used twice. Machine code names what it took or put
in a :class:`Seat` while ``finally`` already stands, and then no call comes before the books agree, so that no Ctrl-C, which
is looked at after calls alone, loses an element between the two.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from realalloc.elements import Holder, caller, summary
from realalloc.errors import CorruptionError, InvalidFree, OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_KERNEL
from realalloc.mm import layout
from realalloc.mm.jit import unbroken
from realalloc.mm.mempool_face import pool_admit, pool_injects, pool_object, pool_put, pool_take
from realalloc.mm.mempool_life import validate_pool
from realalloc.numberpool import NumberPool
from realalloc.soundness import check

if TYPE_CHECKING:
    from realalloc.arena import Arena


PUT_BACK = 1 + layout.OK  # what pool_put says where the reserve has it


class Seat:
    """A word that machine code writes and a ``finally`` reads; made once, used again."""

    __slots__ = ("array", "at", "word")

    def __init__(self) -> None:
        """Hold 0."""
        self.array = np.zeros(1, np.int64)
        self.word = self.array.data
        _, self.at = unbroken(pool_take, self.array)  # as machine code takes it


class ObjectPool(NumberPool[Any]):
    """A pool of objects made by ``alloc_fn``; make it with :meth:`realalloc.Arena.mempool`."""

    def __init__(
        self,
        arena: Arena,
        min_nr: int,
        alloc_fn: Callable[[Any, int], Any],
        free_fn: Callable[[Any], object],
        pool_data: Any,
        *,
        order: int,
        watermarks: tuple[int, int] = (0, 0),
        track: bool = False,
    ) -> None:
        """Fill the reserve; OutOfMemory, with everything given back, if ``alloc_fn`` fails."""
        self._alloc_fn = alloc_fn
        self._free_fn = free_fn
        self._data = pool_data
        self._track = track
        self._numbers = itertools.count(1)
        self._objects: dict[int, Any] = {}
        self._known: dict[int, int] = {}  # numbers by id of the object
        self._seats: list[Seat] = []
        self._out: dict[int, tuple[int, Any, tuple[str, float, str] | None]] = {}  # by id of the object
        words = self._create(arena, min_nr, layout.BACKING_OBJECT, 0, order, watermarks)
        self._take_number, self._raw = unbroken(pool_take, words)
        self._put_number, _ = unbroken(pool_put, words)
        self._admit_number, _ = unbroken(pool_admit, words)
        self._offer_number, _ = unbroken(pool_object, words)
        self._first_fill()

    # -- elements by their numbers ----------------------------------------------------------------------------------------

    def _make(self, gfp: int) -> Any:
        if pool_injects(self._words(), self.at):
            return None
        try:
            return self._alloc_fn(self._data, gfp)
        except Exception:  # noqa: BLE001  # a failed alloc_fn falls back to the reserve, whatever it raised
            return None

    def _fill(self, target: int, gfp: int) -> bool:
        """Bring the reserve up to ``target``; False if ``alloc_fn`` failed."""
        words = self._words()
        while int(words[self.at + layout.P_CURR_NR]) < target and self._owed(words) > 0:
            element = self._make(gfp)
            if element is None:
                return False
            if not self._offer(words, element):
                break
        return True

    def _number(self, element: Any) -> int:
        """Name a fresh element. ValueError if the pool has it already: two users would share it."""
        if id(element) in self._known:
            raise ValueError("alloc_fn returned an object that the pool has already")
        return next(self._numbers)

    def _forget(self, number: int) -> Any:
        element = self._objects[number]
        key = id(element)
        del self._objects[number]
        del self._known[key]
        return element

    def _offer(self, _words: Any, element: Any) -> bool:
        """Put a fresh element into the reserve; False if that is full or gone, and ``free_fn`` has it.

        ``_words`` keeps the range mapped; here and below.
        """
        number, key = self._number(element), id(element)
        seat = self._seats.pop() if self._seats else Seat()
        word = seat.word
        p = self._at  # None: it was destroyed while alloc_fn ran
        try:
            self._objects[number] = element
            self._known[key] = number
            if p is not None:
                self._offer_number(self._raw, p, number, seat.at)
        finally:
            kept = word[0] != 0
            word[0] = 0
            if not kept:
                del self._objects[number]
                del self._known[key]
                self._free_fn(element)
        self._seats.append(seat)
        return kept

    def _hand(self, _words: Any, how: int, argument: int) -> Any:
        """Hand out what the reserve or a grant has, noted as out; None if there is nothing."""
        seat = self._seats.pop() if self._seats else Seat()
        word = seat.word
        p = self.at
        try:
            self._take_number(self._raw, p, how, argument, seat.at)
            if word[0] <= 0:
                return None
            element = self._objects[word[0]]
            note = (caller(), time.monotonic(), threading.current_thread().name) if self._track else None
            key = id(element)
            self._out[key] = word[0], element, note
            word[0] = 0  # no call since it was noted: from here on it is the caller's
        finally:
            number = word[0]
            if number > 0:  # taken, but not noted
                try:
                    self._put_number(self._raw, p, number, seat.at)
                finally:
                    back = word[0] == PUT_BACK
                    word[0] = 0
                    if not back:
                        self._free_fn(self._forget(number))
        self._seats.append(seat)
        return element

    def _fresh(self, _words: Any, gfp: int) -> Any:
        """Hand out what ``alloc_fn`` makes, noted as out; None if that failed."""
        element = self._make(gfp)
        if element is None:
            return None
        number, key = self._number(element), id(element)
        note = (caller(), time.monotonic(), threading.current_thread().name) if self._track else None
        seat = self._seats.pop() if self._seats else Seat()
        word = seat.word
        p = self._at
        try:
            self._objects[number] = element
            self._known[key] = number
            if p is not None:
                self._admit_number(self._raw, p, number, seat.at)
        finally:
            admitted = word[0] > 0
            word[0] = 0
            if admitted:
                self._out[key] = number, element, note
            else:
                del self._objects[number]
                del self._known[key]
                self._free_fn(element)
        self._seats.append(seat)
        if not admitted:
            self._words()
            return None
        return element

    def _attempt(self, flags: int) -> Any:
        words = self._words()
        alloc_first = self._order == layout.ORDER_ALLOC_FIRST
        if alloc_first:
            element = self._fresh(words, flags & ~GFP_DIRECT_RECLAIM)
            if element is not None:
                return element
        element = self._hand(words, layout.TAKE_NOW, flags & layout.GFP_WAIT_BIT)
        if element is not None:
            return element
        if alloc_first or (flags & GFP_DIRECT_RECLAIM and words[self.at + layout.P_WAITERS]):
            return None  # it will queue behind the others
        if self._order != layout.ORDER_RESERVE_ONLY:
            return self._fresh(words, flags)
        if self._owed(words) <= 0 or not self._fill(self.curr_nr + 1, flags):
            return None
        return self._hand(words, layout.TAKE_NOW, flags & layout.GFP_WAIT_BIT)

    def _claim(self, request: int) -> Any:
        element = self._hand(self._words(), layout.TAKE_CLAIM, request)
        if element is None:
            self._words()
            raise CorruptionError(f"{self!r}: a granted element is not there")
        return element

    def _serve(self, words: Any, p: int, flags: int) -> None:
        if words[p + layout.P_WAITERS]:
            spare = int(words[p + layout.P_CURR_NR] - words[p + layout.P_GRANTED])
            need = max(1, self._head_need(words, p) - spare)
            for _ in range(min(self._owed(words), need)):
                element = self._make(flags)
                if element is None or not self._offer(words, element):
                    break

    @staticmethod
    def _head_need(words: Any, p: int) -> int:
        head = int(words[p + layout.P_HEAD])
        return int(words[head + layout.N_NEED]) if head else 0

    def _undo(self, made: list[Any]) -> None:
        while made:
            self.free(made.pop())

    def _take(self, gfp: int, timeout: float | None) -> Any:
        return self._alloc(gfp, timeout)

    def _give(self, element: Any) -> None:
        self.free(element)

    def _who(self) -> str:
        if self._track:
            return summary(self.holders())
        return f"; {len(self._out)} are out; track=True would tell who has them"

    # -- for users ---------------------------------------------------------------------------------------------------------

    def alloc_preallocated(self) -> Any:
        """Return an element of the reserve; OutOfMemory if it is empty."""
        words = self._words()
        element = self._hand(words, layout.TAKE_RESERVED, 0)
        if element is None:
            raise OutOfMemory(f"{self!r}: the reserve is empty{self._who()}")
        return element

    def free(self, element: Any) -> None:
        """Return an element: to the reserve first, else to ``free_fn``. InvalidFree if it is not out."""
        if element is None:
            return
        key = id(element)
        number, known, _ = self._out.get(key, (0, None, None))
        words = None if self._arena.closed else self._arena.words
        seat = self._seats.pop() if self._seats else Seat()
        word, mine = seat.word, False
        try:
            if known is element:
                del self._out[key]
                mine = True  # no call before it is in the reserve
                if words is not None:
                    self._put_number(self._raw, self._descriptor, number, seat.at)
        except KeyError:  # another thread freed it just now
            pass
        finally:
            back = word[0] == PUT_BACK
            word[0] = 0
            if mine and not back:
                del self._objects[number]
                del self._known[key]
                self._free_fn(element)
        self._seats.append(seat)
        if not mine:
            raise InvalidFree("pool.free: not an element of this pool that is out")
        if back and self._low and self.curr_nr < self._low:
            self._fill(self._high, GFP_KERNEL & ~GFP_DIRECT_RECLAIM)

    def free_bulk(self, elements: Iterable[Any]) -> None:
        """Return elements; all are checked before the first goes, and none may be named twice."""
        given = list(elements)
        if len({id(element) for element in given}) != len(given):
            raise InvalidFree("free_bulk: an element is named twice")
        if any(self._out.get(id(element), (0, None))[1] is not element for element in given):
            raise InvalidFree("free_bulk: not an element of this pool that is out")
        self._each(self.free, given)

    def holders(self) -> list[Holder]:
        """Return who has elements, the longest-held first; ValueError without ``track=True``."""
        if not self._track:
            raise ValueError("holders needs a pool with track=True")
        now = time.monotonic()
        notes = [note for _, _, note in list(self._out.values()) if note is not None]
        found = [Holder(where, now - since, thread) for where, since, thread in notes]
        return sorted(found, key=lambda holder: -holder.seconds)

    def _drop(self, numbers: list[int]) -> None:
        self._each(self._free_fn, [self._forget(number) for number in numbers])

    def validate(self) -> None:
        """Check the invariants of pool, queue and this file; CorruptionError names what is broken."""
        at = self.at
        check(self._words(), lambda words: validate_pool(words, at))
        if len(self._objects) < len(self._out):
            raise CorruptionError("mempool: an object that is out is not an element")
