"""The arena: one reserved range, and the kernel's verbs on it for Python.

Arguments are checked here once, status codes become exceptions here once. ``kmalloc`` with one int is machine code and
falls into ``_kmalloc`` for everything else; a block that is taken is leased before the next bytecode runs.
Invariant: the gate word is the arena's base while it is open and 0 afterwards; every builtin looks at it first. ``kmalloc``
looks at one of its own, which is shut while a budget's block is open, too.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np

from realalloc import views
from realalloc.arrays import ArrayMethods
from realalloc.blocks import ZERO_SIZE_OFFSET, BlockMethods
from realalloc.budget import Budget
from realalloc.cache import KmemCache
from realalloc.errors import ArenaClosed, CorruptionError, describe_broken
from realalloc.facts import thp_mode
from realalloc.footprint import FootprintMethods
from realalloc.lease import (
    cfunctions,
    factory,
    forks,
    make_context,
)
from realalloc.lease.blocks import (
    VERB_NONE,
)
from realalloc.lease.cfunctions import CFunctions
from realalloc.lease.shelf import take_down_shelves
from realalloc.mm import geometry, layout
from realalloc.mm.buddy import validate_buddy
from realalloc.mm.budget import validate_budgets
from realalloc.mm.decay import serve, set_decay
from realalloc.mm.jit import JIT
from realalloc.mm.kmalloc import validate_vmalloc
from realalloc.mm.kmem_cache import validate_caches
from realalloc.mm.mempool_life import validate_pools
from realalloc.mm.mempool_wait import after_fork, wake_pools
from realalloc.mm.pcp_walkers import validate_kept_blocks
from realalloc.mm.pressure import forget_triggers
from realalloc.mm.thread_exit import forget_other_threads, freeze, retire_threads, thaw, thaw_in_child
from realalloc.mm.watermark import validate_marks
from realalloc.payers import Blocks
from realalloc.pools import make_pool
from realalloc.progress import compile_progress
from realalloc.reservation import reserve_range
from realalloc.shrinker import DEFAULT_SEEKS, SHRINK_BATCH, Shrinker, Shrinkers
from realalloc.sizes import as_bytes, as_decay_ns, as_int, format_bytes
from realalloc.soundness import check
from realalloc.supported import refuse_unsupported
from realalloc.tables import TableMethods
from realalloc.watermark import as_min_free, marks_of

MIN_BYTES = 256 << 10
MAX_BYTES = 4 << 40
DECAY_S = 10.0  # as jemalloc's dirty_decay_ms
CLASSES = {"kernel": layout.KMALLOC_SIZES, "fine": layout.KMALLOC_FINE_SIZES}
HUGE = {"auto": layout.HUGE_AUTO, True: layout.HUGE_ALWAYS, False: layout.HUGE_NEVER}

_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
_held: list[Any] = []
_default: list[Arena] = []
_default_lock = threading.Lock()
_closing = threading.RLock()  # the collector may close an arena while its thread closes another
os.register_at_fork(after_in_child=_closing._at_fork_reinit)  # type: ignore[attr-defined]  # as the standard library does


class Arena(BlockMethods, ArrayMethods, FootprintMethods, TableMethods):
    """Memory reserved once and handed out as memoryviews. See DESIGN in ``docs/architecture.md``.

    ``size``: bytes, or text such as ``"1GiB"``; metadata included. Keyword-only:
    ``limit``: bytes of pages that may hold memory at one time; ``set_limit`` moves it.
    ``decay``: seconds after which freed memory has gone back to the system, smoothly; 0: at once, None: never by itself.
    ``classes``: sizes of ``kmalloc``'s blocks up to 8 KiB: the ``"kernel"``'s, or ``"fine"``, four to an octave: less memory,
    and more caches. Every other verb is the same.
    ``kswapd``: give it back in the background; otherwise only those who free memory do.
    ``min_free``: bytes that only GFP_ATOMIC and the like may use; ``"auto"``: the kernel's formula; ``set_min_free`` moves it.
    ``max_order``: the largest buddy block is ``4096 << max_order``.
    ``huge_pages``: ``"auto"`` advises on fresh blocks of 2 MiB and more, True on everything, False on nothing; ``"auto"``
    is False where the system never uses huge pages.
    ``prefault``: make all pages resident now. ``lock``: bytes of the locked zone (GFP_DMA), mlocked and prefaulted.
    ``debug``: letters of the kernel's slab_debug; only ``F`` exists: no sheaves, so that a second free of a raw offset is
    refused at once. Buffers cannot be freed twice, with or without it.

    Raises ValueError or TypeError for bad arguments, OutOfMemory where the system refuses, RuntimeError on a platform
    that is not supported.
    """

    def __init__(
        self,
        size: int | str,
        *,
        limit: int | str | None = None,
        max_order: int = 10,
        huge_pages: bool | str = "auto",
        prefault: bool = False,
        lock: int | str = 0,
        debug: str = "",
        decay: float | None = DECAY_S,
        kswapd: bool = True,
        classes: str = "kernel",
        min_free: int | str = 0,
    ) -> None:
        """Reserve the range and lay it out."""
        refuse_unsupported()
        nbytes = as_bytes(size, "size", MIN_BYTES) & -layout.PAGE_BYTES
        if nbytes > MAX_BYTES:
            raise ValueError(f"size must be at most {format_bytes(MAX_BYTES)}, not {format_bytes(nbytes)}")
        order = as_int(max_order, "max_order", 0, layout.MAX_MAX_ORDER)
        if (isinstance(huge_pages, int) and not isinstance(huge_pages, bool)) or huge_pages not in HUGE:
            raise ValueError(f"huge_pages must be 'auto', True or False, not {huge_pages!r}")
        if set(debug) - {"F"}:
            raise ValueError(f"debug={debug!r}: only 'F' exists in this version")
        if not isinstance(classes, str) or classes not in CLASSES:
            raise ValueError(f"classes must be 'kernel' or 'fine', not {classes!r}")
        bound = None if limit is None else as_bytes(limit, "limit", layout.PAGE_BYTES)
        decay_ns = as_decay_ns(decay)
        reserve = as_min_free(min_free)
        plan = geometry.plan(nbytes, order, as_bytes(lock, "lock"), bound)
        if plan.dma_end_pfn >= plan.end_pfn:
            raise ValueError(f"a locked zone of {lock} leaves nothing of an arena of {format_bytes(nbytes)}")
        marks_of(reserve, min(plan.end_pfn - plan.dma_end_pfn, plan.limit_pages))  # or says what is wrong with it
        self._size = nbytes
        self._gate = (ctypes.c_int64 * 1)()  # shut, should what follows be interrupted
        with compile_progress():
            self._leases = factory()
            huge = HUGE[huge_pages]
            if huge == layout.HUGE_AUTO and thp_mode() == "never":  # units of small pages would be books for nothing
                huge = layout.HUGE_NEVER
            self._memory = reserve_range(plan, huge, CLASSES[classes], prefault=bool(prefault))
        if debug:
            self._memory.words[layout.H_SHEAVES] = 0
        self._shrinkers = Shrinkers()
        self._kmalloc_gate = (ctypes.c_int64 * 1)()
        self._blocks = Blocks(self._gate, self._kmalloc_gate)
        self._base = self._gate[0] = self._memory.address
        self._stubs: cfunctions.Addresses | None = None
        self._blocks.reopen()
        context = make_context(self._kmalloc_gate, 0, 0, 0)
        self.kmalloc: Callable[..., memoryview] = self._leases.bind_kmalloc(context, self._kmalloc)
        _arenas.add(self)
        set_decay(self._memory.words, decay_ns)
        self._is_served = bool(kswapd)
        self._set_marks(reserve)

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._gate[0] == 0

    @property
    def address(self) -> int:
        """Address of offset 0."""
        return self._base

    @property
    def size(self) -> int:
        """Bytes of the arena, metadata included."""
        return self._size

    @property
    def words(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The whole range, vmalloc window included, as ``int64[::1]``: the first argument of every jit verb.

        It keeps the range mapped while it lives. What is read or written through it is the caller's own business.
        """
        self._check_open()
        return self._memory.words

    def c_functions(self, *, bound: bool = False) -> CFunctions:
        """Return the addresses of malloc, calloc, realloc and free as C functions over this arena.

        They take ``context`` as their first argument, as hooks want it; with ``bound=True`` they are this arena's own and take
        none. They need no GIL, and work until :meth:`close`, from then on malloc answers NULL; keep the result until nobody
        calls them any more. See docs/jit.md.
        """
        words = self.words
        if not bound:
            return cfunctions.with_context(words, self._base)
        with _closing:
            if self._stubs is None:
                self._stubs = cfunctions.stubs(words, self._base)
        return CFunctions(0, *self._stubs, words)

    def _check_open(self) -> None:
        if self._gate[0] == 0:
            raise ArenaClosed("the arena is closed")

    def close(self) -> None:
        """Refuse new allocations and unmap the range, at once or when its last lease dies. Idempotent.

        Warns (ResourceWarning) with a list of what is still out.
        """
        with _closing:
            if self._gate[0] == 0:
                return
            self._gate[0] = 0
            self._kmalloc_gate[0] = 0
        words = self._memory.words
        live = int(words[layout.H_LEASES])
        report = views.leases_report(words) if live else ""
        # A lease of our own: whichever dies last, this one or a user's, unmaps the range, in one step under the GIL.
        last = self._leases.attempt(self._base, VERB_NONE, ZERO_SIZE_OFFSET, 0, 0, VERB_NONE)
        words[layout.H_CLOSED] = 1
        self._shrinkers.close()
        take_down_shelves(self._base)
        retire_threads(words)
        _arenas.discard(self)
        wake_pools(words)
        forks.ignore(self._base)
        if (
            live and words[layout.DECAY + layout.Y_NS] >= 0
        ):  # what the leases leave goes back at once: nobody serves it now
            serve(words, 0, 0)
            set_decay(words, 0)
        del self._memory
        last.release()
        if live:
            warnings.warn(f"arena closed with {live} live leases: {report}", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Self:
        """Return the arena."""
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Close what nobody closed, and say so, as files and sockets do."""
        if getattr(self, "_memory", None) is not None and self._gate[0] != 0 and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __reduce__(self) -> Any:
        """Refuse: a copy would own the same memory."""
        raise TypeError("an Arena can be neither copied nor pickled")

    def __repr__(self) -> str:
        """Show used and limit."""
        if self._gate[0] == 0:
            return "<Arena closed>"
        used = int(self._memory.words[layout.H_ALLOCATED_PAGES]) << layout.PAGE_SHIFT
        return f"<Arena {format_bytes(used)} of {format_bytes(self._size)} at {self._base:#x}>"

    # -- caches and pools ---------------------------------------------------------------------------------------------------

    def kmem_cache(
        self,
        name: str,
        size: int,
        *,
        align: int = 8,
        ctor: Callable[[memoryview], object] | None = None,
        gfp: int = 0,
        budget: Budget | None = None,
    ) -> KmemCache:
        """Create a cache of objects of ``size`` bytes; see :class:`realalloc.cache.KmemCache`."""
        self._check_open()
        return KmemCache(self, name, size, align=align, ctor=ctor, gfp=gfp, budget=budget)

    def mempool(self, min_nr: int, **options: Any) -> Any:
        """Create a pool with a reserve of ``min_nr`` elements: a ``MemPool``, or with ``alloc_fn=`` an ``ObjectPool``,
        or a ``CallPool`` if that is machine code.

        Options: see :func:`realalloc.pools.make_pool`.
        """
        self._check_open()
        return make_pool(self, min_nr, **options)

    def budget(
        self,
        name: str,
        limit: int | str | None = None,
        high: int | str | None = None,
        parent: Budget | None = None,
    ) -> Budget:
        """Make a budget: a bound on what a part of the program may hold of this arena. See docs/budgets.md.

        ``limit``: bytes, None for no bound; what would pass it is an OutOfMemory, once reclaim and shrinkers have not helped.
        ``high``: bytes above which allocations reclaim and slow down. Its use counts in ``parent`` too, and in what that one
        counts in. Kernel: memory.max and memory.high of memory cgroups. ValueError for a bad name, for one that an open budget
        below the same parent has, or a closed parent; OutOfMemory where there is no room for the descriptor.
        """
        self._check_open()
        return Budget(self, name, limit, high, parent)

    # -- pressure and truth ----------------------------------------------------------------------------------------

    def register_shrinker(
        self,
        count: Callable[[], int],
        scan: Callable[[int], int],
        seeks: int = DEFAULT_SEEKS,
        *,
        batch: int = SHRINK_BATCH,
        name: str | None = None,
    ) -> Shrinker:
        """Register functions that give memory up before an allocation fails; close the result to unregister them.

        ``count()`` returns how many objects could be freed, 0 or SHRINK_EMPTY for none. ``scan(n)`` looks at ``n`` of them, at
        most ``batch`` a call, and returns how many it freed, or SHRINK_STOP. ``seeks``: what one costs to make again, as
        disk seeks; 2 is usual, more is asked less, 0 gives half at once. Kernel: shrinker_register, do_shrink_slab.
        They run in the thread whose allocation finds no memory, without any lock of the arena; never for GFP_NOWAIT or
        GFP_ATOMIC, never inside each other, a garbage collection or a ``__del__``, never for NumPy's or jitted requests. What
        they raise goes to ``sys.unraisablehook``. See docs/shrinkers.md. TypeError or ValueError for bad arguments.
        """
        self._check_open()
        return self._shrinkers.register(count, scan, seeks, batch, name)

    def validate(self) -> None:
        """Walk everything; CorruptionError names the broken invariant."""
        words = self.words
        if words[layout.H_BAD_FREES] != 0:
            raise CorruptionError(describe_broken(layout.BAD_HEADER))
        check(
            words,
            validate_buddy,
            validate_caches,
            validate_kept_blocks,
            validate_vmalloc,
            validate_pools,
            validate_budgets,
            validate_marks,
        )


def _before_fork() -> None:
    for arena in list(_arenas):
        if not arena.closed:
            freeze(arena.words)
            _held.append(arena.words)


def _after_fork_in_parent() -> None:
    while _held:
        thaw(_held.pop())


def _after_fork_in_child() -> None:
    while _held:
        words = _held.pop()
        thaw_in_child(words)
        after_fork(words)
        forget_other_threads(words)
        forget_triggers(words)


if not JIT:  # with machine code, realalloc.lease.forks does it
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def default_arena() -> Arena:
    """Return the process's arena, made on first use: REALALLOC_SIZE (1GiB), _LIMIT, _MAX_ORDER, _HUGE_PAGES, _LOCK,
    _DECAY (seconds, or ``none``), _CLASSES, _MIN_FREE.
    """
    with _default_lock:
        if not _default or _default[0].closed:
            environ = os.environ
            huge = environ.get("REALALLOC_HUGE_PAGES", "auto").lower()
            decay = environ.get("REALALLOC_DECAY", str(DECAY_S)).lower()
            made = Arena(
                environ.get("REALALLOC_SIZE", "1GiB"),
                limit=environ.get("REALALLOC_LIMIT"),
                max_order=int(environ.get("REALALLOC_MAX_ORDER", "10")),
                huge_pages={"1": True, "true": True, "0": False, "false": False}.get(huge, huge),
                lock=environ.get("REALALLOC_LOCK", "0"),
                decay=None if decay == "none" else float(decay),
                classes=environ.get("REALALLOC_CLASSES", "kernel").lower(),
                min_free=environ.get("REALALLOC_MIN_FREE", "0"),
            )
            _default[:] = [made]
        return _default[0]
