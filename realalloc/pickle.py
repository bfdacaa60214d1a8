"""Pickles whose arrays live in an arena: ``dumps`` and ``loads`` by hand, ``dump`` and ``load`` over a socket, pipe or file.

Pickle protocol 5 keeps the memory of arrays out of the pickle (PEP 574). ``loads`` takes that memory where it lies, if it lies
in the arena already, as a buffer of a pool does that a socket has filled, and copies it there if not; arrays are views of it,
and the block goes back when the last of them is gone. ``load`` receives into the arena directly: no copy at all.

Message of ``dump``: MAGIC, then little-endian uint64: bytes of the pickle, number of buffers, bytes of each buffer; then the
pickle, then the buffers. Guarantees: whatever is raised, no block is lost; nothing is taken for a message above ``limit``.
A pickle can run any code: take it from nobody that you do not trust, here as everywhere.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy._core.numeric import _frombuffer as from_buffer  # type: ignore[attr-defined]

from realalloc.arena import Arena, default_arena
from realalloc.mempool import MemPool
from realalloc.sizes import as_bytes

__all__ = ["dump", "dumps", "load", "loads"]

MAGIC: Final = b"raPk"
PROTOCOL: Final = 5
HEAD: Final = struct.Struct("<4sQQ")
WORD: Final = 8
FROM_BUFFER: Final = ("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer")


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """Return the pickle of ``obj`` and the memory of its arrays: flat views, in the order that ``loads`` wants.

    Nothing is copied but arrays whose memory has gaps. The views keep the arrays alive, and show what is written to them
    afterwards. Arrays of objects, and what a subclass of ``ndarray`` pickles by itself, stay inside. Raises what
    ``pickle.dumps`` raises.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, PROTOCOL, buffer_callback=buffers.append).dump(obj)
    return file.getvalue(), [buffer.raw() for buffer in buffers]


def loads(data: Any, buffers: Iterable[Any] | None = None, *, arena: Arena | None = None) -> Any:
    """Return what a pickle says, its arrays in the arena (the default one if None).

    ``data``: a pickle of any protocol, bytes-like. ``buffers``: the memory that was kept out of it, in order, bytes-like and
    contiguous. One that is writable and lies in the arena is used as it is: its bytes are the array's, and its block is free
    when caller and array have let go of it. Others are copied into the arena. Arrays inside the pickle are made there, too,
    but for those above 1000 bytes of protocols below 5 and of subclasses of ``ndarray``: NumPy makes them views of bytes.

    Raises ValueError if ``buffers`` are too few or too many, BufferError for one that is not contiguous, TypeError for what is
    no buffer, OutOfMemory or NumPy's MemoryError, ArenaClosed, RuntimeError where NumPy has no hook (NUMBA_DISABLE_JIT), and
    what the unpickled classes raise. Nothing that was taken is kept then.
    """
    where = default_arena() if arena is None else arena
    feed = None if buffers is None else _Feed(where, buffers)
    with where.numpy(), memoryview(data) as view:
        unpickler = _Unpickler(where, io.BufferedReader(_Bytes(view)), feed)
        try:
            made = unpickler.load()
            if feed is not None:
                feed.check_all_used()
        except BaseException:
            made = None
            raise
        finally:
            del unpickler  # a traceback may live long, and would keep what was taken
    return made


def dump(obj: Any, stream: Any) -> int:
    """Write ``obj`` to a socket or a binary file for :func:`load`; return the bytes written. Arrays are not copied.

    Raises what ``pickle.dumps`` and the stream raise; after an error of the stream part of a message may have been sent.
    """
    data, buffers = dumps(obj)
    sizes = [buffer.nbytes for buffer in buffers]
    head = HEAD.pack(MAGIC, len(data), len(buffers)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    for part in (head + data, *buffers):
        _send(stream, part)
    return len(head) + len(data) + sum(sizes)


def load(
    stream: Any,
    *,
    arena: Arena | None = None,
    pool: MemPool | None = None,
    limit: int | str | None = None,
    timeout: float | None = None,
) -> Any:
    """Read what :func:`dump` wrote to a socket or a binary file, the memory of arrays straight into the arena.

    ``pool``: buffers that fit are elements of this pool of the arena, waited for up to ``timeout`` seconds; larger ones are
    kmalloc'ed. ``limit``: bytes that a message may have, the size of the arena if None.

    Raises EOFError where the stream ends, also before the first byte; ValueError for what is no message, or one above
    ``limit``; TimeoutError of pool or socket; OutOfMemory; and what :func:`loads` raises. Nothing that was taken is kept then,
    but the rest of the message has not been read: close the stream.
    """
    where = _arena_of(arena, pool)
    most = where.size if limit is None else as_bytes(limit, "limit")
    magic, nbytes, count = HEAD.unpack(_receive(stream, bytearray(HEAD.size)))
    if magic != MAGIC:
        raise ValueError(f"not a message of realalloc.pickle.dump: it begins with {magic!r}")
    total = HEAD.size + count * WORD + nbytes
    if total <= most:
        sizes = struct.unpack(f"<{count}Q", _receive(stream, bytearray(count * WORD)))
        total += sum(sizes)
    if total > most:
        raise ValueError(f"the message has {total} bytes or more, the limit is {most}")
    buffers: list[memoryview] = []
    data = _receive(stream, where.kmalloc(nbytes))
    try:
        buffers.extend(_receive(stream, _block(where, pool, size, timeout)) for size in sizes)
        return loads(data, buffers, arena=where)
    finally:
        data.release()
        buffers.clear()


def _arena_of(arena: Arena | None, pool: MemPool | None) -> Arena:
    if pool is None:
        return default_arena() if arena is None else arena
    if not isinstance(pool, MemPool) or pool._kind is not None:
        raise TypeError("pool must be a MemPool of memoryviews")
    if arena not in (None, pool._arena):
        raise ValueError("the pool belongs to another arena")
    return pool._arena


def _block(arena: Arena, pool: MemPool | None, nbytes: int, timeout: float | None) -> memoryview:
    if pool is not None and 0 < nbytes <= pool.element_bytes:
        element: memoryview = pool.alloc(timeout=timeout)
        return element[:nbytes]
    return arena.kmalloc(nbytes)


def _send(stream: Any, part: Any) -> None:
    if hasattr(stream, "sendall"):
        stream.sendall(part)
        return
    rest = memoryview(part)
    while rest.nbytes:
        rest = rest[stream.write(rest) or 0 :]  # a raw file may write less


def _receive(stream: Any, target: Any) -> Any:
    """Fill ``target`` and return it; EOFError if the stream ends before."""
    read = stream.recv_into if hasattr(stream, "recv_into") else stream.readinto
    with memoryview(target) as view:
        at = 0
        while at < view.nbytes:
            got = read(view[at:])
            if got is None:
                raise BlockingIOError("the stream has no bytes yet, and does not wait for them")
            if got == 0:
                raise EOFError(f"the stream ended {view.nbytes - at} bytes before a part of a message did")
            at += got
    return target


class _Bytes(io.RawIOBase):
    """A file over a buffer, which io.BytesIO would copy."""

    def __init__(self, view: memoryview) -> None:
        self._left = view.cast("B")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _placed(arena: Arena, buffer: Any) -> memoryview:
    """Return memory of the arena with these bytes: the buffer's own if that may be written and lies there."""
    view = memoryview(buffer)
    if not view.contiguous:
        raise BufferError("a buffer of a pickle must be contiguous")
    flat = pickle.PickleBuffer(view).raw()
    if flat.nbytes and not flat.readonly and arena.owns(np.frombuffer(flat, np.uint8)):
        return flat
    block = arena.kmalloc(flat.nbytes)
    block[:] = flat
    return block


class _Feed:
    """Hands the buffers to the unpickler, one after the other, and counts."""

    def __init__(self, arena: Arena, buffers: Iterable[Any]) -> None:
        self._arena = arena
        self._rest = iter(buffers)
        self._count = 0

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        try:
            buffer = next(self._rest)
        except StopIteration:
            raise ValueError(f"the pickle wants more buffers than the {self._count} that were given") from None
        self._count += 1
        return _placed(self._arena, buffer)

    def check_all_used(self) -> None:
        left = sum(1 for _ in self._rest)
        if left:
            raise ValueError(f"the pickle wants {self._count} buffers, {self._count + left} were given")


class _Pickler(pickle.Pickler):
    """Keeps the memory of arrays out of the pickle that NumPy puts inside: with gaps, or of dates."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not np.ndarray or obj.dtype.hasobject or obj.nbytes == 0 or not (_gaps(obj) or _unsaid(obj)):
            return NotImplemented
        order: Any = "F" if obj.flags.fnc else "C"
        flat: Any = obj.ravel(order).view(np.uint8)  # a copy, if there are gaps
        return from_buffer, (pickle.PickleBuffer(flat), obj.dtype, obj.shape, order)


def _gaps(array: Any) -> bool:
    if array.flags.forc:
        return False
    axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    return not array.transpose(axes).flags.c_contiguous


def _unsaid(array: Any) -> bool:
    """Tell whether the buffer protocol has no word for the type, as for dates."""
    try:
        memoryview(array).release()
    except ValueError:
        return True
    return False


class _Unpickler(pickle.Unpickler):
    """Puts arrays that are inside the pickle into the arena: protocol 5 makes them views of a bytes object otherwise."""

    def __init__(self, arena: Arena, file: io.BufferedReader, feed: _Feed | None) -> None:
        super().__init__(file, buffers=feed)
        self._arena = arena

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if (module, name) not in FROM_BUFFER:
            return found
        arena = self._arena

        def placed(buffer: Any, *rest: Any) -> Any:
            if isinstance(buffer, (bytes, bytearray)):
                block = _placed(arena, buffer)
                buffer = block.toreadonly() if isinstance(buffer, bytes) else block
            return found(buffer, *rest)

        return placed
