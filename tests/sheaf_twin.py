"""What one thread's sheaves of a cache should hold, in plain Python: the model of the tests of sheaf.py and stock.py."""

from __future__ import annotations

import itertools

from kernels import (
    barn,
    cached,
    field,
    main_sheaf,
    own,
    spare_sheaf,
    stock,
    stock_empties,
    stock_room,
    used,
)
from support import PAGE, RawArena

from realalloc.mm.kmem_cache import cache_drain
from realalloc.mm.layout import (
    BARN_SHARE_SHIFT,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    MAX_BARN_BYTES,
    MAX_BARN_SHEAVES,
    MAX_FILL_BYTES,
    MIN_BARN_BYTES,
    MIN_BARN_SHEAVES,
    MIN_SHEAF_OBJECTS,
    SMALL_BARN_BYTES,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.sheaf import FEW_SHIFT


def barn_room(raw: RawArena, c: int) -> int:
    """Sheaves that a barn keeps at most, by the bytes of their objects."""
    most = max(MAX_BARN_BYTES, SMALL_BARN_BYTES // field(raw, c, C_STRIDE_BYTES))
    nbytes = min(most, raw.plan.end_pfn * PAGE >> BARN_SHARE_SHIFT)
    full = field(raw, c, C_SHEAF_CAPACITY) * field(raw, c, C_STRIDE_BYTES)
    least = max(2, min(MIN_BARN_SHEAVES, MIN_BARN_BYTES // full))
    return max(least, min(nbytes // full, MAX_BARN_SHEAVES))


class Twin:
    """What one thread's sheaves of a cache should hold, step by step: the second paragraph of sheaf.py."""

    def __init__(self, raw: RawArena, c: int) -> None:
        self.raw, self.c = raw, c
        self.capacity = field(raw, c, C_SHEAF_CAPACITY)
        self.room = barn_room(raw, c)
        self.main: list[int] = []
        self.spare: list[int] = []
        self.barn: list[list[int]] = []
        self.spares = 0  # empty sheaves of the barn
        self.stock_room = stock_room(raw, c)
        self.stock: list[list[int]] = []
        self.empties = 0  # in stock
        self.live: list[int] = []

    def alloc(self) -> None:
        offset = int(kmem_cache_alloc(self.raw.words, self.c))
        if not self.main and len(self.spare) > self.capacity >> FEW_SHIFT:
            self.main, self.spare = self.spare, []
        elif not self.main and self.stock:
            self.main = self.stock.pop(0)
            self.empties += 1
        elif not self.main and self.barn:
            self.main = self.barn.pop(0)
            self.spares = min(self.spares + 1, self.room)
        elif not self.main:  # from the slabs: which objects is their business
            self.main = [*main_sheaf(self.raw, own(self.raw, self.c)), offset]
            most = min(self.capacity, max(MAX_FILL_BYTES // field(self.raw, self.c, C_STRIDE_BYTES), MIN_SHEAF_OBJECTS))
            assert 1 <= len(self.main) <= ((most + 1) // 2 if self.spare else most)
            assert not set(self.main) & set(self.live)
            grown = self.spares - MIN_BARN_SHEAVES
            if 0 <= grown < field(self.raw, self.c, C_FREES) / self.capacity and self.spares < self.room:
                self.spares += 1
        assert offset == self.main.pop()
        self.live.append(offset)

    def free(self, offset: int) -> None:
        self.live.remove(offset)
        assert kmem_cache_free(self.raw.words, self.c, offset) == 0
        if len(self.spare) == self.capacity:
            if not self.main:
                self.main, self.spare = self.spare, []
            elif self.empties or len(self.stock) < self.stock_room:
                self.spares = max(self.spares - 1, 0) if self.empties == 0 else self.spares
                self.empties = max(self.empties - 1, 0)
                self.stock.insert(0, self.spare)
                self.spare = []
            elif len(self.barn) < self.room and (self.spares or len(self.barn) < MIN_BARN_SHEAVES):
                self.spares = max(self.spares - 1, 0)
                self.barn.insert(0, self.spare)
                self.spare = []
            else:
                self.spare = []
        self.spare.append(offset)

    def drain(self) -> None:
        assert cache_drain(self.raw.words, self.c) == 0
        self.main, self.spare, self.barn, self.stock, self.empties = [], [], [], [], 0
        self.spares = 0

    @property
    def level(self) -> tuple[int, int, int]:
        return len(self.main), len(self.spare), len(self.barn)

    def check(self) -> None:
        raw, c = self.raw, self.c
        d = own(raw, c)
        assert (main_sheaf(raw, d), spare_sheaf(raw, d), barn(raw, c)) == (self.main, self.spare, self.barn)
        assert (stock(raw, d), stock_empties(raw, d)) == (self.stock, self.empties)
        kept = [*self.main, *self.spare, *itertools.chain(*self.barn, *self.stock)]
        assert len({*kept, *self.live}) == len(kept) + len(self.live) == used(raw, c)
        assert cached(raw, c) == len(kept)
        assert field(raw, c, C_NR_BARN_FULL) == len(self.barn)
        assert field(raw, c, C_NR_BARN_EMPTY) == self.spares <= self.room
