"""``realalloc.pickle``: arrays land in the arena, by copy, in place or from a stream, and nothing is lost on the way."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import socket
import threading
from typing import Any

import numpy as np
import pytest
from checks import books, refuses
from support import JIT, MIB

import realalloc as ra
import realalloc.pickle
from realalloc.pickle import HEAD, MAGIC, dump, dumps, load, loads

pytestmark = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")

ARRAYS = {
    "C": lambda: np.arange(5000.0).reshape(50, 100),
    "F": lambda: np.asfortranarray(np.arange(6000, dtype=np.int16).reshape(20, 300)),
    "permuted": lambda: np.arange(6000).reshape(10, 20, 30).transpose(1, 0, 2),
    "strided": lambda: np.arange(10_000)[::3],
    "empty": lambda: np.zeros((3, 0)),
    "scalar": lambda: np.array(7.5),
    "text": lambda: np.array(["a", "bcd"] * 50),
    "record": lambda: np.zeros(100, "i4,f8"),
    "dates": lambda: np.arange("2020-01", "2021-01", dtype="datetime64[D]"),
    "long": lambda: np.ones(10, np.longdouble),
    "masked": lambda: np.ma.masked_greater(np.arange(100), 50),
    "objects": lambda: np.array([np.ones(100), None, "x"], object),
}

CONTIGUOUS = [ARRAYS[name] for name in ("C", "F", "permuted", "scalar", "text", "record", "long")]


def same(a: Any, b: Any) -> None:
    """Values, types, shape and layout are equal."""
    assert (type(a), a.dtype, a.shape, a.flags.writeable) == (type(b), b.dtype, b.shape, b.flags.writeable)
    assert a.flags.fnc == b.flags.fnc
    assert repr(a) == repr(b)


def parts(array: Any) -> list[np.ndarray]:
    """Every array with memory of numbers in this one."""
    if isinstance(array, np.ma.MaskedArray):
        return [array.data, array.mask]
    return [array, *array.tolist()[:1]] if array.dtype == object else [array]


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_arrays_outside_and_inside_the_pickle(arena: ra.Arena, make: Any) -> None:
    given = make()
    data, buffers = dumps(given)
    assert all(buffer.ndim == 1 and buffer.format == "B" for buffer in buffers)
    outside = loads(data, buffers, arena=arena)
    inside = [loads(pickle.dumps(given, protocol), arena=arena) for protocol in range(6)]
    for array in (outside, *inside):
        same(array, given)
    assert all(arena.owns(part) for part in parts(outside) if part.nbytes)
    for protocol, array in enumerate(inside):
        for part in parts(array):
            assert arena.owns(part) or part.nbytes == 0 or (part.nbytes > 1000 and type(part.base) is bytes), protocol
    assert make not in CONTIGUOUS or arena.owns(inside[5])
    del array, part, outside, inside


def test_what_is_read_only_stays_so(arena: ra.Arena) -> None:
    given = np.arange(100)
    given.flags.writeable = False
    data, buffers = dumps(given)
    for array in (loads(data, buffers, arena=arena), loads(pickle.dumps(given, 5), arena=arena)):
        same(array, given)
        assert arena.owns(array)
    del array


def test_memory_in_the_arena_is_used_as_it_is(arena: ra.Arena) -> None:
    given = [np.arange(1000), np.arange(500.0)]
    data, buffers = dumps(given)
    pool = arena.mempool(2, size=16 << 10)
    received = [pool.alloc() for _ in buffers]
    filled = []
    for element, buffer in zip(received, buffers, strict=True):
        element[: buffer.nbytes] = buffer
        filled.append(element[: buffer.nbytes])
    first, second = loads(data, filled, arena=arena)
    received[0][:8] = (77).to_bytes(8, "little")
    assert first[0] == 77
    del received, filled, element
    assert pool.stats().outstanding == 2
    same(second, given[1])
    del first
    assert pool.stats().outstanding == 1
    del second
    assert pool.curr_nr == 2
    frozen = arena.kmalloc(8000).toreadonly()  # somebody may be writing it, but we may not: the array is to be writable
    copied = loads(*[data, [frozen, bytes(4000)]], arena=arena)
    assert not np.shares_memory(copied[0], np.frombuffer(frozen, np.uint8))
    assert copied[0].flags.writeable
    del copied, frozen
    pool.destroy()


def test_buffers_of_every_kind_are_taken(arena: ra.Arena) -> None:
    data, (raw,) = dumps(np.arange(12))
    kinds = [bytes(raw), bytearray(raw), raw, pickle.PickleBuffer(raw), np.frombuffer(raw, np.int64).reshape(3, 4).T]
    for kind in kinds:
        array = loads(bytearray(data), iter([kind]), arena=arena)
        assert (array == range(12)).all()
        assert arena.owns(array)
    block = arena.kmalloc(len(data))
    block[:] = data
    assert (loads(block, [raw], arena=arena) == range(12)).all()
    del array, block


def test_arrays_outlive_the_arena() -> None:
    arena = ra.Arena("16MiB")
    data, buffers = dumps([np.arange(1000), np.ones(MIB, np.uint8)])
    arrays = loads(data, buffers, arena=arena)
    with pytest.warns(ResourceWarning, match="2 live leases"):
        arena.close()
    assert arrays[0].sum() == 499_500
    assert arrays[1].sum() == MIB
    assert (copy.deepcopy(arrays[0]) == range(1000)).all()
    with pytest.raises(ra.ArenaClosed):
        loads(data, buffers, arena=arena)


def test_what_cannot_be_loses_nothing(arena: ra.Arena) -> None:
    data, buffers = dumps([np.arange(1000), np.arange(500.0)])
    refuses(arena, ValueError, "more buffers than the 1 ", lambda: loads(data, buffers[:1], arena=arena))
    refuses(arena, ValueError, "wants 2 buffers, 4 were given", lambda: loads(data, buffers * 2, arena=arena))
    refuses(arena, pickle.UnpicklingError, "buffers", lambda: loads(data, arena=arena))
    refuses(arena, TypeError, "bytes-like", lambda: loads(data, [buffers[0], "text"], arena=arena))
    refuses(arena, BufferError, "contiguous", lambda: loads(data, [buffers[0], buffers[0][::2]], arena=arena))
    refuses(arena, pickle.UnpicklingError, "truncated", lambda: loads(data[:-1], buffers, arena=arena))
    refuses(arena, EOFError, "Ran out of input", lambda: loads(b"", arena=arena))
    refuses(arena, ValueError, "reshape", lambda: loads(data, [buffers[0], buffers[1][:80]], arena=arena))
    large = np.ones(3 * MIB)
    data, buffers = dumps([np.arange(1000), large])
    refuses(arena, ra.OutOfMemory, "kmalloc", lambda: loads(data, buffers, arena=arena))
    refuses(arena, ra.OutOfMemory, "kmalloc", lambda: loads(pickle.dumps([large[:9], large], 5), arena=arena))


def test_over_a_socket_into_a_pool(arena: ra.Arena) -> None:
    pool = arena.mempool(2, size=16 << 10, order="reserve-only")
    given = {"small": np.arange(1000), "large": np.arange(300_000), "none": np.zeros(0), "inside": [1, "two"]}
    mine, its = socket.socketpair()
    with mine, its:
        sender = threading.Thread(target=lambda: [dump(given, mine), dump(given["small"], mine), mine.close()])
        sender.start()
        found = load(its, arena=arena, pool=pool)
        again = load(its, pool=pool)
        sender.join()
        with pytest.raises(EOFError, match="the stream ended 20 bytes before"):
            load(its, arena=arena)
    assert found["inside"] == given["inside"]
    for name in ("small", "large", "none"):
        same(found[name], given[name])
    assert arena.owns(found["large"])
    assert pool.stats().outstanding == 2
    del found
    assert pool.stats().outstanding == 1
    assert (again == range(1000)).all()
    del again
    pool.destroy()


class Raw(io.RawIOBase):
    """A file that reads and writes a few bytes at a time."""

    def __init__(self, data: bytes = b"", *, waits: bool = True) -> None:
        self.data = bytearray(data)
        self.waits = waits

    def readinto(self, target: Any) -> int | None:
        if not self.waits and not self.data:
            return None
        part = self.data[: min(len(target), 1000)]
        target[: len(part)] = part
        del self.data[: len(part)]
        return len(part)

    def write(self, part: Any) -> int:
        self.data += bytes(part[:1000])
        return min(len(part), 1000)


def test_files(arena: ra.Arena) -> None:
    given = [np.arange(1000), np.arange(500.0)]
    raw, file = Raw(), io.BytesIO()
    assert dump(given, raw) == dump(given, file) == len(raw.data) == len(file.getvalue())
    assert bytes(raw.data) == file.getvalue()
    file.seek(0)
    for stream in (raw, file):
        for a, b in zip(load(stream, arena=arena), given, strict=True):
            same(a, b)
            assert arena.owns(a)
    del a


def test_messages_that_cannot_be_lose_nothing(arena: ra.Arena) -> None:
    whole = Raw()
    dump([np.arange(1000), np.arange(500.0)], whole)
    message = bytes(whole.data)
    for end in (0, 3, HEAD.size, HEAD.size + 9, len(message) - 5000, len(message) - 1):
        refuses(arena, EOFError, "the stream ended", lambda end=end: load(Raw(message[:end]), arena=arena))
    refuses(arena, BlockingIOError, "no bytes yet", lambda: load(Raw(message[:-1], waits=False), arena=arena))
    refuses(arena, ValueError, "begins with b'GET '", lambda: load(Raw(b"GET / HTTP/1.1\r\n\r\n      "), arena=arena))
    for limit in ("8KiB", 100, len(message) - 1):
        refuses(arena, ValueError, "the limit is", lambda limit=limit: load(Raw(message), arena=arena, limit=limit))
    assert load(Raw(message), arena=arena, limit=len(message))[0].sum() == 499_500
    for nbytes, count in ((1 << 63, 0), (0, 1 << 60), (1 << 40, 2)):
        bad = HEAD.pack(MAGIC, nbytes, count)
        refuses(arena, ValueError, "the limit is 16777216", lambda bad=bad: load(Raw(bad), arena=arena))
    bad = HEAD.pack(MAGIC, 1, 1) + (1 << 50).to_bytes(8, "little")
    refuses(arena, ra.OutOfMemory, "kmalloc", lambda: load(Raw(bad + b"N"), arena=arena, limit="2000TiB"))
    extra = HEAD.pack(MAGIC, 2, 1) + (1).to_bytes(8, "little") + b"N.x"
    refuses(arena, ValueError, "wants 0 buffers, 1 were given", lambda: load(Raw(extra), arena=arena))


def test_pools_that_do_not_fit(arena: ra.Arena) -> None:
    message = Raw()
    dump(np.arange(100), message)
    data = bytes(message.data)
    with ra.Arena("1MiB") as other:
        foreign = other.mempool(1, size=1024)
        with pytest.raises(ValueError, match="another arena"):
            load(Raw(data), arena=arena, pool=foreign)
        foreign.destroy()
    structs = arena.mempool(1, struct=np.dtype("i4"))
    for pool in (structs, "pool"):
        with pytest.raises(TypeError, match="MemPool of memoryviews"):
            load(Raw(data), arena=arena, pool=pool)  # type: ignore[arg-type]
    structs.destroy()
    pool = arena.mempool(1, size=1024, order="reserve-only")
    held = pool.alloc()
    before = books(arena)
    with pytest.raises(TimeoutError):
        load(Raw(data), pool=pool, timeout=0.01)
    gc.collect()
    assert books(arena) == before
    held.release()
    assert (load(Raw(data), pool=pool, timeout=0.01) == range(100)).all()
    pool.destroy()


def test_the_default_arena(monkeypatch: pytest.MonkeyPatch, arena: ra.Arena) -> None:
    monkeypatch.setattr(realalloc.pickle, "default_arena", lambda: arena)
    message = Raw()
    dump(np.arange(100), message)
    found = [load(message), loads(*dumps(np.arange(100)))]
    assert all(arena.owns(array) for array in found)
