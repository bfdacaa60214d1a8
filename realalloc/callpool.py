"""A mempool over a user's own ``alloc_fn`` and ``free_fn`` in machine code, for jitted code and for Python.

Elements are what ``alloc_fn`` returns: int64 numbers above 0, such as offsets, addresses or handles. They are taken and freed
by jitted code (:mod:`realalloc.jit`) and by Python alike, in any mixture. What comes back cannot be told from any other
number, as in the kernel: only that no more come back than went out is checked.
An element that a Ctrl-C meets between ``alloc`` and its caller stays out, as nobody knows it any more: use ``lease``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from realalloc.errors import CorruptionError, InvalidFree, OutOfMemory
from realalloc.mm import layout
from realalloc.mm.mempool import pool_alloc_reserved
from realalloc.mm.mempool_calls import MAX_ELEMENT, calls_alloc, calls_fill, calls_free, calls_serve
from realalloc.mm.mempool_life import validate_pool
from realalloc.mm.mempool_wait import pool_claim
from realalloc.mm.prim import call_free_fn
from realalloc.numberpool import NumberPool
from realalloc.sizes import as_int
from realalloc.soundness import check

if TYPE_CHECKING:
    from realalloc.arena import Arena


# Functions by address, for ever: jitted code may use a pool whose Python object is gone, and their code goes with them.
_kept: dict[int, Any] = {}


def is_machine_code(function: Any) -> bool:
    """Tell whether this is a C function of numba's (``@cfunc``)."""
    return hasattr(function, "address") and hasattr(function, "ctypes")


class CallPool(NumberPool[int]):
    """A pool of numbers made by machine code; make it with :meth:`realalloc.Arena.mempool`."""

    def __init__(
        self,
        arena: Arena,
        min_nr: int,
        alloc_fn: Any,
        free_fn: Any,
        pool_data: Any,
        *,
        order: int,
        watermarks: tuple[int, int] = (0, 0),
    ) -> None:
        """Fill the reserve; OutOfMemory, with everything given back, if ``alloc_fn`` fails."""
        _check("alloc_fn", alloc_fn, "int64(CPointer(int64), int64, int64)")
        _check("free_fn", free_fn, "void(CPointer(int64), int64)")
        data = as_int(0 if pool_data is None else pool_data, "pool_data", -(1 << 63), (1 << 63) - 1)
        _kept[alloc_fn.address], _kept[free_fn.address] = alloc_fn, free_fn
        words = self._create(arena, min_nr, layout.BACKING_CALLS, data, order, watermarks)
        self._free_fn = int(free_fn.address)
        words[self.at + layout.P_ALLOC_FN] = alloc_fn.address
        words[self.at + layout.P_FREE_FN] = free_fn.address
        words[self.at + layout.P_REFILL_LOW], words[self.at + layout.P_REFILL_HIGH] = watermarks
        self._first_fill()

    def _fill(self, target: int, gfp: int) -> bool:
        return int(calls_fill(self._words(), self.at, target, gfp)) == layout.OK

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            call_free_fn(self._free_fn, self._arena.address, number)

    def _attempt(self, flags: int) -> int | None:
        element = int(calls_alloc(self._words(), self.at, flags))
        return element if element > 0 else None

    def _claim(self, request: int) -> int:
        element = int(pool_claim(self._words(), self.at, request))
        if element <= 0:
            self._words()
            raise CorruptionError(f"{self!r}: a granted element is not there")
        return element

    def _serve(self, words: Any, p: int, flags: int) -> None:
        calls_serve(words, p, flags)

    def _undo(self, made: list[int]) -> None:
        while made:
            self.free(made.pop())

    def _take(self, gfp: int, timeout: float | None) -> int:
        return self._alloc(gfp, timeout)

    def _give(self, element: int) -> None:
        if not self._arena.closed:  # else it went with the arena
            self.free(element)

    def _who(self) -> str:
        return f"; {self.stats().outstanding} are out"

    def alloc_preallocated(self) -> int:
        """Return an element of the reserve; OutOfMemory if it is empty."""
        element = int(pool_alloc_reserved(self._words(), self.at))
        if element <= 0:
            raise OutOfMemory(f"{self!r}: the reserve is empty")
        return element

    def free(self, element: int | None) -> None:
        """Return an element: to the reserve first, else to ``free_fn``. InvalidFree if none is out, or it can be none;
        ArenaClosed once the elements went with their arena.
        """
        if element is None:
            return
        number = as_int(element, "element")
        if not 0 < number <= MAX_ELEMENT or calls_free(self._arena.words, self._descriptor, number) != layout.OK:
            raise InvalidFree(f"pool.free({number}): no element of this pool is out, or this can be none")

    def free_bulk(self, elements: Iterable[int]) -> None:
        """Return elements; none may be named twice."""
        given = [as_int(element, "element") for element in elements]
        if len(set(given)) != len(given):
            raise InvalidFree("free_bulk: an element is named twice")
        for element in given:
            self.free(element)

    def validate(self) -> None:
        """Check the invariants of pool and queue; CorruptionError names what is broken."""
        at = self.at
        check(self._words(), lambda words: validate_pool(words, at))


def _check(name: str, function: Any, wanted: str) -> None:
    """TypeError unless this is machine code of that type."""
    words, word = ctypes.POINTER(ctypes.c_int64), ctypes.c_int64
    result, kinds = (word, [word, word]) if name == "alloc_fn" else (None, [word])
    made = function.ctypes if is_machine_code(function) else None
    first, *rest = made.argtypes if made is not None and made.argtypes else (None,)
    if made is None or made.restype is not result or rest != kinds or first is None or first._type_ is not words._type_:
        raise TypeError(f"{name} must be a numba.cfunc of {wanted}, as both or none of the functions are machine code")
