"""Native allocators in this very process: those that are there, each driven by the addresses of two functions."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I64 = ir.IntType(64)
STATIC_TLS = "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=32768"


class Native(NamedTuple):
    """An allocator by the addresses of its ``malloc`` and ``free``."""

    name: str
    alloc: int
    free: int


class Source(NamedTuple):
    """Where an allocator may be: a file of a distribution from PyPI, or a library that the loader knows by its name."""

    name: str
    distribution: str  # "" for a library of the system
    library: str  # "" for the process itself
    alloc: str
    free: str
    package: str  # what to install


SOURCES = [
    Source("glibc", "", "", "malloc", "free", ""),
    Source("mimalloc", "cmeel-mimalloc", "libmimalloc.so.3", "mi_malloc", "mi_free", "pip: cmeel-mimalloc"),
    Source("mimalloc 2", "", "libmimalloc.so.2", "mi_malloc", "mi_free", "apt: libmimalloc2.0"),
    Source("gperftools", "", "libtcmalloc_minimal.so.4", "tc_malloc", "tc_free", "apt: libtcmalloc-minimal4"),
    Source("jemalloc", "", "libjemalloc.so.2", "malloc", "free", f"apt: libjemalloc2; start with {STATIC_TLS}"),
    Source("tbb", "tbb", "libtbbmalloc.so.2", "scalable_malloc", "scalable_free", "pip: tbb"),
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


def find_natives(only: str = "") -> list[Native]:
    """Load every native that is there, or the one of a name; say which are not, and why."""
    found = []
    for source in SOURCES:
        if only not in ("", source.name):
            continue
        try:
            library = ctypes.CDLL(_path(source))
            found.append(Native(source.name, _address(library, source.alloc), _address(library, source.free)))
        except (OSError, AttributeError, importlib.metadata.PackageNotFoundError) as error:
            print(f"{source.name} skipped: {error} ({source.package})")
    return found


@intrinsic
def call_alloc(_typing_context, address, _nbytes):
    """Call ``void *f(size_t)`` by its address; pointers travel as int64."""

    def emit(_context, builder, _signature, args):
        function = ir.FunctionType(_I64, [_I64]).as_pointer()
        return builder.call(builder.inttoptr(args[0], function), [args[1]])

    return types.int64(types.int64, types.int64) if isinstance(address, types.Integer) else None, emit


@intrinsic
def call_free(_typing_context, address, _block):
    """Call ``void f(void *)`` by its address; the result, 0, is only there to be ignored."""

    def emit(_context, builder, _signature, args):
        function = ir.FunctionType(ir.VoidType(), [_I64]).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [args[1]])
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64) if isinstance(address, types.Integer) else None, emit
