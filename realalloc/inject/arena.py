"""The part of ``realalloc run``: NumPy gets the arena when the program imports it.

A program that never imports NumPy pays for nothing. Where the arena cannot be had, ``import numpy`` says so in one line and
ends the program with exit code 2: it shall not run without what was asked for.

May not: import this package, numba or NumPy before NumPy is imported; raise.
"""

from __future__ import annotations

import _thread
import builtins
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

EXIT_REFUSED = 2
NEEDED = ("numba", "llvmlite", "realalloc")  # what imports NumPy, or is imported by who does, and the arena needs


def half_imported() -> list[ModuleType]:
    """Return the modules of NEEDED that are being imported: by this thread, further out, or another.

    With threads NumPy itself is one: who imports it holds its lock, and another thread that has numba's waits for that.
    """
    names = (*NEEDED, "numpy") if _thread._count() > 0 else NEEDED
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in names]
    return [module for module in modules if is_half_imported(module)]


def is_half_imported(module: ModuleType) -> bool:
    """Tell whether a module is being imported."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class Installer:
    """Installs the default arena for NumPy, at once where that can be.

    Where NumPy is imported by what the arena needs (``import numba``), there are only halves of modules, and where there are
    threads, two of them would wait for each other's: then it is done as soon as an import statement, anyone's, has ended and
    nothing is half imported.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Keep what was asked for: ``root``, ``align``, ``fallback``, ``stats``."""
        self.config = config
        self.turn = _thread.allocate_lock()
        self.waiting: list[ModuleType] = []
        self.import_module: Any = None  # the program's __import__, while this one stands before it

    def attempt(self) -> None:
        """Install, or see to it that it is tried again; SystemExit with 2 where it cannot be."""
        if any(is_half_imported(module) for module in self.waiting) or not self.turn.acquire(blocking=False):
            return
        try:
            self.waiting = half_imported()
            self.watch()
            if not self.waiting:
                install(self.config)
        finally:
            self.turn.release()

    def watch(self) -> None:
        """Stand before ``__import__`` while there is something to wait for, and not longer."""
        if self.waiting and self.import_module is None:
            self.import_module = builtins.__import__
            builtins.__import__ = self.imported
        elif not self.waiting and self.import_module is not None and builtins.__import__ == self.imported:
            builtins.__import__ = self.import_module

    def imported(self, *args: Any, **options: Any) -> Any:
        """Import as the program would, and try again."""
        found = self.import_module(*args, **options)
        if self.waiting:
            self.attempt()
        return found


def install(config: dict[str, Any]) -> None:
    """Install the default arena for NumPy; SystemExit with 2 where that cannot be."""
    try:
        sys.path.append(config["root"])
        try:
            importlib.import_module("numba")  # whole: who begins with parts of it gives other threads halves
            numpy = importlib.import_module("realalloc.numpy")
        finally:
            sys.path.reverse()  # the one at the end, whoever else changed the list
            sys.path.remove(config["root"])
            sys.path.reverse()
        handler = numpy.install(align=config["align"], fallback=config["fallback"])
    except (RuntimeError, ValueError, TypeError, MemoryError, OSError, ImportError) as error:
        sys.stderr.write(f"realalloc run: error: {' '.join(str(error).split())}\n")
        raise SystemExit(EXIT_REFUSED) from None
    if config["stats"]:
        import atexit

        atexit.register(tell, handler)


def tell(handler: Any) -> None:
    """Say on stderr what NumPy asked for, and where it came from."""
    from realalloc.sizes import format_bytes

    seen = handler.stats()
    line = f"{seen.allocations:,} arrays, {format_bytes(seen.bytes)} in all; {seen.fallbacks:,} from NumPy's own allocator, "
    line += f"{seen.refused:,} refused"
    if not handler.arena.closed:
        line += f"; the arena holds {format_bytes(handler.arena.stats().committed)}"
    sys.stderr.write(f"realalloc run: {line}\n")


def begin(config: dict[str, Any], meet_numpy: Callable[[Callable[[ModuleType], None]], None]) -> None:
    """Install when NumPy is there."""
    meet_numpy(lambda _numpy: Installer(config).attempt())
