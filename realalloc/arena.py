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
from realalloc.budget import Blocks, Budget
from realalloc.cache import KmemCache
from realalloc.errors import ArenaClosed, CorruptionError, OutOfMemory, describe_broken
from realalloc.footprint import FootprintMethods
from realalloc.fragmentation import Fragmentation
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_KERNEL, GFP_ZERO, gfp_names
from realalloc.lease import (
    cfunctions,
    factory,
    forks,
    live_exporter,
    make_context,
    pin,
    release_handle,
    set_length,
)
from realalloc.lease.blocks import (
    VERB_CACHE,
    VERB_KMALLOC,
    VERB_MASK,
    VERB_NONE,
    VERB_PAGES,
    VERB_RUN,
    VERB_VMALLOC,
    whole_bytes,
)
from realalloc.lease.cfunctions import CFunctions
from realalloc.lease.shelf import take_down_shelves
from realalloc.memory import Memory
from realalloc.mempool import make_pool
from realalloc.mm import layout
from realalloc.mm.atomic import bias
from realalloc.mm.buddy import reach, validate_buddy
from realalloc.mm.budget import validate_budgets
from realalloc.mm.decay import serve, set_decay
from realalloc.mm.jit import JIT
from realalloc.mm.kmalloc import create_classes, ksize, validate_vmalloc
from realalloc.mm.kmem_cache import validate_caches
from realalloc.mm.mempool import validate_pools
from realalloc.mm.mempool_wait import after_fork, wake_pools
from realalloc.mm.pcp import validate_kept_blocks
from realalloc.mm.pressure import forget_triggers
from realalloc.mm.reclaim import reclaim
from realalloc.mm.threads import forget_other_threads, freeze, retire_threads, thaw, thaw_in_child
from realalloc.progress import compile_progress
from realalloc.shrinker import DEFAULT_SEEKS, SHRINK_BATCH, Shrinker, Shrinkers
from realalloc.sizes import as_bytes, as_decay_ns, as_gfp, as_int, format_bytes
from realalloc.views import Stats

MIN_BYTES = 256 << 10
ZERO_SIZE_OFFSET = 16  # the kernel's ZERO_SIZE_PTR: inside the header, never a block
MAX_BYTES = 4 << 40
DECAY_S = 10.0  # as jemalloc's dirty_decay_ms
HUGE = {"auto": layout.HUGE_AUTO, True: layout.HUGE_ALWAYS, False: layout.HUGE_NEVER}

_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
_held: list[Any] = []
_default: list[Arena] = []
_default_lock = threading.Lock()
_closing = threading.RLock()  # the collector may close an arena while its thread closes another


class Pages:
    """A block of contiguous pages: ``pfn``, ``order`` (None for a run), ``offset``, ``address`` and its ``view``.

    The view is the lease: the pages go back when it, and every view made from it, is gone.
    """

    __slots__ = ("address", "offset", "order", "pfn", "view")

    def __init__(self, view: memoryview, order: int | None) -> None:
        """Wrap a leased view of pages."""
        exporter: Any = view.obj
        self.view = view
        self.order = order
        self.offset: int = exporter.offset
        self.pfn = self.offset >> layout.PAGE_SHIFT
        self.address: int = exporter.base + self.offset

    def __repr__(self) -> str:
        """Say which pages."""
        return f"<Pages pfn={self.pfn} order={self.order} address={self.address:#x}>"


def _refuse_unsupported() -> None:
    reason = None
    if sys.platform != "linux":
        reason = f"Linux, not {sys.platform}"
    elif sys.implementation.name != "cpython":
        reason = f"CPython, not {sys.implementation.name}"
    elif not getattr(sys, "_is_gil_enabled", lambda: True)():
        reason = "a CPython with the GIL; free-threaded builds are not supported"
    elif ctypes.pythonapi.PyInterpreterState_GetID(ctypes.c_void_p(_interpreter())) != 0:
        reason = "the main interpreter; subinterpreters are not supported"
    if reason is not None:
        raise RuntimeError(f"realalloc needs {reason}")


def _interpreter() -> int:
    ctypes.pythonapi.PyInterpreterState_Get.restype = ctypes.c_void_p
    return ctypes.pythonapi.PyInterpreterState_Get() or 0


class Arena(ArrayMethods, FootprintMethods):
    """Memory reserved once and handed out as memoryviews. See DESIGN in ``docs/architecture.md``.

    ``size``: bytes, or text such as ``"1GiB"``; metadata included. Keyword-only:
    ``limit``: bytes of pages that may hold memory at one time; ``set_limit`` moves it.
    ``decay``: seconds after which freed memory has gone back to the system, smoothly; 0: at once, None: never by itself.
    ``kswapd``: give it back in the background; otherwise only those who free memory do.
    ``max_order``: the largest buddy block is ``4096 << max_order``.
    ``huge_pages``: ``"auto"`` advises on fresh blocks of 2 MiB and more, True on everything, False on nothing.
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
    ) -> None:
        """Reserve the range and lay it out."""
        _refuse_unsupported()
        nbytes = as_bytes(size, "size", MIN_BYTES) & -layout.PAGE_BYTES
        if nbytes > MAX_BYTES:
            raise ValueError(f"size must be at most {format_bytes(MAX_BYTES)}, not {format_bytes(nbytes)}")
        order = as_int(max_order, "max_order", 0, layout.MAX_MAX_ORDER)
        if (isinstance(huge_pages, int) and not isinstance(huge_pages, bool)) or huge_pages not in HUGE:
            raise ValueError(f"huge_pages must be 'auto', True or False, not {huge_pages!r}")
        if set(debug) - {"F"}:
            raise ValueError(f"debug={debug!r}: only 'F' exists in this version")
        bound = None if limit is None else as_bytes(limit, "limit", layout.PAGE_BYTES)
        decay_ns = as_decay_ns(decay)
        plan = layout.plan(nbytes, order, as_bytes(lock, "lock"), bound)
        if plan.dma_end_pfn >= plan.end_pfn:
            raise ValueError(f"a locked zone of {lock} leaves nothing of an arena of {format_bytes(nbytes)}")
        self._size = nbytes
        self._gate = (ctypes.c_int64 * 1)()  # shut, should what follows be interrupted
        with compile_progress():
            self._leases = factory()
            self._memory = self._map(plan, HUGE[huge_pages], prefault=bool(prefault))
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
        self._serve(decay_ns)

    def _map(self, plan: layout.Plan, huge: int, *, prefault: bool) -> Memory:
        page = layout.PAGE_BYTES
        wanted = min(plan.end_pfn - plan.dma_end_pfn, plan.limit_pages)
        if (
            huge == layout.HUGE_ALWAYS and wanted < plan.end_pfn - plan.dma_end_pfn
        ):  # no unit of 2 MiB is half committed
            wanted = max(0, ((plan.dma_end_pfn + wanted) & -layout.HUGE_PAGES) - plan.dma_end_pfn)
        normal = (plan.dma_end_pfn * page, wanted * page)
        locked = (plan.meta_pages * page, (plan.dma_end_pfn - plan.meta_pages) * page)
        knob = "the address space (ulimit -v, vm.overcommit_memory)"
        try:
            memory = Memory(plan.total_bytes, plan.align_bytes, plan.window_start_bytes)
            memory.advise_huge(0, plan.window_start_bytes, wanted=huge == layout.HUGE_ALWAYS)
            memory.advise_huge(0, plan.meta_pages * page, wanted=False)
            tail = (
                plan.end_pfn & -layout.HUGE_PAGES
            ) * page  # what is no whole unit of the arena's stays in small pages
            if tail < plan.window_start_bytes:
                memory.advise_huge(tail, plan.window_start_bytes - tail, wanted=False)
            if locked[1]:
                knob = f"RLIMIT_MEMLOCK (ulimit -l) for lock={locked[1]}"
                memory.lock(*locked)
            if prefault and wanted:
                knob = "memory for prefault=True, or lower limit="
                memory.commit(*normal)
        except OSError as error:
            raise OutOfMemory(
                f"cannot reserve {format_bytes(plan.total_bytes)}: {error.strerror}; raise {knob}"
            ) from None
        words = memory.words
        layout.format_words(words, plan, huge)
        create_classes(words)
        if locked[1]:
            reach(words, layout.ZONE_DMA, locked[1] // page)
        if prefault:
            reach(words, layout.ZONE_NORMAL, wanted)
        pin(words, memory.mapping)
        forks.watch(memory.address)
        bias(words)
        return memory

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
                self._stubs = cfunctions.stubs(self._base)
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
            serve(words, 0)
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

    # -- taking and freeing ---------------------------------------------------------------------------------------------

    def _take(self, what: str, verb: int, argument: int, gfp: int, length: int) -> memoryview:
        """Allocate and lease in one step, or raise what the status means."""
        words = self.words  # keeps the range mapped if another thread closes the arena now
        budget = self._blocks.current() if self._kmalloc_gate[0] == 0 else None
        if budget is not None:
            return self._take_charged(what, verb, argument, gfp, length, budget)
        found = self._attempt(verb, argument, gfp, length)
        if found is None and self._shrinkers:
            found = self._shrinkers.relieve(words, lambda: self._attempt(verb, argument, gfp, length), gfp, length)
        if found is not None:
            return found
        del words
        self._check_open()
        raise self._out_of_memory(what, gfp, length if self._is_contiguous(verb, length) else 0)

    def _take_charged(self, what: str, verb: int, argument: int, gfp: int, length: int, budget: Budget) -> memoryview:
        """The same, with a budget that pays."""
        words = self.words
        refused = False

        def attempt() -> memoryview | None:
            nonlocal refused
            self._check_open()
            tag = verb if verb == VERB_NONE else budget._tag(verb)
            found = self._leases.attempt(self._base, verb, argument, gfp, length, tag)
            refused = type(found) is not memoryview and found == layout.EDQUOT
            return found if type(found) is memoryview else None

        found = attempt()
        whole = int(whole_bytes(words, verb, argument, gfp)) if found is None else length
        if refused and gfp & GFP_DIRECT_RECLAIM and reclaim(words) > 0:
            found = attempt()
        if found is None and self._shrinkers and budget._could_fit(whole):
            found = self._shrinkers.relieve(words, attempt, gfp, length)
        if found is None:
            self._check_open()
            contiguous = length if self._is_contiguous(verb, length) else 0
            raise self._out_of_memory(what, gfp, contiguous, budget._refusal(whole, sure=True) if refused else None)
        if verb != VERB_NONE:
            budget._slow_down(gfp, length)
        return found

    def _is_contiguous(self, verb: int, nbytes: int) -> bool:
        whole = nbytes <= layout.PAGE_BYTES << int(self._memory.words[layout.H_MAX_ORDER])
        return verb in (VERB_PAGES, VERB_RUN) or (verb == VERB_KMALLOC and whole)

    def _attempt(self, verb: int, argument: int, gfp: int, length: int, tag: int = 0) -> memoryview | None:
        self._check_open()
        found = self._leases.attempt(self._base, verb, argument, gfp, length, tag or verb)
        return found if type(found) is memoryview else None

    def _pressed(self, kernel: Callable[[], int], nbytes: int, gfp: int = 0) -> int:
        """Call a kernel that returns a status; while it says ENOMEM, shrinkers are asked, as for GFP_KERNEL."""
        words = self.words
        status = int(kernel())
        if status == layout.ENOMEM and self._shrinkers:

            def attempt() -> int | None:
                self._check_open()
                again = int(kernel())
                return None if again == layout.ENOMEM else again

            found = self._shrinkers.relieve(words, attempt, gfp | GFP_KERNEL, nbytes)
            return status if found is None else found
        return status

    def _out_of_memory(self, what: str, gfp: int, nbytes: int = 0, refusal: str | None = None) -> OutOfMemory:
        why = refusal or views.shortage(self._memory.words, gfp, nbytes)
        return OutOfMemory(f"{what}, {gfp_names(gfp)}: {why}")

    def _live(self, view: Any, verbs: tuple[int, ...], verb_name: str) -> Any:
        """Return the exporter of a handle that may be freed by one of ``verbs``; InvalidFree otherwise."""
        if isinstance(view, memoryview):
            self._check_open()
        return live_exporter(view, self._base, verbs, verb_name)

    def _release(self, view: memoryview, verbs: tuple[int, ...], verb_name: str) -> None:
        release_handle(view, self._live(view, verbs, verb_name), self._memory.words)

    def _kmalloc(self, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        nbytes = as_int(size, "size")
        flags = as_gfp(gfp)
        if nbytes == 0:
            return self._take("kmalloc(0)", VERB_NONE, ZERO_SIZE_OFFSET, flags, 0)
        return self._take(f"kmalloc({nbytes})", VERB_KMALLOC, nbytes, flags, nbytes)

    def kzalloc(self, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Allocate ``size`` bytes that read as zero."""
        return self._kmalloc(size, as_gfp(gfp) | GFP_ZERO)

    def kcalloc(self, n: int, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Allocate ``n * size`` bytes that read as zero; a product that overflows is OutOfMemory, as in the kernel."""
        count, each = as_int(n, "n"), as_int(size, "size")
        if count * each >= 1 << 63:
            raise self._out_of_memory(f"kcalloc({count}, {each}) overflows", as_gfp(gfp))
        return self._kmalloc(count * each, as_gfp(gfp) | GFP_ZERO)

    def kfree(self, buf: memoryview | None) -> None:
        """Free a buffer of the kmalloc family, of :meth:`vmalloc` or of a cache; None is ignored.

        The handle is released; the block returns when its last other view is gone. InvalidFree if it is not a live
        buffer of this arena; BufferError, with nothing changed, while a consumer holds an export of this very view.
        """
        if buf is not None:
            self._release(buf, (VERB_NONE, VERB_KMALLOC, VERB_VMALLOC, VERB_CACHE), "kfree")

    kvfree = kfree

    def ksize(self, buf: memoryview) -> int:
        """Return the usable bytes of the block behind a live buffer, 0 for a zero-size one."""
        verbs = (VERB_NONE, VERB_KMALLOC, VERB_VMALLOC, VERB_CACHE, VERB_PAGES, VERB_RUN)
        exporter = self._live(buf, verbs, "ksize")
        return 0 if exporter.tag & VERB_MASK == VERB_NONE else int(ksize(self._memory.words, exporter.offset))

    def krealloc(self, buf: memoryview | None, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Return a buffer of ``size`` bytes that begins with the old contents; the old handle is dead.

        The same block if ``size`` fits it, else a new one and ``min(old, new)`` bytes copied. On failure the old buffer
        is untouched. None allocates; size 0 frees and returns a zero-size buffer. InvalidFree where a shrinker freed it.
        """
        nbytes, flags = as_int(size, "size"), as_gfp(gfp)
        if buf is None:
            return self._kmalloc(nbytes, flags)
        exporter = self._live(buf, (VERB_NONE, VERB_KMALLOC, VERB_VMALLOC), "krealloc")
        old = exporter.length
        if 0 < nbytes <= self.ksize(buf):
            set_length(exporter, nbytes)
            fresh = memoryview(exporter)
            try:
                buf.release()
            except BufferError:
                fresh.release()
                set_length(exporter, old)
                raise
            if flags & GFP_ZERO and nbytes > old:
                fresh[old:] = bytes(nbytes - old)
            return fresh
        del exporter  # or a shrinker that frees the buffer would free nothing
        fresh = self._kmalloc(nbytes, flags)
        copied = min(old, nbytes)
        try:
            self._live(buf, (VERB_NONE, VERB_KMALLOC, VERB_VMALLOC), "krealloc: a shrinker freed the buffer")
            fresh[:copied] = buf[:copied]
            self.kfree(buf)
        except BaseException:
            fresh.release()
            raise
        return fresh

    def kfree_sensitive(self, buf: memoryview | None) -> None:
        """Zero a buffer, then free it."""
        if buf is not None:
            self._live(buf, (VERB_NONE, VERB_KMALLOC, VERB_VMALLOC, VERB_CACHE), "kfree_sensitive")
            buf[:] = bytes(buf.nbytes)
            self.kfree(buf)

    def vmalloc(self, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Allocate whole pages, contiguous in addresses only, with a guard page behind; ``size`` > 0."""
        nbytes = as_int(size, "size", 1)
        return self._take(f"vmalloc({nbytes})", VERB_VMALLOC, nbytes, as_gfp(gfp), nbytes)

    def vzalloc(self, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Allocate like :meth:`vmalloc`, reading as zero."""
        return self.vmalloc(size, as_gfp(gfp) | GFP_ZERO)

    def vfree(self, buf: memoryview | None) -> None:
        """Free a buffer of :meth:`vmalloc`; None is ignored."""
        if buf is not None:
            self._release(buf, (VERB_VMALLOC,), "vfree")

    def kvmalloc(self, size: int, gfp: int = GFP_KERNEL) -> memoryview:
        """Allocate by kmalloc, or by vmalloc where no contiguous block is left and ``size`` is above a page.

        Shrinkers are not asked for a contiguous block above a page (kernel: kmalloc_gfp_adjust).
        """
        nbytes, flags = as_int(size, "size"), as_gfp(gfp)
        if nbytes <= layout.PAGE_BYTES:
            return self._kmalloc(nbytes, flags)
        _words = self.words  # keeps the range mapped if another thread closes the arena now
        budget = self._blocks.current() if self._kmalloc_gate[0] == 0 else None
        tag = VERB_KMALLOC if budget is None else budget._tag(VERB_KMALLOC)
        found = self._attempt(VERB_KMALLOC, nbytes, flags, nbytes, tag)
        if found is None:
            return self.vmalloc(nbytes, flags)
        if budget is not None:
            budget._slow_down(flags, nbytes)
        return found

    # -- pages ------------------------------------------------------------------------------------------------------------

    def alloc_pages(self, order: int, gfp: int = GFP_KERNEL) -> Pages:
        """Allocate ``1 << order`` contiguous pages, aligned to their size; ValueError above ``max_order``."""
        self._check_open()
        k = as_int(order, "order", 0, int(self._memory.words[layout.H_MAX_ORDER]))
        nbytes = layout.PAGE_BYTES << k
        return Pages(self._take(f"alloc_pages(order={k})", VERB_PAGES, k, as_gfp(gfp), nbytes), k)

    def alloc_pages_exact(self, size: int, gfp: int = GFP_KERNEL) -> Pages:
        """Allocate contiguous pages for ``size`` bytes, any number of them, also beyond the largest block."""
        nbytes = as_int(size, "size", 1)
        what = f"alloc_pages_exact({nbytes})"
        if nbytes > self._size:  # rounded up to pages it might not fit into a word
            self._check_open()
            raise self._out_of_memory(what, as_gfp(gfp))
        pages = -(-nbytes // layout.PAGE_BYTES)
        return Pages(self._take(what, VERB_RUN, pages, as_gfp(gfp), pages * layout.PAGE_BYTES), None)

    def alloc_pages_bulk(self, n: int, gfp: int = GFP_KERNEL) -> list[Pages]:
        """Allocate up to ``n`` single pages: as many as there are, as in the kernel."""
        made: list[Pages] = []
        for _ in range(as_int(n, "n")):
            try:
                made.append(self.alloc_pages(0, gfp))
            except OutOfMemory:
                break
        return made

    def free_pages(self, pages: Pages) -> None:
        """Free pages; the view is released. InvalidFree if they were freed before."""
        if not isinstance(pages, Pages):
            raise TypeError(f"free_pages takes Pages, not {type(pages).__name__}")
        self._release(pages.view, (VERB_PAGES, VERB_RUN), "free_pages")

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

        Options: see :func:`realalloc.mempool.make_pool`.
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

    # -- looking and giving back ----------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return a cheap immutable record of where the memory is."""
        return views.stats(self.words, self._size)

    def buddyinfo(self) -> str:
        """Free blocks by order, as ``/proc/buddyinfo``."""
        return views.buddyinfo(self.words)

    def pagetypeinfo(self) -> str:
        """Free blocks by migrate type, as ``/proc/pagetypeinfo``."""
        return views.pagetypeinfo(self.words)

    def extfrag_index(self) -> str:
        """Why requests of each order would fail, as ``/sys/kernel/debug/extfrag/extfrag_index``; see docs/fragmentation.md."""
        return views.extfrag_index(self.words)

    def unusable_index(self) -> str:
        """Share of free pages of no use to each order, as ``/sys/kernel/debug/extfrag/unusable_index``."""
        return views.unusable_index(self.words)

    def fragmentation(self) -> Fragmentation:
        """Survey free blocks, the largest requests that can be served, waste in slabs. Walks every block, with the lock."""
        return views.report_fragmentation(self.words)

    def slabinfo(self) -> str:
        """Caches, as ``/proc/slabinfo`` version 2.1."""
        return views.slabinfo(self.words)

    def vmallocinfo(self) -> str:
        """Areas, as ``/proc/vmallocinfo``."""
        return views.vmallocinfo(self.words)

    def meminfo(self) -> str:
        """Totals, as ``/proc/meminfo``."""
        return views.meminfo(self.words)

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
        if words[layout.H_MAGIC] != layout.MAGIC or words[layout.H_BAD_FREES] != 0:
            raise CorruptionError(describe_broken(layout.BAD_HEADER))
        walks = (
            validate_buddy,
            validate_caches,
            validate_kept_blocks,
            validate_vmalloc,
            validate_pools,
            validate_budgets,
        )
        for walk in walks:
            status = int(walk(words))
            if status != layout.OK:
                raise CorruptionError(describe_broken(status))


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
    _DECAY (seconds, or ``none``).
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
            )
            _default[:] = [made]
        return _default[0]
