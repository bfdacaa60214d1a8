"""Native allocators in this very process: those that are there, each driven by the addresses of two functions."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import Final, NamedTuple

from llvmlite import ir

from realalloc.mm.jit import native
from realalloc.mm.prim import emit_call

_I64 = ir.IntType(64)
STATIC_TLS: Final = "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=32768"


class Native(NamedTuple):
    """An allocator by the addresses of its ``malloc``, ``free`` and ``realloc``."""

    name: str
    alloc: int
    free: int
    realloc: int


class Source(NamedTuple):
    """Where an allocator may be: a file of a distribution from PyPI, or a library that the loader knows by its name."""

    name: str
    distribution: str  # "" for a library of the system
    library: str  # "" for the process itself
    alloc: str
    free: str
    realloc: str
    package: str  # what to install


SOURCES = [
    Source("glibc", "", "", "malloc", "free", "realloc", ""),
    Source(
        "mimalloc", "cmeel-mimalloc", "libmimalloc.so.3", "mi_malloc", "mi_free", "mi_realloc", "pip: cmeel-mimalloc"
    ),
    Source("mimalloc 2", "", "libmimalloc.so.2", "mi_malloc", "mi_free", "mi_realloc", "apt: libmimalloc2.0"),
    Source(
        "gperftools", "", "libtcmalloc_minimal.so.4", "tc_malloc", "tc_free", "tc_realloc", "apt: libtcmalloc-minimal4"
    ),
    Source(
        "jemalloc", "", "libjemalloc.so.2", "malloc", "free", "realloc", f"apt: libjemalloc2; start with {STATIC_TLS}"
    ),
    Source("snmalloc", "", "libsnmallocshim.so", "malloc", "free", "realloc", "built from its sources"),
    Source("tbb", "tbb", "libtbbmalloc.so.2", "scalable_malloc", "scalable_free", "scalable_realloc", "pip: tbb"),
]
MIMALLOCS = ("mimalloc", "mimalloc 2")  # the one that traces are judged against, the newer first


def _path(source: Source) -> str | None:
    """Return what to give to the loader; None is the process itself."""
    if not source.distribution:
        return source.library or None
    for file in importlib.metadata.distribution(source.distribution).files or ():
        if file.name == source.library:
            return str(file.locate())
    raise OSError(f"{source.distribution} has no {source.library}")


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def find_natives(only: str = "") -> tuple[list[Native], list[str]]:
    """Load every native that is there, or the one of a name; return them, and a line for each that is not, with the reason."""
    found, missing = [], []
    for source in SOURCES:
        if only not in ("", source.name):
            continue
        try:
            library = ctypes.CDLL(_path(source))
            addresses = [_address(library, name) for name in (source.alloc, source.free, source.realloc)]
            found.append(Native(source.name, *addresses))
        except (OSError, AttributeError, importlib.metadata.PackageNotFoundError) as error:
            missing.append(f"{source.name}: {error} ({source.package})")
    return found, missing


# The plain twins keep the GIL (PYFUNCTYPE): without it each call waits 5 ms, a switch interval, beside a thread that spins.
@native(emit_call(_I64))
def call_alloc(address: int, nbytes: int) -> int:
    """Call ``void *f(size_t)`` by its address; pointers travel as int64."""
    word = ctypes.c_int64
    return int(ctypes.PYFUNCTYPE(word, word)(int(address))(int(nbytes)))


@native(emit_call(_I64))
def call_realloc(address: int, block: int, nbytes: int) -> int:
    """Call ``void *f(void *, size_t)`` by its address."""
    word = ctypes.c_int64
    return int(ctypes.PYFUNCTYPE(word, word, word)(int(address))(int(block), int(nbytes)))


@native(emit_call(ir.VoidType()))
def call_free(address: int, block: int) -> int:
    """Call ``void f(void *)`` by its address; the result, 0, is only there to be ignored."""
    ctypes.PYFUNCTYPE(None, ctypes.c_int64)(int(address))(int(block))
    return 0
