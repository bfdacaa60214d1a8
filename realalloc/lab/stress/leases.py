"""A thread's work with the GIL: memoryviews, elements of pools, NumPy arrays; filled, held, re-read in full, and let go.

Blocks are let go in every way there is: freed by their verb, dropped, freed while another view lingers, reallocated, or
left in a cycle of references that only the collector finds. Before that each is read in full, by the pattern of its
identity.

Guarantees: ``taken`` and ``freed`` count as in :mod:`~realalloc.lab.stress.kernels`. A block is known to ``held`` or to a
local variable of one call, so that an exception between any two bytecodes (a signal's) loses nothing: the lease dies and
frees it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from realalloc.gfp import GFP_NOWAIT
from realalloc.lab.stress.kernels import FREED, FULL, LEASE, NUMPY, POOL, READ_WORDS, REALLOCS, STREAM, TAKEN
from realalloc.lab.stress.options import KINDS
from realalloc.lab.stress.pattern import as_words, base_of, fill, first_wrong, is_whole, tail_of, word_of
from realalloc.lab.stress.site import Site
from realalloc.sizes import format_bytes

WAITED_NS = 20_000  # a request that took longer has waited
LARGEST_ORDER = 3  # of blocks of pages
NAMED = 5  # of what is wrong, as text


class Held(NamedTuple):
    """A live block: what Python has of it, who it is, and how it goes back."""

    kind: int
    block: Any  # a memoryview or an array
    base: int
    nbytes: int
    sequence: int
    free: Callable[[Any], object] | None  # None: it goes by itself


class LeaseWork:
    """One thread's leases. ``errand`` is what it does while it holds an element that others may wait for."""

    def __init__(
        self, site: Site, kinds: Any, seed: int, counts: Any, slots: int, errand: Callable[[], object] | None = None
    ) -> None:
        """Begin with empty slots; ``kinds`` is a stream of LEASE, POOL and NUMPY."""
        self.site = site
        self.kinds = kinds
        self.counts = counts
        self.held: list[Held | None] = [None] * slots
        self.wrong: list[str] = []
        self.first_wrong_seconds: float | None = None
        self.waits = [0, 0, 0]  # how many, ns, the longest ns
        self._errand = errand
        self._dice = random.Random(seed)  # noqa: S311  # no secret
        self._number = 0
        self._arena = site.arena
        self._address = site.arena.address

    def turn(self) -> None:
        """Let the block of a slot go, and take another."""
        dice, site = self._dice, self.site
        slot = dice.randrange(len(self.held))
        old, self.held[slot] = self.held[slot], None
        number = dice.randrange(STREAM)
        kind, nbytes = int(self.kinds[number]), int(site.sizes[number])
        self._number += 1
        try:
            if old is not None:
                if old.free == self._arena.kfree and dice.random() < 0.1 and old.kind == LEASE:
                    self.held[slot] = self._regrow(old, nbytes)
                    return
                self._let_go(old)
                del old
            if kind == POOL and dice.random() < 0.75:
                self._borrow()
            else:
                self.held[slot] = self._take(kind, nbytes)
        except MemoryError:  # OutOfMemory, and NumPy's
            self.counts[FULL + kind] += 1

    def clear(self) -> None:
        """Re-read and let go all that is held."""
        for slot, held in enumerate(self.held):
            if held is not None:
                self.held[slot] = None
                self._let_go(held)

    # -- taking -----------------------------------------------------------------------------------------------------------

    def _take(self, kind: int, nbytes: int) -> Held:
        if kind == LEASE:
            block, free = self._take_lease(nbytes)
        elif kind == POOL:
            block, free = self.site.reserve.alloc(GFP_NOWAIT), self.site.reserve.free
        else:
            block, free = self._take_array(max(1, nbytes >> 3)), None
        return self._filled(kind, block, free)

    def _take_lease(self, nbytes: int) -> tuple[memoryview, Callable[[Any], object]]:
        arena, chance = self._arena, self._dice.random()
        if chance < 0.7:
            return arena.kmalloc(nbytes), arena.kfree
        if chance < 0.8:
            view = arena.kzalloc(nbytes)
            if np.frombuffer(view, np.uint8).any():
                self._note(f"kzalloc({nbytes}) does not read as zero")
            return view, arena.kfree
        if chance < 0.95:
            cache = self._dice.choice(self.site.caches)
            return cache.alloc(), cache.free
        if chance < 0.98:
            pages = arena.alloc_pages(self._dice.randint(0, LARGEST_ORDER))
            return pages.view, lambda _view: arena.free_pages(pages)
        return arena.vmalloc(nbytes), arena.vfree

    def _take_array(self, words: int) -> Any:
        if self._dice.random() < 0.7:
            return self._arena.empty(words, np.int64)
        assert self.site.numpy is not None
        with self.site.numpy:
            made = np.full(words, 3, np.int64) * 2 + 1  # temporaries that live in the arena, too
        if made[0] != 7 or made[-1] != 7:
            self._note(f"an expression over {words} words is not what it must be")
        return made

    def _filled(self, kind: int, block: Any, free: Callable[[Any], object] | None) -> Held:
        self.counts[TAKEN + kind] += 1
        if kind == NUMPY:
            offset, nbytes = block.__array_interface__["data"][0] - self._address, block.nbytes
            base = base_of(offset, nbytes, self._number)
            fill(block, base)
            return Held(kind, block, base, nbytes, self._number, free)
        offset, nbytes = block.obj.offset, len(block)
        base = base_of(offset, nbytes, self._number)
        if nbytes >= 8:
            fill(as_words(block), base)
        if nbytes & 7:
            block[nbytes & -8 :] = tail_of(base, nbytes >> 3, nbytes)
        return Held(kind, block, base, nbytes, self._number, free)

    def _borrow(self) -> None:
        """Take an element of the pool that has too few, waiting in the queue; do something else meanwhile; give it back."""
        begun = time.perf_counter_ns()
        element = self.site.bounded.alloc()
        waited = time.perf_counter_ns() - begun
        if waited > WAITED_NS:
            self.waits[0] += 1
            self.waits[1] += waited
            self.waits[2] = max(self.waits[2], waited)
        held = self._filled(POOL, element, self.site.bounded.free)
        del element
        if self._errand is not None:
            self._errand()
        self._read(held, held.block, held.nbytes)
        held.block.release()
        self.counts[FREED + POOL] += 1

    # -- letting go ---------------------------------------------------------------------------------------------------------

    def _let_go(self, held: Held) -> None:
        self._read(held, held.block, held.nbytes)
        chance = self._dice.random()
        if held.kind == NUMPY or chance < 0.2:
            pass  # the last reference, below
        elif chance < 0.3:
            cycle: list[Any] = [held.block]
            cycle.append(cycle)  # only a collection ends it
        elif chance < 0.4 and held.free is not None:
            part = held.block[: max(1, held.nbytes // 2)]
            held.free(held.block)
            self._read(held, part, len(part))  # it lingers: the memory is ours until this view is gone
        elif held.free is not None:
            held.free(held.block)
        self.counts[FREED + held.kind] += 1

    def _regrow(self, held: Held, nbytes: int) -> Held:
        self._read(held, held.block, held.nbytes)
        try:
            view = self._arena.krealloc(held.block, nbytes)
        except MemoryError:
            self.counts[FULL + LEASE] += 1
            return held
        self._read(held, view, min(held.nbytes, nbytes))
        self.counts[REALLOCS] += 1
        self.counts[FREED + LEASE] += 1
        return self._filled(LEASE, view, self._arena.kfree)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def _read(self, held: Held, block: Any, nbytes: int) -> None:
        """Read the first bytes of a block, every one of them."""
        words = nbytes >> 3
        self.counts[READ_WORDS] += words
        if words:
            seen = block if held.kind == NUMPY else as_words(block)
            if not is_whole(seen, held.base, words):
                k = first_wrong(seen, held.base, words)
                expected = word_of(held.base, k)
                self._note(f"{self._name(held)}: word {k} is {int(seen[k]):#x}, not {expected:#x}")
        if nbytes & 7 and bytes(block[nbytes & -8 : nbytes]) != tail_of(held.base, words, nbytes):
            self._note(f"{self._name(held)}: the last {nbytes & 7} bytes are wrong")

    def _name(self, held: Held) -> str:
        return f"{KINDS[held.kind]} block {held.sequence} of {format_bytes(held.nbytes)}"

    def _note(self, text: str) -> None:
        if self.first_wrong_seconds is None:
            self.first_wrong_seconds = self.site.seconds()
        if len(self.wrong) < NAMED:
            self.wrong.append(text)
