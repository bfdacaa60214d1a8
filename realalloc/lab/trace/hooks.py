"""The hooks of a recorded program: what stands between Python, NumPy and their allocators, as machine code in object files.

A recorded program imports nothing of this package and no numba: it loads these objects (``realalloc/inject/record.py``).
A hook calls the allocator that was there, and stores an event. It may run in any thread, without the GIL, while the program
ends: it touches no Python object, keeps ``errno``, and waits for nobody but a thread that makes the file longer.

A place in the log is taken by one atomic add. The order of places is the order of what happened: a free takes its place before
memory is given back, an allocation after it was had; a reallocation takes two.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from realalloc.lab.clock import cycles
from realalloc.lab.trace.raw import (
    C_FILE,
    C_FILTER,
    C_GROWING,
    C_INSIDE,
    C_LEAST,
    C_LIMIT,
    C_ON,
    C_PATH,
    C_READY,
    C_RING,
    C_THREADS,
    CHUNK_BYTES,
    CHUNK_EVENTS,
    CONTROL_WORDS,
    D_CONTROL,
    D_DOMAIN,
    D_NESTS,
    DOMAIN_SHIFT,
    EVENT_BYTES,
    FILTER_WORDS,
    H_RESERVED,
    H_STATE,
    HEADER_BYTES,
    LIMIT_REACHED,
    NO_SPACE,
    OP_CALLOC,
    OP_FREE,
    OP_MALLOC,
    OP_MOVE,
    OP_MOVED,
    SIZE_SHIFT,
    THREAD_SHIFT,
    THREADS,
)
from realalloc.lease.capi import address_of_symbol, c_function, immortal, load_at, store_at
from realalloc.lease.datablocks import call_at
from realalloc.memory import MADV_POPULATE_WRITE
from realalloc.mm.atomic import thread_identity
from realalloc.mm.jit import JIT, CFunction, Entry, kernel, native
from realalloc.mm.jitcache import CACHE_DIR
from realalloc.mm.prim import madvise, sched_yield

W: Final = 8
PROBES: Final = 64  # looks in the table of threads
GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)
MALLOC, CALLOC, REALLOC, FREE = 1, 2, 3, 4  # words of a domain's record
O_RDWR_CLOEXEC: Final = os.O_RDWR | os.O_CLOEXEC

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


def _emit_add(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "monotonic")


def _emit_swap(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    pair = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), _I64)


def _emit_peek(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.load_atomic(_word(builder, args[0]), "acquire", W)


def _emit_publish(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    builder.store_atomic(args[1], _word(builder, args[0]), "release", W)
    return args[1]


@native(_emit_add)
def fetch_add_at(address: int, value: int) -> int:
    """Add to a word and return what it was."""
    raise NotImplementedError


@native(_emit_swap)
def compare_and_swap_at(address: int, expected: int, value: int) -> int:
    """Store a value if the word is ``expected``; return 1 if it was."""
    raise NotImplementedError


@native(_emit_peek)
def load_acquire_at(address: int) -> int:
    """Load a word with acquire order."""
    raise NotImplementedError


@native(_emit_publish)
def store_release_at(address: int, value: int) -> int:
    """Store a word with release order."""
    raise NotImplementedError


def _emit_load_i32(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.sext(builder.load(builder.inttoptr(args[0], _I32.as_pointer())), _I64)


def _emit_store_i32(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    builder.store(builder.trunc(args[1], _I32), builder.inttoptr(args[0], _I32.as_pointer()))
    return args[1]


@native(_emit_load_i32)
def load_i32_at(address: int) -> int:
    """Load an int."""
    raise NotImplementedError


@native(_emit_store_i32)
def store_i32_at(address: int, value: int) -> int:
    """Store an int."""
    raise NotImplementedError


_SYMBOL: Final = "realalloc_trace_control"  # in a recorded program: its control block
_none: Any = immortal((ctypes.c_int64 * CONTROL_WORDS)())
llvmlite.binding.add_symbol(_SYMBOL, ctypes.addressof(_none))


@native(address_of_symbol(_SYMBOL))
def control_address() -> int:
    """Return the address of the control block."""
    raise NotImplementedError


def _emit_errno(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
    kind = ir.FunctionType(_I32.as_pointer(), [])
    location = cgutils.get_or_insert_function(builder.module, kind, "__errno_location")
    return builder.ptrtoint(builder.call(location, []), _I64)


@native(_emit_errno)
def errno_location() -> int:
    """Return where the calling thread's errno is."""
    raise NotImplementedError


@native(c_function("open", _I32, [_I64, _I32]))
def open_file(path: int, flags: int) -> int:
    """open(2); -1 if it failed."""
    raise NotImplementedError


@native(c_function("posix_fallocate", _I32, [_I32, _I64, _I64]))
def allocate_file(fd: int, offset: int, nbytes: int) -> int:
    """posix_fallocate(3): 0 or an error."""
    raise NotImplementedError


@native(c_function("close", _I32, [_I32]))
def close_file(fd: int) -> int:
    """close(2)."""
    raise NotImplementedError


@kernel
def _stop(control: int, state: int) -> int:
    """Log nothing any more, and say why."""
    store_at(control + C_ON * W, 0)
    return store_at(load_at(control + C_FILE * W) + H_STATE * W, state)


@kernel
def _grow(control: int, place: int) -> int:
    """Make the file long enough for a place; 1 if it is. By name: a program may close any descriptor, and use its number."""
    if place >= load_at(control + C_LIMIT * W):
        _stop(control, LIMIT_REACHED)
        return 0
    where = errno_location()
    saved = load_i32_at(where)
    while compare_and_swap_at(control + C_GROWING * W, 0, 1) == 0:
        sched_yield()
    ready = load_at(control + C_READY * W)
    while ready <= place and load_at(control + C_ON * W) != 0:
        fd = open_file(load_at(control + C_PATH * W), O_RDWR_CLOEXEC)
        failed = 1
        if fd >= 0:
            failed = allocate_file(fd, HEADER_BYTES + ready * EVENT_BYTES, CHUNK_BYTES)
            close_file(fd)
        if failed != 0:
            _stop(control, NO_SPACE)
            continue
        madvise(load_at(control + C_RING * W) + ready * EVENT_BYTES, CHUNK_BYTES, MADV_POPULATE_WRITE)
        ready += CHUNK_EVENTS
        store_release_at(control + C_READY * W, ready)
    store_release_at(control + C_GROWING * W, 0)
    store_i32_at(where, saved)
    return 1 if ready > place else 0


@kernel
def _thread(control: int) -> int:
    """Return the number of the calling thread: its place in the table of identities."""
    me = thread_identity()
    at = ((me * GOLDEN) >> 32) & (THREADS - 1)
    at = 0 if at == THREADS - 1 else at  # the last one is for those that find no place
    for _ in range(PROBES):
        word = control + (C_THREADS + at) * W
        seen = load_acquire_at(word)
        if seen == me:
            return at
        if seen == 0 and (compare_and_swap_at(word, 0, me) == 1 or load_acquire_at(word) == me):
            return at
        at = 0 if at == THREADS - 2 else at + 1
    return THREADS - 1


@kernel
def _log(record: int, control: int, op: int, address: int, nbytes: int) -> int:
    place = fetch_add_at(load_at(control + C_FILE * W) + H_RESERVED * W, 1)
    if place >= load_acquire_at(control + C_READY * W) and _grow(control, place) == 0:
        return 0
    event = load_at(control + C_RING * W) + place * EVENT_BYTES
    how = nbytes << SIZE_SHIFT | _thread(control) << THREAD_SHIFT | load_at(record + D_DOMAIN * W) << DOMAIN_SHIFT | op
    store_at(event, cycles())
    store_at(event + W, address)
    return store_release_at(event + 2 * W, how)


@kernel
def _filtered(table: int, block: int) -> int:
    return table + (((block >> 4) * GOLDEN >> 40) & (FILTER_WORDS - 1)) * W


@kernel
def _born(record: int, control: int, op: int, block: int, nbytes: int) -> int:
    """Log an allocation, if it is large enough."""
    if nbytes < load_at(control + C_LEAST * W):
        return 0
    table = load_at(control + C_FILTER * W)
    if table != 0:
        store_at(_filtered(table, block), 1)
    return _log(record, control, op, block, nbytes)


@kernel
def _known(control: int, block: int) -> int:
    """Say whether a block may be in the log."""
    table = load_at(control + C_FILTER * W)
    return 1 if table == 0 or load_at(_filtered(table, block)) != 0 else 0


@kernel
def _quiet(control: int) -> int:
    """Say whether nothing is logged: it is off, or this thread is in a hook already."""
    return 1 if load_at(control + C_ON * W) == 0 or load_at(control + C_INSIDE * W) == thread_identity() else 0


@kernel
def _call(record: int, which: int, first: int, second: int) -> int:
    return call_at(load_at(record + which * W), load_at(record), first, second)


@kernel
def _enter(record: int, control: int) -> None:
    if load_at(record + D_NESTS * W) != 0:
        store_at(control + C_INSIDE * W, thread_identity())


@kernel
def _leave(record: int, control: int) -> None:
    if load_at(record + D_NESTS * W) != 0:
        store_at(control + C_INSIDE * W, 0)  # who is inside does not enter again: there is nothing to restore


def hook_malloc(record: int, nbytes: int) -> int:
    """``void *malloc(void *ctx, size_t size)``."""
    control = load_at(record + D_CONTROL * W)
    if _quiet(control):
        return _call(record, MALLOC, nbytes, 0)
    _enter(record, control)
    block = _call(record, MALLOC, nbytes, 0)
    _leave(record, control)
    if block != 0:
        _born(record, control, OP_MALLOC, block, nbytes)
    return block


def hook_calloc(record: int, count: int, nbytes: int) -> int:
    """``void *calloc(void *ctx, size_t nelem, size_t elsize)``."""
    control = load_at(record + D_CONTROL * W)
    if _quiet(control):
        return _call(record, CALLOC, count, nbytes)
    _enter(record, control)
    block = _call(record, CALLOC, count, nbytes)
    _leave(record, control)
    if block != 0:
        _born(record, control, OP_CALLOC, block, count * nbytes)
    return block


def hook_realloc(record: int, block: int, nbytes: int) -> int:
    """``void *realloc(void *ctx, void *ptr, size_t new_size)``: of NULL it is an allocation."""
    control = load_at(record + D_CONTROL * W)
    if _quiet(control):
        return _call(record, REALLOC, block, nbytes)
    known = block != 0 and _known(control, block) != 0
    if known:
        _log(record, control, OP_MOVE, block, 0)
    _enter(record, control)
    fresh = _call(record, REALLOC, block, nbytes)
    _leave(record, control)
    if known:
        table = load_at(control + C_FILTER * W)
        if table != 0:
            store_at(_filtered(table, fresh), 1)
        _log(record, control, OP_MOVED, fresh, nbytes)
    elif fresh != 0:
        _born(record, control, OP_MALLOC, fresh, nbytes)
    return fresh


def hook_free(record: int, block: int, nbytes: int) -> None:
    """``void free(void *ctx, void *ptr)``; NumPy's has the size, too, which is passed on: others do not look at it."""
    control = load_at(record + D_CONTROL * W)
    if block == 0 or _quiet(control):
        _call(record, FREE, block, nbytes)
        return
    if _known(control, block):
        _log(record, control, OP_FREE, block, 0)
    _enter(record, control)
    _call(record, FREE, block, nbytes)
    _leave(record, control)


def hook_forked() -> None:
    """Log nothing in a child of fork: the C library calls it there. The control block is the child's own."""
    store_at(control_address() + C_ON * W, 0)


HOOKS: Final[tuple[Callable[..., Any], ...]] = (hook_malloc, hook_calloc, hook_realloc, hook_free, hook_forked)
PARAMETERS: Final = (2, 3, 3, 3, 0)


def _object(func: Callable[..., Any], wanted: Any) -> tuple[str, bytes]:
    """Compile a C function; return its symbol and the object file."""
    made = CFunction(func, wanted)
    with Entry.own_code():
        made.compile()
    library = made._library
    return made._wrapper_name, library.codegen._tm.emit_object(library._final_module)


def objects() -> Path:
    """Return the file with the five object files, made or from the cache: a line of JSON ([[symbol, bytes], ...]), then they.

    RuntimeError without machine code.
    """
    if not JIT:
        raise RuntimeError("recording needs machine code: NUMBA_DISABLE_JIT is set")
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in ("hooks.py", "raw.py"))
    path = CACHE_DIR / f"hooks-{hashlib.sha256(sources).hexdigest()[:16]}.o"
    if not path.exists():
        made = []
        for func, count in zip(HOOKS, PARAMETERS, strict=True):
            result = types.void if func in (hook_free, hook_forked) else types.int64
            made.append(_object(func, result(*[types.int64] * count)))
        index = json.dumps([[symbol, len(code)] for symbol, code in made]).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(index + b"".join(code for _, code in made))
        Path(file.name).replace(path)
    return path
