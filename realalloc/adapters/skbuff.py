"""Socket buffers, as the kernel's ``sk_buff``: a payload with room before and behind it, in a block of a pool.

    headroom |  data (len bytes)  | tailroom            reserve: headroom += n, tailroom -= n, while empty
    ---------+--------------------+---------            push: data grows at its front; pull: shrinks there
    0      data                 tail     size           put: data grows at its end; trim: shrinks there

``SkBuffPool`` makes them from a cache of its own behind a mempool. A clone has pointers of its own and shares the block, which
goes back when the last clone is freed and no view of it is left. While a block is shared its bytes are read-only, and what
announces a write (``push``, ``put``, ``reserve``) is refused: ``copy()`` or ``unshare()`` first.
Where the kernel panics (``skb_over_panic``, ``skb_under_panic``) or returns NULL, ValueError is raised and nothing is changed.
Views taken before ``clone()`` stay writable, as pointers do in C; so take ``data`` anew.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from realalloc.adapters.octets import as_octets
from realalloc.errors import InvalidFree
from realalloc.gfp import GFP_KERNEL, GFP_NOWAIT
from realalloc.mempool import MemPool
from realalloc.sizes import as_int

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.records import PoolStats

ALIGN_BYTES = 64  # a cache line, as SKB_DATA_ALIGN


class _Area:
    """The block that clones share, and how many they are (the kernel's ``dataref``)."""

    __slots__ = ("block", "users")

    def __init__(self, block: memoryview) -> None:
        self.block = block
        self.users: list[None] = [None]  # a count that append and pop change in one step, whatever thread frees

    def drop(self) -> None:
        """One user less; the last one gives the block back."""
        self.users.pop()
        if not self.users:
            self.block.release()  # views of the payload that are still alive keep it until they die


class SkBuff:
    """A buffer of a :class:`SkBuffPool`; ``with``, ``free()`` and garbage collection give it back."""

    __slots__ = ("_area", "_data", "_pool", "_tail", "__weakref__")

    def __init__(self, pool: SkBuffPool, area: _Area, data: int, tail: int) -> None:
        self._pool = pool
        self._area: _Area | None = area
        self._data = data  # offsets into the block, in bytes
        self._tail = tail

    def _live(self) -> _Area:
        area = self._area
        if area is None:
            raise ValueError("the SkBuff was freed")
        return area

    def _private(self, what: str) -> _Area:
        area = self._live()
        if len(area.users) > 1:
            raise BufferError(f"{what} on a cloned SkBuff: unshare() or copy() it first")
        return area

    def _view(self, start: int, stop: int) -> memoryview:
        area = self._live()
        view = area.block[start:stop]
        return view.toreadonly() if len(area.users) > 1 else view

    # -- looking --------------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> memoryview:
        """The payload; read-only while the block is shared with a clone."""
        return self._view(self._data, self._tail)

    @property
    def len(self) -> int:
        """Bytes of payload."""
        self._live()
        return self._tail - self._data

    def __len__(self) -> int:
        """Return the bytes of payload."""
        return self.len

    def __bool__(self) -> bool:
        """Return True: an empty buffer is a buffer, as in ``if skb``."""
        return True

    @property
    def headroom(self) -> int:
        """Bytes that ``push`` can still add."""
        self._live()
        return self._data

    @property
    def tailroom(self) -> int:
        """Bytes that ``put`` can still add."""
        return self.size - self._tail

    @property
    def size(self) -> int:
        """Bytes of the whole block: headroom, payload and tailroom."""
        return len(self._live().block)

    @property
    def is_cloned(self) -> bool:
        """Whether another buffer shares the block."""
        return len(self._live().users) > 1

    @property
    def tail_view(self) -> memoryview:
        """The tailroom, to receive into before ``put(n)`` says how much came. BufferError while cloned."""
        return self._private("tail_view").block[self._tail :]

    # -- moving the ends ------------------------------------------------------------------------------------------------------

    def reserve(self, n: int) -> None:
        """Move ``n`` bytes of tailroom in front of the data. ValueError unless it is empty and has that much."""
        count = as_int(n, "n")
        self._private("reserve")
        if self._tail != self._data:
            raise ValueError(f"reserve({count}): the SkBuff has {self.len} bytes of data already")
        if count > self.tailroom:
            raise ValueError(f"reserve({count}) with a tailroom of {self.tailroom} bytes")
        self._data += count
        self._tail += count

    def push(self, n: int) -> memoryview:
        """Add ``n`` bytes at the front and return them, as they are. ValueError where the headroom is smaller."""
        count = as_int(n, "n")
        self._private("push")
        if count > self._data:
            raise ValueError(f"push({count}) with a headroom of {self._data} bytes")
        self._data -= count
        return self._view(self._data, self._data + count)

    def put(self, n: int) -> memoryview:
        """Add ``n`` bytes at the end and return them, as they are. ValueError where the tailroom is smaller."""
        count = as_int(n, "n")
        self._private("put")
        if count > self.tailroom:
            raise ValueError(f"put({count}) with a tailroom of {self.tailroom} bytes")
        self._tail += count
        return self._view(self._tail - count, self._tail)

    def put_data(self, payload: bytes | bytearray | memoryview) -> None:
        """Append a copy of ``payload`` (the kernel's ``skb_put_data``); ValueError as ``put``."""
        with as_octets(payload) as octets:
            self.put(len(octets))[:] = octets

    def pull(self, n: int) -> memoryview:
        """Remove ``n`` bytes at the front and return the data that is left. ValueError where there are fewer."""
        self.pull_data(n)
        return self.data

    def pull_data(self, n: int) -> memoryview:
        """Remove ``n`` bytes at the front and return them: a header, to be read. ValueError where there are fewer."""
        count = as_int(n, "n")
        if count > self.len:
            raise ValueError(f"pull({count}) of {self.len} bytes")
        self._data += count
        return self._view(self._data - count, self._data)

    def trim(self, length: int) -> None:
        """Cut the data to ``length`` bytes, at its end; shorter data stays as it is."""
        count = as_int(length, "length")
        if count < self.len:
            self._tail = self._data + count

    # -- sharing --------------------------------------------------------------------------------------------------------------

    def clone(self) -> SkBuff:
        """Return another buffer over the same bytes; both are read-only until one of them is left."""
        area = self._live()
        area.users.append(None)
        return SkBuff(self._pool, area, self._data, self._tail)

    def copy(self, gfp: int = GFP_NOWAIT, timeout: float | None = None) -> SkBuff:
        """Return a private copy with the same headroom and tailroom.

        OutOfMemory where the pool is empty: waiting (``GFP_KERNEL``, ``timeout`` in seconds, then TimeoutError) while
        holding an element is how pools deadlock, so it must be asked for.
        """
        self._live()
        made = self._pool.alloc(gfp, timeout)
        made._data, made._tail = self._data, self._tail
        made.data[:] = self.data
        return made

    def unshare(self, gfp: int = GFP_NOWAIT, timeout: float | None = None) -> SkBuff:
        """Return a buffer that may be written: this one if it is not cloned, else a copy, and this one is freed.

        Use it as ``skb = skb.unshare()``. Raises as ``copy``, and then this buffer is as it was.
        """
        if not self.is_cloned:
            return self
        made = self.copy(gfp, timeout)
        self.free()
        return made

    # -- the end --------------------------------------------------------------------------------------------------------------

    def free(self) -> None:
        """Give it up; the block goes back with the last clone. InvalidFree if it was freed already."""
        area, self._area = self._area, None
        if area is None:
            raise InvalidFree("the SkBuff was freed already")
        area.drop()

    def __del__(self) -> None:
        """Give it up if nobody did."""
        area = getattr(self, "_area", None)
        if area is not None:
            self._area = None
            area.drop()

    def __enter__(self) -> Self:
        """Return the buffer."""
        self._live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it up, unless that was done inside."""
        if self._area is not None:
            self.free()

    def __repr__(self) -> str:
        """Show the three parts."""
        if self._area is None:
            return "<SkBuff freed>"
        shared = ", cloned" if self.is_cloned else ""
        return f"<SkBuff {self.headroom} + {self.len} + {self.tailroom} bytes{shared}>"


class SkBuffPool:
    """Socket buffers of ``size`` bytes, of which ``min_nr`` exist ahead: a cache of blocks with a mempool in front of it.

    There are never more than ``min_nr``; another ``order`` asks the arena for more, as the kernel does. ``headroom`` bytes
    are reserved in every new buffer. ``name`` is the cache's, unique in the arena. Raises as
    ``Arena.kmem_cache`` and ``Arena.mempool`` do, with nothing kept.
    """

    def __init__(
        self,
        arena: Arena,
        min_nr: int,
        size: int,
        *,
        headroom: int = 0,
        name: str | None = None,
        order: str = "reserve-only",
    ) -> None:
        self.size = as_int(size, "size", 1)
        self.headroom = as_int(headroom, "headroom", 0, self.size)
        self._cache = arena.kmem_cache(name or f"skbuff-{self.size}", self.size, align=ALIGN_BYTES)
        try:
            self.pool: MemPool = arena.mempool(min_nr, cache=self._cache, order=order)
        except BaseException:
            self._cache.destroy()
            raise

    def alloc(self, gfp: int = GFP_KERNEL, timeout: float | None = None) -> SkBuff:
        """Return an empty buffer. Waits, or raises TimeoutError or OutOfMemory, as ``MemPool.alloc``."""
        return self.wrap(self.pool.alloc(gfp, timeout))

    def alloc_preallocated(self) -> SkBuff:
        """Return an empty buffer of the reserve, or OutOfMemory: never waits, never makes the pool grow."""
        return self.wrap(self.pool.alloc_preallocated())

    def wrap(self, block: memoryview) -> SkBuff:
        """Make an empty buffer of an element of ``pool`` that the caller took, and gives up herewith."""
        return SkBuff(self, _Area(block), self.headroom, self.headroom)

    def stats(self) -> PoolStats:
        """Return the mempool's counts."""
        return self.pool.stats()

    def destroy(self) -> None:
        """Give reserve and cache back; BufferError, with nothing changed, while buffers are out."""
        self.pool.destroy()
        self._cache.destroy()

    def __repr__(self) -> str:
        """Show the pool."""
        return f"<SkBuffPool of {self.size} bytes, {self.headroom} headroom: {self.pool!r}>"
