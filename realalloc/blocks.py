"""Blocks of an arena for Python: the kmalloc family, vmalloc, pages; taken and leased in one step, freed once.

Arguments are checked here once, status codes become exceptions here once. A request that finds nothing asks shrinkers where it
may, charges a budget where one is open, and says what there was and which knob to turn if all of that is not enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from realalloc import zones
from realalloc.budget import Budget
from realalloc.errors import OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_HIGH, GFP_KERNEL, GFP_NOFAIL, GFP_RETRY_MAYFAIL, GFP_ZERO, gfp_names
from realalloc.lease import (
    live_exporter,
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
from realalloc.memory import Memory
from realalloc.mm import layout
from realalloc.mm.kmalloc import ksize
from realalloc.mm.nofail import ASK_KMALLOC, ASK_PAGES, ASK_RUN, ASK_VMALLOC, could_serve
from realalloc.mm.reclaim import reclaim
from realalloc.payers import Blocks
from realalloc.shrinker import Shrinkers, insist
from realalloc.sizes import as_gfp, as_int

ZERO_SIZE_OFFSET = 16  # the kernel's ZERO_SIZE_PTR: inside the header, never a block


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


class BlockMethods:
    """What an arena takes and frees: the part of :class:`realalloc.Arena` that hands out memory."""

    if TYPE_CHECKING:
        kmalloc: Callable[..., memoryview]
        _leases: Any
        _memory: Memory
        _shrinkers: Shrinkers
        _blocks: Blocks
        _kmalloc_gate: Any
        _base: int
        _size: int

        @property
        def words(self) -> Any:
            """The arena's words."""

        def _check_open(self) -> None: ...

    def _take(self, what: str, verb: int, argument: int, gfp: int, length: int) -> memoryview:
        """Allocate and lease in one step, or raise what the status means."""
        words = self.words  # keeps the range mapped if another thread closes the arena now
        budget = self._blocks.current() if self._kmalloc_gate[0] == 0 else None
        if budget is not None:
            return self._take_charged(what, verb, argument, gfp, length, budget)
        found = self._attempt_hard(words, verb, argument, gfp, length)
        if found is None and gfp & GFP_NOFAIL and self._could_ever(verb, argument, gfp):
            found = insist(partial(self._attempt_hard, words, verb, argument, gfp | GFP_HIGH, length))
        if found is not None:
            return found
        del words
        self._check_open()
        raise self._refusal(what, verb, gfp, length)

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
        if found is None and gfp & GFP_NOFAIL and budget._could_fit(whole) and self._could_ever(verb, argument, gfp):
            gfp |= GFP_HIGH
            found = insist(lambda: attempt() or self._shrinkers.relieve(words, attempt, gfp, length))
        if found is None:
            self._check_open()
            raise self._refusal(what, verb, gfp, length, budget._refusal(whole, sure=True) if refused else None)
        if verb != VERB_NONE:
            budget._slow_down(gfp, length)
        return found

    def _could_ever(self, verb: int, argument: int, gfp: int) -> bool:
        """Tell whether an empty arena could serve a request that waits for its memory (GFP_NOFAIL)."""
        asked = {VERB_KMALLOC: ASK_KMALLOC, VERB_VMALLOC: ASK_VMALLOC, VERB_PAGES: ASK_PAGES, VERB_RUN: ASK_RUN}
        return verb in asked and could_serve(self.words, asked[verb], argument, gfp | GFP_HIGH) == 1

    def _refusal(self, what: str, verb: int, gfp: int, nbytes: int, budget: str | None = None) -> OutOfMemory:
        """Make the error of a request that came to nothing; ``budget``: why one has refused it."""
        whole = nbytes <= layout.PAGE_BYTES << int(self._memory.words[layout.H_MAX_ORDER])
        if verb in (VERB_PAGES, VERB_RUN) or (verb == VERB_KMALLOC and whole):
            return self._out_of_memory(what, gfp, nbytes, budget)
        return self._out_of_memory(what, gfp, 0, budget, mapped=verb in (VERB_KMALLOC, VERB_VMALLOC))

    def _attempt(self, verb: int, argument: int, gfp: int, length: int, tag: int = 0) -> memoryview | None:
        self._check_open()
        found = self._leases.attempt(self._base, verb, argument, gfp, length, tag or verb)
        return found if type(found) is memoryview else None

    def _attempt_hard(self, words: Any, verb: int, argument: int, gfp: int, length: int) -> memoryview | None:
        """Try once more, with the help of shrinkers."""
        found = self._attempt(verb, argument, gfp, length)
        if found is None and self._shrinkers:
            found = self._shrinkers.relieve(words, lambda: self._attempt(verb, argument, gfp, length), gfp, length)
        return found

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

    def _out_of_memory(
        self, what: str, gfp: int, nbytes: int = 0, refusal: str | None = None, *, mapped: bool = False
    ) -> OutOfMemory:
        why = refusal or zones.shortage(self._memory.words, gfp, nbytes, mapped=mapped)
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

        Shrinkers are asked for a contiguous block above a page with GFP_RETRY_MAYFAIL only (kernel: kmalloc_gfp_adjust).
        """
        nbytes, flags = as_int(size, "size"), as_gfp(gfp)
        if nbytes <= layout.PAGE_BYTES:
            return self._kmalloc(nbytes, flags)
        _words = self.words  # keeps the range mapped if another thread closes the arena now
        budget = self._blocks.current() if self._kmalloc_gate[0] == 0 else None
        tag = VERB_KMALLOC if budget is None else budget._tag(VERB_KMALLOC)
        found = self._attempt(VERB_KMALLOC, nbytes, flags, nbytes, tag)
        if found is None and flags & GFP_RETRY_MAYFAIL and self._shrinkers:

            def attempt() -> memoryview | None:
                return self._attempt(VERB_KMALLOC, nbytes, flags, nbytes, tag)

            found = self._shrinkers.relieve(_words, attempt, flags, nbytes)
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
        """Allocate up to ``n`` single pages: as many as there are, as in the kernel. GFP_NOFAIL waits for the first one."""
        made: list[Pages] = []
        for _ in range(as_int(n, "n")):
            try:
                made.append(self.alloc_pages(0, gfp))
            except OutOfMemory:
                break
            gfp &= ~GFP_NOFAIL
        return made

    def free_pages(self, pages: Pages) -> None:
        """Free pages; the view is released. InvalidFree if they were freed before."""
        if not isinstance(pages, Pages):
            raise TypeError(f"free_pages takes Pages, not {type(pages).__name__}")
        self._release(pages.view, (VERB_PAGES, VERB_RUN), "free_pages")
