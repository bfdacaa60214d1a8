"""The whole public API against a model in Python: contents, lengths, who is free, who lingers, after every step."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from checks import address
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from support import JIT, MIB, PAGE

import realalloc as ra

SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([1, 8, 64, 96, 4095, 4096, 4097, 8192, 8193, 65_536, 65_537, 200_000, 3 * MIB]),
)
FLAGS = st.sampled_from([ra.GFP_KERNEL, ra.GFP_NOWAIT, ra.GFP_ATOMIC])


class Block:
    """One leased block: its views, the bytes they must show, and how it is freed."""

    def __init__(self, view: memoryview, free: Any, kind: str) -> None:
        self.view = view
        self.kind = kind
        self.free = free
        self.length = len(view)
        self.others: list[Any] = []  # slices and arrays
        self.freed = False
        self.lingers = False  # freed by a verb, not merely released
        self.bytes = b""

    def fill(self, seed: int) -> None:
        """Write something that no other block shows."""
        self.bytes = np.random.default_rng(seed).bytes(self.length)
        self.view[:] = self.bytes

    def check(self) -> None:
        """Every view shows what was written."""
        if not self.freed:
            assert len(self.view) == self.length and bytes(self.view) == self.bytes
        for low, other in self.others:
            assert bytes(other) == self.bytes[low : low + len(other)]


class Machine(RuleBasedStateMachine):
    """Blocks come and go; their views outlive them; nothing is ever shared, lost or miscounted."""

    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.arena = ra.Arena(2 * MIB, max_order=6)
        self.constructed: list[bytes] = []
        self.plain = self.arena.kmem_cache("plain", 200, align=16)
        self.ctor = self.arena.kmem_cache("ctor", 500, ctor=self._construct)
        self.pools = {
            "pool": self.arena.mempool(3, size=700),
            "cache pool": self.arena.mempool(2, cache=self.ctor),
            "page pool": self.arena.mempool(1, order=1, gfp=0),
            "large pool": self.arena.mempool(1, size=300_000),
        }
        self.live: list[Block] = []
        self.seed = 0

    def _construct(self, view: memoryview) -> None:
        view[-4:] = b"ctor"

    def _keep(self, made: Any, kind: str, free: Any) -> Block:
        view = made.view if isinstance(made, ra.Pages) else made
        block = Block(view, free, kind)
        low = address(view) if block.length else 0
        for other in self.live:
            for start, length in self._spans(other):
                assert not block.length or low + block.length <= start or start + length <= low, "blocks overlap"
        self.seed += 1
        if kind in ("ctor", "cache pool"):
            block.length -= 4
            assert bytes(view[-4:]) == b"ctor", "the constructed state is gone"
            block.view = view
            block.bytes = np.random.default_rng(self.seed).bytes(block.length) + b"ctor"
            view[:-4] = block.bytes[:-4]
            block.length += 4
        else:
            block.fill(self.seed)
        self.live.append(block)
        return block

    @staticmethod
    def _spans(block: Block) -> list[tuple[int, int]]:
        views = [] if block.freed else [block.view]
        views += [other for _, other in block.others]
        return [(address(view), len(view)) for view in views if len(view)]

    def _try(self, kind: str, free: Any, call: Any) -> Any:
        before = self._books()
        try:
            made = call()
        except ra.OutOfMemory as error:
            assert "free" in str(error) or "may not wait" in str(error) or "reserve" in str(error)
            assert self._books() == before, "a failure changed something"
            return multiple()
        return self._keep(made, kind, free)

    def _books(self) -> tuple[int, ...]:
        s = self.arena.stats()
        return (s.leases, s.lingering, s.live_objects, s.live_blocks, s.live_areas)

    # -- taking

    @rule(target=blocks, size=SIZES, gfp=FLAGS)
    def kmalloc(self, size: int, gfp: int) -> Any:
        return self._try("kmalloc", self.arena.kfree, lambda: self.arena.kmalloc(size, gfp))

    @rule(target=blocks, n=st.integers(0, 40), size=st.integers(0, 400), verb=st.sampled_from(["kzalloc", "kcalloc"]))
    def zeroed(self, n: int, size: int, verb: str) -> Any:
        def call() -> memoryview:
            made = self.arena.kcalloc(n, size) if verb == "kcalloc" else self.arena.kzalloc(n * size)
            assert bytes(made) == bytes(n * size)
            return made

        return self._try("kmalloc", self.arena.kfree, call)

    @rule(target=blocks, size=st.integers(1, 100_000), zero=st.booleans())
    def vmalloc(self, size: int, zero: bool) -> Any:
        def call() -> memoryview:
            made = self.arena.vzalloc(size) if zero else self.arena.vmalloc(size)
            assert not zero or bytes(made) == bytes(size)
            return made

        return self._try("vmalloc", self.arena.vfree, call)

    @rule(target=blocks, order=st.integers(0, 6))
    def alloc_pages(self, order: int) -> Any:
        return self._try("pages", None, lambda: self.arena.alloc_pages(order))

    @rule(target=blocks, size=st.integers(1, 400_000))
    def exact(self, size: int) -> Any:
        return self._try("pages", None, lambda: self.arena.alloc_pages_exact(size))

    @rule(target=blocks, n=st.integers(0, 8))
    def page_bulk(self, n: int) -> Any:
        return multiple(*(self._keep(made, "pages", None) for made in self.arena.alloc_pages_bulk(n)))

    @rule(target=blocks, which=st.sampled_from(["plain", "ctor"]), n=st.integers(0, 6))
    def cache_bulk(self, which: str, n: int) -> Any:
        cache = getattr(self, which)
        before = self._books()
        try:
            made = cache.alloc_bulk(n)
        except ra.OutOfMemory:
            assert self._books() == before
            return multiple()
        return multiple(*(self._keep(view, which, cache.free) for view in made))

    @rule(target=blocks, which=st.sampled_from(["pool", "cache pool", "page pool", "large pool"]), gfp=FLAGS)
    def pool_alloc(self, which: str, gfp: int) -> Any:
        pool = self.pools[which]
        had = pool.curr_nr
        before = self._books()
        try:
            made = pool.alloc(gfp, timeout=0)
        except (TimeoutError, ra.OutOfMemory) as error:
            assert had == 0, "the reserve was not used"
            assert isinstance(error, TimeoutError) == bool(gfp & ra.GFP_DIRECT_RECLAIM)
            assert self._books() == before
            return multiple()
        return self._keep(made, which, pool.free)

    # -- changing

    @rule(block=blocks, low=st.integers(0, 300), length=st.integers(0, 5000), array=st.booleans())
    def look(self, block: Block, low: int, length: int, array: bool) -> None:
        if not block.freed:
            part = block.view[low : low + length]
            block.others.append((min(low, block.length), np.frombuffer(part, np.uint8) if array else part))

    @rule(block=blocks)
    def rewrite(self, block: Block) -> None:
        if not block.freed and block.kind not in ("ctor", "cache pool"):
            self.seed += 1
            block.fill(self.seed)

    @rule(target=blocks, block=consumes(blocks), size=SIZES)
    def krealloc(self, block: Block, size: int) -> Any:
        if block.freed or block.kind not in ("kmalloc", "vmalloc"):
            before = self._books()
            with pytest.raises(ra.InvalidFree):
                self.arena.krealloc(block.view, size)
            assert self._books() == before
            return block
        usable = self.arena.ksize(block.view)
        old_at = address(block.view) if block.length else 0
        before = self._books()
        try:
            view = self.arena.krealloc(block.view, size)
        except ra.OutOfMemory:
            assert self._books() == before
            return block
        assert len(view) == size and bytes(view[: block.length]) == block.bytes[:size]
        if 0 < size <= usable:  # in place: the same block, and old views show the same bytes
            assert address(view) == old_at
            grown = Block(view, self.arena.kfree, block.kind)
            grown.others = [item for item in block.others if item[0] + len(item[1]) <= size]
            block.others = []
            self.seed += 1
            grown.fill(self.seed)
            self.live.remove(block)
            self.live.append(grown)
            return grown
        block.freed = True
        fresh = self._keep(view, "kmalloc", self.arena.kfree)
        self._bury(block, lingers=True)
        return fresh

    # -- freeing

    def _bury(self, block: Block, *, lingers: bool) -> None:
        block.freed = True
        block.lingers = lingers
        if not block.others:
            self.live.remove(block)

    @rule(block=consumes(blocks), how=st.sampled_from(["free", "free", "release", "drop"]))
    def free(self, block: Block, how: str) -> None:
        if block.freed:
            before = self._books()
            with pytest.raises(ra.InvalidFree):
                self.arena.kfree(block.view)
            assert self._books() == before
        elif how == "free" and block.kind != "pages":
            block.free(block.view)
            self._bury(block, lingers=True)
        else:
            block.view.release()
            self._bury(block, lingers=False)

    @rule(block=blocks, which=st.integers(0, 5))
    def drop_view(self, block: Block, which: int) -> None:
        if block.others:
            block.others.pop(which % len(block.others))
            if block.freed and not block.others and block in self.live:
                self.live.remove(block)

    @rule(block=blocks, data=st.data())
    def wrong_free(self, block: Block, data: Any) -> None:
        if block.freed or block.length < 2:
            return
        verbs = {
            "kmalloc": [self.arena.vfree, self.plain.free, self.pools["pool"].free],
            "vmalloc": [self.ctor.free, self.pools["pool"].free],
            "pages": [self.arena.kfree, self.arena.vfree, self.plain.free],
            "plain": [self.ctor.free, self.arena.vfree, self.pools["cache pool"].free],
            "ctor": [self.plain.free, self.pools["cache pool"].free],
        }
        free = data.draw(st.sampled_from(verbs.get(block.kind, [self.arena.kfree, self.arena.vfree, self.plain.free])))
        before = self._books()
        with pytest.raises(ra.InvalidFree):
            free(block.view)
        with pytest.raises(ra.InvalidFree):
            self.arena.kfree(block.view[1:])
        assert self._books() == before

    # -- the rest

    @rule()
    def trim(self) -> None:
        assert self.arena.trim() >= 0
        assert self.arena.stats().committed <= self.arena.stats().allocated

    @rule()
    def shrink(self) -> None:
        assert (self.plain.shrink() + self.ctor.shrink()) % PAGE == 0

    @rule(which=st.sampled_from(["pool", "cache pool", "page pool"]), min_nr=st.integers(0, 6))
    def resize(self, which: str, min_nr: int) -> None:
        self.pools[which].resize(min_nr)
        assert self.pools[which].min_nr == min_nr

    @precondition(lambda self: self.live)
    @rule()
    def destroy_in_use(self) -> None:
        for kind in {block.kind for block in self.live} & set(self.pools):
            with pytest.raises(BufferError):
                self.pools[kind].destroy()
        for cache in (self.plain, self.ctor):
            if any(getattr(self, block.kind, None) is cache for block in self.live):
                with pytest.raises(BufferError):
                    cache.destroy()

    # -- what must hold

    @initialize()
    def start(self) -> None:
        assert self.arena.stats().leases == 0

    @invariant()
    def whole(self) -> None:
        self.arena.validate()
        for block in self.live:
            block.check()
        s = self.arena.stats()
        assert s.leases == len(self.live)
        assert s.lingering == sum(block.lingers for block in self.live)
        assert s.free + s.allocated == s.limit
        for kind, pool in self.pools.items():
            stats = pool.stats()
            assert stats.outstanding == sum(block.kind == kind for block in self.live)

    def teardown(self) -> None:
        for block in self.live:  # the bundle still names the blocks
            block.view.release()
            block.others.clear()
        gc.collect()
        for pool in self.pools.values():
            pool.destroy()
        self.plain.destroy()
        self.ctor.destroy()
        self.arena.validate()
        self.arena.trim()
        s = self.arena.stats()
        assert (s.leases, s.lingering, s.live_objects, s.allocated, s.committed) == (0, 0, 0, 0, 0)
        self.arena.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60 if JIT else 12,
    stateful_step_count=50 if JIT else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
