"""The decorators of the lab's stress kernels: machine code without the GIL, or the plain function where there is no jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from realalloc.mm.jit import JIT

F = TypeVar("F", bound=Callable[..., Any])


def compiled(func: F) -> F:
    """Compile a part of a loop: it is inlined where it is called, and can be called from Python too."""
    return cast("F", numba.njit(nogil=True, error_model="numpy", forceinline=True)(func)) if JIT else func


def loop(func: F) -> F:
    """Compile a loop that threads run without the GIL."""
    return cast("F", numba.njit(nogil=True, error_model="numpy")(func)) if JIT else func
