"""Shared by the tests of kernels: what the words say, read without any kernel, and a model to compare them with."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from support import RawArena

from realalloc.mm.atomic import thread_identity
from realalloc.mm.drain import cached_objects
from realalloc.mm.kmem_cache import cache_create, cache_geometry
from realalloc.mm.layout import (
    AREA_WORDS,
    C_ALLOCS,
    C_BARN_FULL,
    C_FREES,
    C_NR_SLABS,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CACHE_WORDS,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_STOCK,
    D_TOP,
    DECAY,
    GRANULE_BYTES,
    H_ALLOCATED_PAGES,
    H_BLOCKS,
    H_CACHES,
    H_COMMITTED_PAGES,
    H_IDLE_RECORDS,
    H_LOCK,
    H_MAX_ORDER,
    H_MEMMAP,
    H_META_PAGES,
    H_MOBILITY,
    H_NR_CACHES,
    H_NR_RECORDS,
    H_NR_ZONES,
    H_POOLS,
    H_RESMAP,
    H_VM_AREAS,
    H_VM_FRONTIER,
    H_VM_LAZY_PAGES,
    H_VM_PAGES,
    H_VM_START_BYTES,
    H_VMAP,
    INFOS,
    KIND_MASK,
    KIND_RUN,
    KMALLOC_SIZES,
    M_HEADS,
    M_WORDS,
    MAX_STOCK_BYTES,
    MAX_STOCK_SHEAVES,
    NULL_RECORD,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_STRUCT_WORDS,
    PAGE_WORDS,
    PG_LINK,
    PG_MAP0,
    PRESSURE,
    PSI_TRIGGERS,
    R_NEXT,
    S_COUNT,
    S_NEXT,
    S_OBJECTS,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_SHARE_SHIFT,
    SHEAF_WORDS,
    STOCK_MASK,
    STOCK_SHIFT,
    T_INSIDE,
    T_KEPT,
    T_KEY,
    T_RECORD,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
    Y_CLEAN,
    Z_COUNTS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    Z_HEADS,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)
from realalloc.mm.mempool_life import pool_destroy, pool_resize
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.reclaim import reclaim, retreat, trim_span
from realalloc.mm.thread_exit import thread_ends
from realalloc.mm.threads import near_place

NR_INTERNAL = 2  # caches of free maps and of sheaves
CHILD = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"  # a child finds these files too


def zone_word(raw: RawArena, zone: int, field: int) -> int:
    """Read a field of a zone."""
    return int(raw.words[ZONES + zone * ZONE_WORDS + field])


def info_index(pfn: int) -> int:
    """Find the word that says what a page is."""
    return INFOS + pfn


def page_index(raw: RawArena, pfn: int) -> int:
    """Find a struct page."""
    return int(raw.words[H_MEMMAP]) + pfn * PAGE_STRUCT_WORDS


def page_info(raw: RawArena, pfn: int) -> int:
    """Read what a page is."""
    return int(raw.words[info_index(pfn)])


def page_kind(raw: RawArena, pfn: int) -> int:
    """Read the kind of a page."""
    return page_info(raw, pfn) & KIND_MASK


def block_pages(raw: RawArena, pfn: int) -> int:
    """Read the length of the block that begins at ``pfn``."""
    if page_kind(raw, pfn) == KIND_RUN:
        return int(raw.words[page_index(raw, pfn) + PG_MAP0])
    return 1 << (page_info(raw, pfn) >> ORDER_SHIFT & ORDER_MASK)


def free_blocks(raw: RawArena, zone: int = ZONE_NORMAL) -> set[tuple[int, int]]:
    """Walk the free lists of both types: (order, pfn) of every block on them."""
    found = set()
    groups = int(raw.words[H_MOBILITY]) + zone * M_WORDS
    for order in range(int(raw.words[H_MAX_ORDER]) + 1):
        count = 0
        heads = [ZONES + zone * ZONE_WORDS + Z_HEADS]
        if order < raw.words[ZONES + zone * ZONE_WORDS + Z_PAGE_BLOCK_ORDER]:
            heads.append(groups + M_HEADS)
        for head in heads:
            pfn = int(raw.words[head + order]) >> 32
            while pfn != 0:
                found.add((order, pfn))
                count += 1
                pfn = int(raw.words[page_index(raw, pfn) + PG_LINK]) >> 32
        assert count == zone_word(raw, zone, Z_COUNTS + order)
    return found


def is_committed(raw: RawArena, pfn: int) -> bool:
    """Whether a page may hold memory, by the map."""
    return bool(int(raw.words[raw.words[H_RESMAP] + pfn // 64]) >> pfn % 64 & 1)


def dirty_pages(raw: RawArena) -> set[int]:
    """Free pages that may hold memory, found on the lists."""
    return {p for order, pfn in free_blocks(raw) for p in range(pfn, pfn + (1 << order)) if is_committed(raw, p)}


def cut_into_blocks(free: Sequence[bool], start: int, max_order: int) -> set[tuple[int, int]]:
    """Say which blocks must be on the lists: of all buddies that are wholly free, the largest."""
    blocks = set()
    end = start + len(free)
    pfn = start
    while pfn < end:
        if not free[pfn - start]:
            pfn += 1
            continue
        order = max_order
        while pfn & ((1 << order) - 1) or pfn + (1 << order) > end or not all(free[pfn - start :][: 1 << order]):
            order -= 1
        blocks.add((order, pfn))
        pfn += 1 << order
    return blocks


def assert_coalesced(raw: RawArena, taken: Iterable[tuple[int, int]], zone: int = ZONE_NORMAL) -> None:
    """The free lists hold exactly what is not taken ((pfn, pages) pairs), merged as far as buddies can be."""
    start = zone_word(raw, zone, Z_START_PFN)
    free = [True] * (zone_word(raw, zone, Z_FRONTIER_PFN) - start)
    total = 0
    for pfn, pages in taken:
        assert pfn >= start
        assert all(free[pfn - start : pfn - start + pages])
        assert pfn + pages <= start + len(free)
        free[pfn - start : pfn - start + pages] = [False] * pages
        total += pages
    assert free_blocks(raw, zone) == cut_into_blocks(free, start, int(raw.words[H_MAX_ORDER]))
    assert zone_word(raw, zone, Z_FREE_PAGES) == len(free) - total


def blocks_that_fit(start: int, end: int, order: int) -> int:
    """Count the aligned blocks of an order inside ``[start, end)``."""
    size = 1 << order
    return max(0, end // size - -(-start // size))


def metadata(raw: RawArena) -> Any:
    """Copy all metadata: header, tables, maps, memmap; not how long anybody stalled, nor where nothing was found."""
    copied = raw.words[: int(raw.words[H_META_PAGES]) * PAGE_WORDS].copy()
    copied[PRESSURE : PRESSURE + PSI_TRIGGERS] = copied[DECAY + Y_CLEAN] = 0
    return copied


def assert_unchanged(raw: RawArena, before: Any) -> None:
    """Not one word of the metadata has changed."""
    changed = np.flatnonzero(metadata(raw) != before)
    assert changed.tolist() == []


def trim(raw: RawArena) -> int:
    """Do what ``Arena.trim`` does; return the pages that went back to the system."""
    reclaim(raw.words)
    given = raw.out()
    for zone in range(int(raw.words[H_NR_ZONES])):
        at = trim_span(raw.words, zone, 0, given)
        while at != 0:
            at = trim_span(raw.words, zone, at, given)
    retreat(raw.words, ZONE_NORMAL)
    return int(given[0])


def assert_pristine(raw: RawArena) -> None:
    """Nothing is allocated, and after one trim the arena is what it was at the start."""
    raw.validate()
    trim(raw)
    raw.validate()
    for field in (H_ALLOCATED_PAGES, H_COMMITTED_PAGES, H_BLOCKS, H_LOCK, H_POOLS, H_NR_RECORDS, H_IDLE_RECORDS):
        assert raw.words[field] == 0
    for field in (H_VM_AREAS, H_VM_PAGES, H_VM_LAZY_PAGES):
        assert raw.words[field] == 0
    assert raw.words[H_VM_FRONTIER] == 1
    for index in range(int(raw.words[H_NR_CACHES])):
        c = int(raw.words[H_CACHES]) + index * CACHE_WORDS
        assert raw.words[c + C_NR_SLABS] == 0
        assert raw.words[c + C_ALLOCS] == raw.words[c + C_FREES]
    for zone in range(int(raw.words[H_NR_ZONES])):
        assert_coalesced(raw, [], zone)
    assert zone_word(raw, ZONE_NORMAL, Z_FRONTIER_PFN) == zone_word(raw, ZONE_NORMAL, Z_START_PFN)
    assert free_blocks(raw) == set()


def zone_pages(raw: RawArena, zone: int = ZONE_NORMAL) -> int:
    """Count the pages of a zone."""
    return zone_word(raw, zone, Z_END_PFN) - zone_word(raw, zone, Z_START_PFN)


def octets(raw: RawArena, offset: int, nbytes: int) -> Any:
    """View bytes of the arena."""
    return raw.words.view(np.uint8)[offset : offset + nbytes]


_RAMP = (np.arange(1 << 21, dtype=np.uint32) * 167 + (np.arange(1 << 21, dtype=np.uint32) >> 8)).astype(np.uint8)


def pattern(seed: int, nbytes: int) -> Any:
    """Make bytes that tell seeds apart, and places too."""
    return _RAMP[:nbytes] + np.uint8((seed * 7919 + (seed >> 8)) & 255)


def write(raw: RawArena, offset: int, nbytes: int, seed: int) -> None:
    """Fill a block with the pattern of ``seed``."""
    octets(raw, offset, nbytes)[:] = pattern(seed, nbytes)


def holds(raw: RawArena, offset: int, nbytes: int, seed: int) -> bool:
    """Tell whether a block still has the pattern of ``seed``."""
    return bool(np.array_equal(octets(raw, offset, nbytes), pattern(seed, nbytes)))


def is_zero(raw: RawArena, offset: int, nbytes: int) -> bool:
    """Tell whether a block reads as zero."""
    return not octets(raw, offset, nbytes).any()


def area_record(raw: RawArena, offset: int) -> int:
    """Find the record of the granule that begins at an offset in the window."""
    granule = (offset - int(raw.words[H_VM_START_BYTES])) // GRANULE_BYTES
    return int(raw.words[H_VMAP]) + granule * AREA_WORDS


def class_size(nbytes: int, sizes: Sequence[int] = KMALLOC_SIZES) -> int:
    """Say which size class serves a request."""
    return next(size for size in sizes if size >= nbytes)


def class_cache(raw: RawArena, size: int, zone: int = ZONE_NORMAL) -> int:
    """Find the cache of a size class, behind the internal ones."""
    index = NR_INTERNAL + raw.sizes.index(size) + zone * len(raw.sizes)
    return int(raw.words[H_CACHES]) + index * CACHE_WORDS


def make_cache(raw: RawArena, nbytes: int = 64, align: int = 8, flags: int = 0, min_objects: int = 12) -> int:
    """Make a cache of the normal zone."""
    stride, order = cache_geometry(nbytes, align, raw.plan.max_order, min_objects)
    return int(cache_create(raw.words, nbytes, align, stride, order, flags, ZONE_NORMAL))


def field(raw: RawArena, at: int, name: int) -> int:
    """Read a field of a record or descriptor."""
    return int(raw.words[at + name])


def used(raw: RawArena, c: int) -> int:
    """Count objects that are in use for the slabs: those of users, and those in sheaves."""
    return field(raw, c, C_ALLOCS) - field(raw, c, C_FREES)


def cached(raw: RawArena, c: int) -> int:
    """Count objects of a cache that threads and barn keep."""
    return int(cached_objects(raw.words, field(raw, c, C_SHEAF) // SHEAF_DESC_WORDS))


def take_objects(raw: RawArena, c: int, count: int) -> list[int]:
    """Allocate objects of a cache, one by one."""
    taken = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count)]
    assert all(offset > 0 for offset in taken)
    return taken


def give_objects(raw: RawArena, c: int, offsets: list[int]) -> None:
    """Free objects of a cache, one by one."""
    for offset in offsets:
        assert kmem_cache_free(raw.words, c, offset) == 0


def slots(raw: RawArena) -> dict[int, int]:
    """Find the slots that threads have: word index by identity."""
    places = range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS)
    return {int(raw.words[at + T_KEY]): at for at in places if raw.words[at + T_KEY] != 0}


def idle_records(raw: RawArena) -> list[int]:
    """List the records that wait for a thread."""
    found = []
    record = int(raw.words[H_IDLE_RECORDS])
    while record != 0:
        found.append(record)
        record = int(raw.words[record + R_NEXT])
    return found


def records(raw: RawArena) -> list[int]:
    """List all records, of threads and idle ones."""
    kept = [int(raw.words[at + T_KEPT]) for at in slots(raw).values()]
    return [record for record in kept if record != NULL_RECORD] + idle_records(raw)


def main_sheaf(raw: RawArena, d: int) -> list[int]:
    """Read the main sheaf of a descriptor, the next to be popped last."""
    return raw.words[int(raw.words[d + D_BASE]) : int(raw.words[d + D_TOP]) + 1].tolist()


def spare_sheaf(raw: RawArena, d: int) -> list[int]:
    """Read the spare sheaf of a descriptor, the last one put last."""
    return raw.words[int(raw.words[d + D_PUT_BASE]) : int(raw.words[d + D_PUT]) + 1].tolist()


def barn(raw: RawArena, c: int) -> list[list[int]]:
    """Read the full sheaves in a cache's barn, the next to be taken first."""
    found = []
    sheaf = int(raw.words[c + C_BARN_FULL])
    while sheaf != 0:
        found.append(raw.words[sheaf + S_OBJECTS : sheaf + S_OBJECTS + int(raw.words[sheaf + S_COUNT])].tolist())
        sheaf = int(raw.words[sheaf + S_NEXT])
    return found


def stock(raw: RawArena, d: int) -> list[list[int]]:
    """Read the full sheaves in a descriptor's stock, the next to be taken first."""
    found = []
    sheaf = (int(raw.words[d + D_STOCK]) >> STOCK_SHIFT) * SHEAF_WORDS
    while sheaf != 0:
        found.append(raw.words[sheaf + S_OBJECTS : sheaf + S_OBJECTS + int(raw.words[sheaf + S_COUNT])].tolist())
        sheaf = int(raw.words[sheaf + S_NEXT])
    return found


def stock_empties(raw: RawArena, d: int) -> int:
    """Count the empty sheaves in a descriptor's stock."""
    count, sheaf = 0, (int(raw.words[d + D_STOCK]) & STOCK_MASK) * SHEAF_WORDS
    while sheaf != 0:
        count, sheaf = count + 1, int(raw.words[sheaf + S_NEXT])
    return count


def stock_room(raw: RawArena, c: int) -> int:
    """Return how many sheaves of a cache a stock may have, by the bytes of their objects."""
    full = int(raw.words[c + C_SHEAF_CAPACITY]) * int(raw.words[c + C_STRIDE_BYTES])
    return min(MAX_STOCK_SHEAVES, min(MAX_STOCK_BYTES, raw.plan.end_pfn << 12 >> SHEAF_SHARE_SHIFT) // full)


def kept_objects(raw: RawArena, c: int) -> list[int]:
    """List the objects of a cache in all sheaves, as often as they are there."""
    found = [offset for sheaf in barn(raw, c) for offset in sheaf]
    for record in records(raw) if raw.words[c + C_SHEAF] else []:
        d = record + int(raw.words[c + C_SHEAF])
        found += main_sheaf(raw, d) + spare_sheaf(raw, d) + [offset for sheaf in stock(raw, d) for offset in sheaf]
    return sorted(found)


def kept_blocks(raw: RawArena, order: int) -> list[int]:
    """List the pfns of the blocks of an order in all sheaves."""
    place = (SHEAF_BLOCKS + order) * SHEAF_DESC_WORDS
    found = [offset for record in records(raw) for offset in main_sheaf(raw, record + place)]
    found += [offset for record in records(raw) for offset in spare_sheaf(raw, record + place)]
    return sorted(offset >> 12 for offset in found)


@numba.njit(nogil=True)
def identity():
    """Say who the calling thread is."""
    return thread_identity()


@numba.njit(nogil=True)
def _near_place(key):
    return near_place(key)


def near_of(key: int) -> int:
    """Say where a thread looks for its slot first."""
    return int(_near_place(int(key)))


def own_record(raw: RawArena) -> int:
    """Find the record of the calling thread; NULL_RECORD if it has none."""
    slot = slots(raw).get(int(identity()))
    return NULL_RECORD if slot is None else int(raw.words[slot + T_KEPT])


def own(raw: RawArena, c: int) -> int:
    """Find the calling thread's descriptor for a cache."""
    return own_record(raw) + field(raw, c, C_SHEAF)


class Worker:
    """A thread that does what it is told, one thing at a time, while the caller waits."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.identity = int(self.do(identity))

    def _serve(self) -> None:
        while (order := self.orders.get()) is not None:
            work, args = order
            try:
                self.answers.put((work(*args), None))
            except BaseException as error:
                self.answers.put((None, error))

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """Have something done; return what comes back."""
        self.orders.put((work, args))
        answer, error = self.answers.get()
        if error is not None:
            raise error
        return answer

    def end(self, *arenas: RawArena) -> None:
        """End the thread, which gives up its slots in these arenas, as its destructor would."""
        for raw in arenas:
            assert self.do(thread_ends, raw.words, self.identity) == 0
        self.orders.put(None)
        self.thread.join()


ORDERINGS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "forward": lambda items: list(items),
    "backward": lambda items: items[::-1],
    "shuffled": lambda items: random.Random(7).sample(items, len(items)),
    "every other first": lambda items: items[::2] + items[1::2],
}


def destroy_pool(raw: RawArena, p: int, force: int = 0) -> int:
    """End a pool of memory: nothing is left to the face."""
    return int(pool_destroy(raw.words, p, force, np.zeros(1, np.int64)))


def resize_pool(raw: RawArena, p: int, min_nr: int) -> int:
    """Resize a pool of memory."""
    return int(pool_resize(raw.words, p, min_nr, np.zeros(1, np.int64)))


def touch(raw: RawArena, c: int, count: int = 1) -> list[int]:
    """Allocate and free: afterwards the thread has a record, if it can have one. Returns what was freed."""
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count)]
    assert [kmem_cache_free(raw.words, c, offset) for offset in live] == [0] * count
    return live


def slot_fields(raw: RawArena, key: int) -> list[int]:
    at = slots(raw)[key]
    return [int(raw.words[at + name]) for name in (T_INSIDE, T_RECORD, T_KEPT)]


@contextlib.contextmanager
def crowd(count: int, raw: RawArena) -> Iterator[list[Worker]]:
    made = [Worker() for _ in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            worker.end(raw)
