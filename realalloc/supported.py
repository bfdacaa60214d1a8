"""Where it runs; anything else is refused, never tried."""

from __future__ import annotations

import ctypes
import sys


def refuse_unsupported() -> None:
    """RuntimeError, in one sentence, anywhere but on Linux and CPython with the GIL, in the main interpreter."""
    reason = None
    if sys.platform != "linux":
        reason = f"Linux, not {sys.platform}"
    elif sys.implementation.name != "cpython":
        reason = f"CPython, not {sys.implementation.name}"
    elif not getattr(sys, "_is_gil_enabled", lambda: True)():
        reason = "a CPython with the GIL; free-threaded builds are not supported"
    elif ctypes.pythonapi.PyInterpreterState_GetID(ctypes.c_void_p(_interpreter())) != 0:
        reason = "the main interpreter; subinterpreters are not supported"
    if reason is not None:
        raise RuntimeError(f"realalloc needs {reason}")


def _interpreter() -> int:
    ctypes.pythonapi.PyInterpreterState_Get.restype = ctypes.c_void_p
    return ctypes.pythonapi.PyInterpreterState_Get() or 0
