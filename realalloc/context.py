"""NumPy's current handler: where it is kept, how a block of code gets another one, what a handler has counted.

NumPy keeps the handler in a context variable. A ``with`` block sets that variable and resets it by token, so blocks nest,
each thread and each asyncio task has its own, and a task begins with the handler of who made it.
Guarantee: an array keeps the handler it was made with; a block that ends changes nothing for the arrays made in it.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from realalloc.budget import Budget, check_budget
from realalloc.errors import ArenaClosed
from realalloc.lease import datamem, datarecord, factory
from realalloc.sizes import as_alignment

if TYPE_CHECKING:
    from realalloc.arena import Arena

SET_HANDLER, DEFAULT_HANDLER = 304, 306  # indices of NumPy's C API
FIRST_FUNCTION = datarecord.R_CTX // 8


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """What a handler did since it was made. ``bytes``: asked for in all; the others are counts.

    ``live`` = ``allocations - frees``: arrays that own memory. ``in_place``: reallocations that copied nothing; ``fallbacks``:
    requests that went to NumPy's default handler; ``refused``: requests that became a MemoryError.
    """

    allocations: int
    zeroed: int
    reallocations: int
    in_place: int
    frees: int
    live: int
    refused: int
    fallbacks: int
    bytes: int

    def as_dict(self) -> dict[str, int]:
        """Return the fields as a dictionary."""
        return asdict(self)


class NumPyHook(NamedTuple):
    """NumPy's side: the variable that has the current handler, the default one, and its ctx and functions."""

    variable: contextvars.ContextVar[Any]
    default: Any
    functions: tuple[int, ...]


@functools.cache
def hook() -> NumPyHook:
    """Find NumPy's allocator hook; RuntimeError where this NumPy has none (before 1.22)."""
    multiarray: Any = getattr(getattr(np, "_core", None), "multiarray", None)
    if not hasattr(multiarray, "get_handler_name"):
        raise RuntimeError(f"NumPy {np.__version__} has no allocator hook (NEP 49): NumPy 2.0 or later is needed")
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    api = ctypes.cast(pointer(multiarray._ARRAY_API, None) or 0, ctypes.POINTER(ctypes.c_void_p))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(api[SET_HANDLER] or 0)
    default: Any = ctypes.cast(api[DEFAULT_HANDLER] or 0, ctypes.POINTER(ctypes.py_object)).contents.value

    def find() -> contextvars.ContextVar[Any]:
        set_handler(default)  # in a context of its own: nobody sees it
        return next(variable for variable, value in contextvars.copy_context().items() if value is default)

    words = ctypes.cast(pointer(default, b"mem_handler") or 0, ctypes.POINTER(ctypes.c_int64))
    functions = tuple(words[FIRST_FUNCTION + k] for k in range(5))
    return NumPyHook(contextvars.Context().run(find), default, functions)


class _Entered(NamedTuple):
    """One entered block of the current context, and those around it."""

    owner: NumPyContext
    tokens: list[contextvars.Token[Any]]  # one, once NumPy's variable is set
    outer: _Entered | None


_entered: contextvars.ContextVar[_Entered | None] = contextvars.ContextVar("realalloc_numpy_blocks", default=None)


class NumPyContext:
    """What :meth:`Arena.numpy` returns: a ``with`` block in which NumPy's arrays live in the arena.

    It may be entered often, also by several threads and tasks at once; :meth:`stats` counts for all of them.
    """

    def __init__(
        self, arena: Arena, *, align: int = datarecord.MIN_ALIGN, fallback: bool = False, budget: Budget | None = None
    ) -> None:
        """Make the handler's record. ``align``: a power of two from 16 to 2 MiB, for every array; ``budget`` pays for them.

        Raises ValueError or TypeError for other alignments, ArenaClosed, and RuntimeError where there is no machine code
        (``NUMBA_DISABLE_JIT``) or NumPy has no hook.
        """
        number = as_alignment(align, "align")
        if not datarecord.MIN_ALIGN <= number <= datarecord.MAX_ALIGN:
            raise ValueError(f"align must be {datarecord.MIN_ALIGN} to {datarecord.MAX_ALIGN}, not {number}")
        arena._check_open()
        check_budget(arena, budget)
        functions = datamem.compiled()[:4] if budget is None else datamem.compiled_charged()
        self.arena = arena
        self.align = number
        self.fallback = bool(fallback)
        self.budget = budget
        paid = 0 if budget is None else budget._at
        self._record = datarecord.Record(
            arena.address, number, hook().functions, functions, fallback=self.fallback, budget=paid
        )

    def capsule(self) -> Any:
        """Return a new capsule as NumPy wants it (``PyDataMem_SetHandler``); it holds a lease of the arena."""
        made = datamem.make_capsule(self._record, factory(), self.budget) if not self.arena.closed else None
        if made is None:
            raise ArenaClosed("the arena is closed")
        return made

    def __enter__(self) -> Self:
        """Let NumPy allocate from the arena, in this thread or task; ArenaClosed if it is closed."""
        variable, outer = hook().variable, _entered.get()
        tokens: list[contextvars.Token[Any]] = []
        try:
            tokens.extend(map(variable.set, (self.capsule(),)))  # one step: a Ctrl-C finds the token, or nothing set
            _entered.set(_Entered(self, tokens, outer))
        except BaseException:
            if tokens:
                variable.reset(tokens[0])
            _entered.set(outer)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let NumPy allocate as before; RuntimeError if another block was entered since and not left, unless an exception
        leaves several: a Ctrl-C that comes before the first instruction here leaves a block open.
        """
        top = _entered.get()
        while kind is not None and top is not None and top.owner is not self:
            top = top.outer
        if top is None or top.owner is not self:
            raise RuntimeError("this is not the innermost block of arena.numpy() that was entered here")
        try:
            hook().variable.reset(top.tokens[0])
        finally:
            _entered.set(top.outer)

    def stats(self) -> HandlerStats:
        """Return what the handler has done so far, also after the arena was closed."""
        at = self._record
        return HandlerStats(
            allocations=at[datarecord.R_ALLOCS],
            zeroed=at[datarecord.R_ZEROED],
            reallocations=at[datarecord.R_REALLOCS],
            in_place=at[datarecord.R_IN_PLACE],
            frees=at[datarecord.R_FREES],
            live=at[datarecord.R_ALLOCS] - at[datarecord.R_FREES],
            refused=at[datarecord.R_REFUSED],
            fallbacks=at[datarecord.R_FALLBACKS],
            bytes=at[datarecord.R_BYTES],
        )

    def __repr__(self) -> str:
        """Say which arena, and the options."""
        return f"<NumPyContext of {self.arena!r} align={self.align} fallback={self.fallback}>"
