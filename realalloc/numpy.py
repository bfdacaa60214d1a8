"""NumPy in an arena for the whole process: ``install()`` and ``uninstall()``.

NumPy keeps its handler in a context variable, which every thread and task has its own value of. What all of them share is the
variable's default value: ``install`` exchanges it, so that threads and contexts that never named a handler, present and
future ones, get this one. A handler that a context has set (``PyDataMem_SetHandler``, ``with arena.numpy()``) stays in force
there, but for the context that calls ``install``, where it is replaced, and put back by ``uninstall``.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from typing import Any, NamedTuple

from realalloc.arena import Arena, default_arena
from realalloc.context import HandlerStats, NumPyContext, hook
from realalloc.lease.datarecord import MIN_ALIGN

__all__ = ["HandlerStats", "NumPyContext", "install", "installed", "uninstall"]

NAME_AT, DEFAULT_AT = 16, 24  # of a PyContextVar: behind the object header, var_name and var_default
_lock = threading.Lock()


class _Installed(NamedTuple):
    context: NumPyContext
    capsule: Any
    explicit: Any  # the handler that the installing context had set, None if it had not


_now: list[_Installed] = []


def _exchange_default(expected: Any, wanted: Any) -> None:
    """Exchange the default value of NumPy's context variable; RuntimeError, with nothing changed, if it is not there."""
    variable = hook().variable
    address = id(variable)
    name = ctypes.c_void_p.from_address(address + NAME_AT)
    default = ctypes.c_void_p.from_address(address + DEFAULT_AT)
    if name.value != id(variable.name) or default.value != id(expected):
        raise RuntimeError("this interpreter keeps context variables in another way; use `with arena.numpy():`")
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(wanted))
    default.value = id(wanted)
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(expected))  # the caller still has it


def install(arena: Arena | None = None, *, align: int = MIN_ALIGN, fallback: bool = False) -> NumPyContext:
    """Let NumPy allocate from an arena (the default one if None) in the whole process, until :func:`uninstall`.

    ``align`` and ``fallback`` are those of :meth:`Arena.numpy`. Returns what has the statistics. Raises RuntimeError if it is
    installed already, ArenaClosed, ValueError for a bad alignment.
    """
    with _lock:
        if _now:
            raise RuntimeError("realalloc.numpy is installed already: uninstall() first")
        context = (default_arena() if arena is None else arena).numpy(align=align, fallback=fallback)
        capsule = context.capsule()
        variable = hook().variable
        explicit = contextvars.copy_context().get(variable)
        _exchange_default(hook().default, capsule)
        if explicit is not None:
            variable.set(capsule)
        _now.append(_Installed(context, capsule, explicit))
        return context


def uninstall() -> None:
    """Give NumPy its default handler back; arrays live on. RuntimeError if nothing is installed.

    The handler that the installing context had before is put back, unless somebody has set another one there since.
    """
    with _lock:
        if not _now:
            raise RuntimeError("realalloc.numpy is not installed")
        was = _now[0]
        _exchange_default(was.capsule, hook().default)
        _now.clear()
        variable = hook().variable
        if contextvars.copy_context().get(variable) is was.capsule:
            variable.set(hook().default if was.explicit is None else was.explicit)


def installed() -> NumPyContext | None:
    """Return what :func:`install` returned, None if nothing is installed."""
    return _now[0].context if _now else None
