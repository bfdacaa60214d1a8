"""Arrays in an arena, without a ``with`` block: the part of :class:`realalloc.Arena` that speaks NumPy.

Each method calls NumPy's function of the same name while NumPy allocates from this arena, so that what comes back is an
ordinary array that owns its data: it can be resized, pickled, viewed and handed on, and may outlive the arena object.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from realalloc.budget import Budget
from realalloc.context import NumPyContext
from realalloc.gfp import GFP_KERNEL
from realalloc.lease.datarecord import MIN_ALIGN

if TYPE_CHECKING:
    from realalloc.arena import Arena


def _bytes_of(refused: MemoryError) -> int:
    """Return how many bytes NumPy asked for, 0 if its error does not say."""
    shape, dtype = getattr(refused, "shape", None), getattr(refused, "dtype", None)
    return 0 if shape is None or dtype is None else math.prod(shape) * int(dtype.itemsize)


ALIGN = 64  # a cache line: what wide vector instructions like


class ArrayMethods:
    """``numpy``, ``empty``, ``zeros``, ``ones``, ``full``, ``empty_like``, ``array``, ``owns``."""

    __slots__ = ()

    def numpy(self, *, align: int = MIN_ALIGN, fallback: bool = False, budget: Budget | None = None) -> NumPyContext:
        """Return a ``with`` block in which every array that NumPy makes lives in this arena.

        ``align``: bytes, a power of two from 16 to 2 MiB; arrays of 4 KiB and more are aligned to 64 at least, whatever it is.
        ``fallback``: what the arena cannot serve comes from NumPy's default handler; without it NumPy raises its MemoryError.
        ``budget`` pays for the arrays; without it that of the block of a budget, if one is open here.
        The handler is the current thread's or task's (NEP 49); arrays keep it and may outlive the block, the arena object and
        :meth:`close`. Raises as :class:`realalloc.context.NumPyContext` says.
        """
        arena = cast("Arena", self)
        payer = arena._blocks.current() if budget is None else budget
        return NumPyContext(arena, align=align, fallback=fallback, budget=payer)

    def empty(
        self, shape: Any, dtype: npt.DTypeLike = float, order: Any = "C", *, align: int = ALIGN
    ) -> npt.NDArray[Any]:
        """Return a new array without setting its values; MemoryError if the arena has no room."""
        return self._pressed_array(align, lambda: np.empty(shape, dtype, order))

    def zeros(
        self, shape: Any, dtype: npt.DTypeLike = float, order: Any = "C", *, align: int = ALIGN
    ) -> npt.NDArray[Any]:
        """Return a new array of zeros; pages that are known to be zero are not touched."""
        return self._pressed_array(align, lambda: np.zeros(shape, dtype, order))

    def ones(
        self, shape: Any, dtype: npt.DTypeLike = float, order: Any = "C", *, align: int = ALIGN
    ) -> npt.NDArray[Any]:
        """Return a new array of ones."""
        return self._pressed_array(align, lambda: np.ones(shape, dtype, order))

    def full(
        self, shape: Any, fill_value: Any, dtype: npt.DTypeLike | None = None, order: Any = "C", *, align: int = ALIGN
    ) -> npt.NDArray[Any]:
        """Return a new array of ``fill_value``."""
        return self._pressed_array(align, lambda: np.full(shape, fill_value, dtype, order))

    def empty_like(
        self,
        prototype: Any,
        dtype: npt.DTypeLike | None = None,
        order: Any = "K",
        *,
        align: int = ALIGN,
        **options: Any,
    ) -> npt.NDArray[Any]:
        """Return a new array with shape and type of another; ``options`` are ``subok`` and ``shape``."""
        return self._pressed_array(align, lambda: np.empty_like(prototype, dtype, order, **options))

    def array(
        self, values: Any, dtype: npt.DTypeLike | None = None, *, align: int = ALIGN, **options: Any
    ) -> npt.NDArray[Any]:
        """Return a copy of ``values`` as an array in the arena; ``options`` are ``order``, ``subok`` and ``ndmin``."""
        return self._pressed_array(align, lambda: np.array(values, dtype, copy=True, **options))

    def _pressed_array(self, align: int, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Make an array in the arena; where NumPy finds no memory, shrinkers are asked, outside of its handler."""
        arena = cast("Arena", self)
        try:
            with self.numpy(align=align):
                return make()
        except MemoryError as error:
            if not arena._shrinkers:
                raise
            refused = error

        def attempt() -> npt.NDArray[Any] | None:
            with contextlib.suppress(MemoryError), self.numpy(align=align):
                return make()
            return None

        try:
            made = arena._shrinkers.relieve(arena.words, attempt, GFP_KERNEL, _bytes_of(refused))
            if made is not None:
                return made
            raise refused
        finally:
            del refused  # its traceback holds this frame

    def owns(self, array: Any) -> bool:
        """Tell whether an array's data lie in this arena, also those of a view; TypeError for what is no array."""
        if not isinstance(array, np.ndarray):
            raise TypeError(f"owns takes an array, not {type(array).__name__}")
        words = cast("Arena", self).words
        begin = int(words.__array_interface__["data"][0])
        return begin <= int(array.__array_interface__["data"][0]) < begin + words.nbytes
