"""One line of progress on a terminal while kernels are compiled: the first arena of a machine takes some seconds."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from realalloc.mm.jit import JIT, Entry
from realalloc.mm.jitcache import CACHE_DIR, prune_caches


@contextlib.contextmanager
def compile_progress() -> Iterator[None]:
    """Show which kernel is being compiled; nothing where there is no terminal or all is cached."""
    if not JIT or Entry.on_compile is not None:
        yield
        return
    shown = 0

    def show(name: str) -> None:
        nonlocal shown
        shown += 1
        if sys.stderr is not None and sys.stderr.isatty():
            text = f"realalloc: first use, compiling ({shown}) {name} into {CACHE_DIR.parent}"
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    Entry.on_compile = show
    try:
        yield
    finally:
        Entry.on_compile = None
        if shown:
            prune_caches()
            if sys.stderr is not None and sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
