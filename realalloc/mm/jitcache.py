"""The disk cache of machine code: where it lies, and what names it.

Guarantees: machine code on disk is used only by the very sources and flags it was made from. numba's own cache looks at
the caller's file alone, so an edited ``layout.py`` would leave stale constants in its callers; here the cache directory
is named by a hash of the whole room.

May not: know what any kernel does.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np

JIT = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
KEPT_CACHES = 8


def _flags() -> str:
    names = ("BOUNDSCHECK", "OPT", "SLP_VECTORIZE", "LOOP_VECTORIZE", "DEBUGINFO", "CPU_NAME", "CPU_FEATURES")
    return ";".join(f"{name}={getattr(numba.config, name, None)}" for name in names)


def fingerprint() -> str:
    """Name the code that a cached kernel was made from: sources, compiler versions, flags, machine."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.glob("*.py")), *sorted((package.parent / "lease").glob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for part in (numba.__version__, llvmlite.__version__, np.__version__, sys.version, platform.machine(), _flags()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _cache_root() -> Path:
    """First writable of $REALALLOC_CACHE_DIR, the user's cache directory, the temporary directory."""
    named = os.environ.get("REALALLOC_CACHE_DIR")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    mine = Path(tempfile.gettempdir()) / f"realalloc-{os.getuid()}"
    for root in [Path(named)] if named else [user / "realalloc", mine]:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(root, os.W_OK) and root.stat().st_uid == os.getuid():
            return root
    return Path(tempfile.mkdtemp(prefix="realalloc-"))


CACHE_DIR = _cache_root() / fingerprint() if JIT else Path(os.devnull)


def in_cache(make: Callable[[], Any]) -> Any:
    """Run ``make``, a numba decoration, so that its code is cached under :data:`CACHE_DIR`."""
    saved = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = str(CACHE_DIR)  # type: ignore[attr-defined]
    try:  # numba's cache locator reads CACHE_DIR here, while it decorates, and never again
        return make()
    finally:
        numba.config.CACHE_DIR = saved  # type: ignore[attr-defined]


@functools.cache
def cached_names() -> frozenset[str]:
    """Name the entries that were on disk when this process began, as ``file.function``."""
    return frozenset(path.name.partition("-")[0] for path in CACHE_DIR.rglob("*.nbi"))


def prune_caches() -> None:
    """Forget the caches of older sources, all but the newest few."""
    if not JIT:
        return
    others = [path for path in CACHE_DIR.parent.iterdir() if path.is_dir() and len(path.name) == len(CACHE_DIR.name)]
    for path in sorted(others, key=lambda item: item.stat().st_mtime)[:-KEPT_CACHES]:
        for file in sorted(path.rglob("*"), reverse=True):
            if file.is_dir():
                file.rmdir()
            else:
                file.unlink(missing_ok=True)
        path.rmdir()
