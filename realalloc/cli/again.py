"""jemalloc can only be loaded into a process that was started with room for it: a command that measures starts itself again.

Guarantee: at most once, and only if there is a jemalloc and no such room; everything else of the process stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import sys

TUNABLES = "GLIBC_TUNABLES"
STATIC_TLS = "glibc.rtld.optional_static_tls=32768"
AGAIN = "REALALLOC_BENCH_STARTED_AGAIN"


def start_again() -> None:
    """Replace this process by one that has room for jemalloc, if there is a jemalloc; once."""
    environ = os.environ
    if (
        AGAIN in environ
        or "optional_static_tls" in environ.get(TUNABLES, "")
        or not ctypes.util.find_library("jemalloc")
    ):
        return
    settings = [setting for setting in environ.get(TUNABLES, "").split(":") if setting]
    environ[TUNABLES] = ":".join([*settings, STATIC_TLS])
    environ[AGAIN] = "1"
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # then without jemalloc
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the very command that is running
