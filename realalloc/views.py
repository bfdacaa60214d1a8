"""Looking at an arena: immutable records, and text in the kernel's columns so that tools which parse /proc parse ours.

Reads words without the lock: each number is right, numbers of one snapshot may be a few operations apart.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from realalloc import fragmentation
from realalloc.gfp import GFP_DMA
from realalloc.mm import layout as at
from realalloc.mm.jit import Words
from realalloc.mm.residency import RES_COMMITTED, RES_METADATA, RES_PAGES, RES_STRAY, RES_WINDOW, RESIDENCY_WORDS
from realalloc.mm.residency import residency as look_at_pages
from realalloc.mm.sheaf import cached_objects
from realalloc.sizes import as_int, format_bytes

ZONE_NAMES = ("Normal", "DMA")
ORDERS_SHOWN = 11
PAGE = at.PAGE_BYTES
INTERNAL = ("freemap", "sheaf")  # caches whose objects are metadata


class Record:
    """Shared by the records: ``as_dict``."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class Stats(Record):
    """Where an arena's memory is, in bytes unless named otherwise."""

    size: int
    limit: int  # bytes of pages that may hold memory at one time
    metadata: int  # header, tables and memmap, reserved
    committed: int  # pages that may hold memory, metadata not counted
    peak_committed: int
    allocated: int  # pages in slabs, blocks and areas
    peak_allocated: int
    free: int
    largest_free: int  # largest block that one request for pages could get now
    unusable_index: (
        int  # thousandths of the ordinary zone's free pages that are in no block of 2 MiB (or the largest order)
    )
    slab: int
    slab_used: int  # objects in use
    vmalloc: int
    vmalloc_lazy: int  # freed areas that are kept mapped
    cached: int  # freed objects and blocks that threads keep for themselves
    empty_slabs: int  # slabs without objects, kept
    free_resident: int  # free pages that may hold memory:  committed = allocated + free_resident
    decayed: int  # went back to the system by decay so far
    live_objects: int
    live_blocks: int  # page blocks and large kmalloc
    live_areas: int
    leases: int  # blocks that Python holds
    lingering: int  # of them, those whose handle was freed while other views live
    page_allocs: int
    page_frees: int


@dataclass(frozen=True, slots=True)
class Residency(Record):
    """What the system says is resident, in bytes, beside the books: pages + window + untouched = committed + stray."""

    metadata: int
    pages: int  # of the zones
    window: int  # of vmalloc's areas
    committed: int  # may be resident, by the books
    untouched: int  # committed, but not resident: nobody has written there
    stray: int  # resident where the books have nothing: 0, unless somebody wrote into freed memory


@dataclass(frozen=True, slots=True)
class CacheStats(Record):
    """Objects and slabs of one cache."""

    name: str
    object_bytes: int
    stride_bytes: int
    align_bytes: int
    order: int
    objects_per_slab: int
    active_objects: int
    total_objects: int
    slabs: int
    partial_slabs: int
    empty_slabs: int
    allocs: int
    frees: int
    slab_allocs: int
    slab_frees: int
    order_fallbacks: int


@dataclass(frozen=True, slots=True)
class PoolStats(Record):
    """Where a pool's elements came from and went to."""

    min_nr: int
    curr_nr: int
    element_bytes: int
    outstanding: int
    waiters: int
    gets_reserve: int
    gets_alloc: int
    puts_reserve: int
    puts_free: int
    failures: int
    low: int  # fewest elements the reserve held since it was made or resized
    gets_wait: int  # of gets_reserve, those that waited
    refills: int  # elements that the backing allocator gave to the reserve, the first ones included
    peak_waiters: int
    injected_failures: int
    wait_p50_ns: int  # of requests that waited and were served, within a fifth
    wait_p99_ns: int
    wait_max_ns: int
    stall_some: float  # share of the pool's life in which at least one request waited
    stall_full: float  # in which no fewer requests waited than elements were out


def caches(words: Words) -> list[int]:
    """Return the word indices of all live caches."""
    every = (int(words[at.H_CACHES]) + k * at.CACHE_WORDS for k in range(int(words[at.H_NR_CACHES])))
    return [c for c in every if words[c + at.C_STATE] == at.CACHE_LIVE]


def set_cache_name(words: Words, c: int, raw: bytes) -> None:
    """Write a cache's name into its descriptor."""
    padded = raw.ljust(at.CACHE_NAME_BYTES, b"\0")
    for k in range(at.CACHE_NAME_BYTES // at.WORD_BYTES):
        words[c + at.C_NAME + k] = int.from_bytes(padded[8 * k : 8 * k + 8], "little", signed=True)


def _kmalloc_name(words: Words, c: int) -> str | None:
    index = (c - int(words[at.H_CACHES])) // at.CACHE_WORDS
    if index < len(INTERNAL):
        return INTERNAL[index]
    family, k = divmod(index - len(INTERNAL), len(at.KMALLOC_SIZES))
    if family >= int(words[at.H_NR_ZONES]):
        return None
    size = at.KMALLOC_SIZES[k]
    text = f"{size // 1024}k" if size >= 1024 else str(size)
    return ("kmalloc-", "dma-kmalloc-")[family] + text


def cache_name(words: Words, c: int) -> str:
    """Return a cache's name."""
    own = _kmalloc_name(words, c)
    if own is not None:
        return own
    raw = words[c + at.C_NAME : c + at.CACHE_WORDS].tobytes()
    return raw.rstrip(b"\0").decode()


def cache_names(words: Words) -> set[str]:
    """Return the names of all live caches."""
    return {cache_name(words, c) for c in caches(words)}


def cached_objects_of(words: Words, c: int) -> int:
    """Count objects of a cache that are free, but in a thread's sheaf or in the barn."""
    index = int(words[c + at.C_SHEAF]) // at.SHEAF_DESC_WORDS
    return int(cached_objects(words, index)) if index else 0


def cache_stats(words: Words, c: int) -> CacheStats:
    """Read one cache's descriptor."""
    field = [int(value) for value in words[c : c + at.C_NAME]]
    per_slab = field[at.C_OBJECTS]
    return CacheStats(
        name=cache_name(words, c),
        object_bytes=field[at.C_OBJECT_BYTES],
        stride_bytes=field[at.C_STRIDE_BYTES],
        align_bytes=field[at.C_ALIGN_BYTES],
        order=field[at.C_ORDER],
        objects_per_slab=per_slab,
        active_objects=field[at.C_ALLOCS] - field[at.C_FREES] - cached_objects_of(words, c),
        total_objects=field[at.C_NR_SLABS] * per_slab,
        slabs=field[at.C_NR_SLABS],
        partial_slabs=field[at.C_NR_PARTIAL],
        empty_slabs=field[at.C_NR_EMPTY],
        allocs=field[at.C_ALLOCS],
        frees=field[at.C_FREES],
        slab_allocs=field[at.C_SLAB_ALLOCS],
        slab_frees=field[at.C_SLAB_FREES],
        order_fallbacks=field[at.C_ORDER_FALLBACK],
    )


def pool_stats(words: Words, p: int) -> PoolStats:
    """Read one pool's descriptor."""
    field = [int(value) for value in words[p : p + at.POOL_WORDS]]
    gets = field[at.P_GETS_RESERVE] + field[at.P_GETS_ALLOC]
    return PoolStats(
        min_nr=field[at.P_MIN_NR],
        curr_nr=field[at.P_CURR_NR],
        element_bytes=field[at.P_ELEMENT_BYTES],
        outstanding=gets - field[at.P_PUTS_RESERVE] - field[at.P_PUTS_FREE],
        waiters=field[at.P_WAITERS],
        gets_reserve=field[at.P_GETS_RESERVE],
        gets_alloc=field[at.P_GETS_ALLOC],
        puts_reserve=field[at.P_PUTS_RESERVE],
        puts_free=field[at.P_PUTS_FREE],
        failures=field[at.P_FAILS],
        low=field[at.P_LOW],
        gets_wait=field[at.P_GETS_WAIT],
        refills=field[at.P_REFILLS],
        peak_waiters=field[at.P_PEAK_WAITERS],
        injected_failures=field[at.P_FAILED],
        wait_p50_ns=_wait_quantile(field, 0.5),
        wait_p99_ns=_wait_quantile(field, 0.99),
        wait_max_ns=field[at.P_MAX_WAIT_NS],
        stall_some=_share(field, at.P_SOME_NS),
        stall_full=_share(field, at.P_FULL_NS),
    )


def _share(field: list[int], name: int) -> float:
    return min(1.0, field[name] / max(1, time.monotonic_ns() - field[at.P_MADE_NS]))


def _wait_quantile(field: list[int], share: float) -> int:
    """Return the upper bound of the bucket that has this share of all waits below it, at most the longest wait; 0: none."""
    counts = field[at.P_WAIT_COUNTS : at.P_WAIT_COUNTS + at.WAIT_BUCKETS]
    left = share * sum(counts)
    for bucket, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            octave, quarter = divmod(bucket, 4)
            return min(((5 + quarter) << (octave + at.WAIT_SHIFT)) >> 2, field[at.P_MAX_WAIT_NS])
    return 0


def set_failing(words: Words, p: int, probability: float, interval: int, times: int, seed: int) -> None:
    """Write a pool's fault injection into its descriptor."""
    if not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], not {probability!r}")
    every = as_int(interval, "interval", 1)
    left = as_int(times, "times", -1)
    words[p + at.P_FAIL_TIMES] = 0
    words[p + at.P_FAIL_BELOW] = int(probability * (1 << at.FAIL_BITS))
    words[p + at.P_FAIL_INTERVAL] = every
    words[p + at.P_FAIL_CALLS] = 0
    words[p + at.P_FAIL_STATE] = as_int(seed, "seed") & 0x7FFFFFFF
    words[p + at.P_FAIL_TIMES] = left if probability else 0


def _zone(words: Words, zone: int) -> list[int]:
    start = at.ZONES + zone * at.ZONE_WORDS
    return [int(value) for value in words[start : start + at.ZONE_WORDS]]


def zone_free_pages(words: Words, zone: int) -> int:
    """Count pages of a zone that can be had: listed, and behind the frontier, as many as the limit admits."""
    z = _zone(words, zone)
    free = z[at.Z_FREE_PAGES] + z[at.Z_END_PFN] - z[at.Z_FRONTIER_PFN]
    return free if zone == at.ZONE_DMA else max(0, min(free, limit_pages(words) - used_pages(words)))


def zone_pages(words: Words, zone: int) -> int:
    """Count the pages of a zone that may hold memory at one time."""
    z = _zone(words, zone)
    pages = z[at.Z_END_PFN] - z[at.Z_START_PFN]
    return pages if zone == at.ZONE_DMA else min(pages, limit_pages(words))


def limit_pages(words: Words) -> int:
    """Return how many pages of the normal zone may hold memory."""
    return int(words[at.H_LIMIT_PAGES]) - _locked_pages(words)


def _locked_pages(words: Words) -> int:
    return int(words[at.ZONES + at.Z_START_PFN]) - int(words[at.H_META_PAGES])


def used_pages(words: Words) -> int:
    """Return how many pages of the normal zone are allocated."""
    return int(words[at.H_ALLOCATED_PAGES]) - _locked_pages(words) + _zone(words, at.ZONE_DMA)[at.Z_FREE_PAGES]


def dirty_pages(words: Words) -> int:
    """Return how many free pages of the normal zone may hold memory."""
    return max(0, int(words[at.H_COMMITTED_PAGES]) - _locked_pages(words) - used_pages(words))


def residency(words: Words) -> Residency:
    """Ask the system about every page that was ever reached."""
    out = np.zeros(RESIDENCY_WORDS, np.int64)
    look_at_pages(words, out)
    named = (RES_METADATA, RES_PAGES, RES_WINDOW, RES_COMMITTED, RES_STRAY)
    metadata, pages, window, committed, stray = (int(out[word]) * PAGE for word in named)
    return Residency(metadata, pages, window, committed, committed + stray - pages - window, stray)


def _free_before(words: Words, start: int, pfn: int, max_order: int) -> int:
    """Return the order of the free block that ends at a pfn which is no end of a largest block, -1 if there is none."""
    for order in range(min(max_order, (pfn & -pfn).bit_length())):
        begin = pfn - (1 << order)
        info = int(words[at.MEMMAP + begin * at.PAGE_STRUCT_WORDS + at.PG_INFO]) if begin >= start else 0
        wanted = at.KIND_FREE | order << at.ORDER_SHIFT
        if pfn & ((1 << max_order) - 1) and info & (at.KIND_MASK | at.ORDER_MASK << at.ORDER_SHIFT) == wanted:
            return order
    return -1


def free_blocks(words: Words, zone: int) -> list[int]:
    """Count free blocks by order; pages behind the frontier count as the blocks they will become."""
    z = _zone(words, zone)
    orders = int(words[at.H_MAX_ORDER]) + 1
    counts = z[at.Z_COUNTS : at.Z_COUNTS + orders]
    pfn, limit = z[at.Z_FRONTIER_PFN], z[at.Z_END_PFN]
    while pfn < limit and (order := _free_before(words, z[at.Z_START_PFN], pfn, orders - 1)) >= 0:
        counts[order] -= 1  # it will merge with pages that are not reached yet
        pfn -= 1 << order
    while pfn < limit:
        order = min(orders - 1, (pfn & -pfn).bit_length() - 1, (limit - pfn).bit_length() - 1)
        many = (limit - pfn) >> order if order == orders - 1 else 1
        counts[order] += many
        pfn += many << order
    return counts


def largest_free(words: Words, zone: int) -> int:
    """Return the bytes of the largest block that can be had now, from lists and frontier, under the limit."""
    return fragmentation.largest_block(free_blocks(words, zone), zone_free_pages(words, zone)) * PAGE


def kept_blocks(words: Words) -> list[int]:
    """Count the page blocks that threads keep, by order."""
    return [int(cached_objects(words, at.SHEAF_BLOCKS + order)) for order in range(at.SHEAF_BLOCK_ORDERS)]


def live_blocks(words: Words) -> int:
    """Count page blocks that users have: not those that threads keep."""
    return int(words[at.H_BLOCKS]) - sum(kept_blocks(words))


def stats(words: Words, size: int) -> Stats:
    """Read the header and the caches."""
    zones = range(int(words[at.H_NR_ZONES]))
    every = [cache_stats(words, c) for c in caches(words)]
    slab_pages = sum(s.slabs << s.order for s in every)
    return Stats(
        size=size,
        limit=limit_pages(words) * PAGE,
        metadata=int(words[at.H_META_PAGES]) * PAGE,
        committed=int(words[at.H_COMMITTED_PAGES]) * PAGE,
        peak_committed=int(words[at.H_PEAK_COMMITTED_PAGES]) * PAGE,
        allocated=int(words[at.H_ALLOCATED_PAGES]) * PAGE,
        peak_allocated=int(words[at.H_PEAK_ALLOCATED_PAGES]) * PAGE,
        free=sum(zone_free_pages(words, zone) for zone in zones) * PAGE,
        largest_free=max(largest_free(words, zone) for zone in zones),
        unusable_index=_unusable(words),
        slab=slab_pages * PAGE,
        slab_used=sum(s.active_objects * s.object_bytes for s in every),
        vmalloc=int(words[at.H_VM_PAGES]) * PAGE,
        vmalloc_lazy=int(words[at.H_VM_LAZY_PAGES]) * PAGE,
        cached=sum(cached_objects_of(words, c) * int(words[c + at.C_STRIDE_BYTES]) for c in caches(words))
        + sum(count * (PAGE << order) for order, count in enumerate(kept_blocks(words))),
        empty_slabs=sum(s.empty_slabs << s.order for s in every) * PAGE,
        free_resident=dirty_pages(words) * PAGE,
        decayed=int(words[at.DECAY + at.Y_PURGED]) * PAGE,
        live_objects=sum(s.active_objects for s in every if s.name not in INTERNAL),
        live_blocks=live_blocks(words),
        live_areas=int(words[at.H_VM_AREAS]),
        leases=int(words[at.H_LEASES]),
        lingering=int(words[at.H_LINGERING]),
        page_allocs=sum(_zone(words, zone)[at.Z_ALLOCS] for zone in zones),
        page_frees=sum(_zone(words, zone)[at.Z_FREES] for zone in zones),
    )


def _unusable(words: Words) -> int:
    return fragmentation.indices(free_blocks(words, at.ZONE_NORMAL))[1][min(at.HUGE_ORDER, int(words[at.H_MAX_ORDER]))]


def report_fragmentation(words: Words) -> fragmentation.Fragmentation:
    """Survey zones, window and slabs."""
    return fragmentation.fragmentation(words, ZONE_NAMES, {c: cache_name(words, c) for c in caches(words)})


def _index_lines(words: Words, which: int) -> str:
    lines = []
    for zone in range(int(words[at.H_NR_ZONES]) - 1, -1, -1):
        every = fragmentation.indices(free_blocks(words, zone))[which]
        columns = "".join(f"{fragmentation.thousandths(index)} " for index in every)
        lines.append(f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} {columns}\n")
    return "".join(lines)


def extfrag_index(words: Words) -> str:
    """Say why requests of each order fail, a line a zone, as /sys/kernel/debug/extfrag/extfrag_index."""
    return _index_lines(words, 0)


def unusable_index(words: Words) -> str:
    """Share of free pages of no use to each order, a line a zone, as /sys/kernel/debug/extfrag/unusable_index."""
    return _index_lines(words, 1)


def shortage(words: Words, gfp: int, nbytes: int = 0) -> str:
    """Say what is free, and which knob to turn: the second half of an OutOfMemory. ``nbytes``: contiguous bytes wanted."""
    zone = at.ZONE_DMA if gfp & GFP_DMA else at.ZONE_NORMAL
    if zone >= words[at.H_NR_ZONES]:
        return "this arena has no locked zone; make it with Arena(..., lock=bytes)"
    z = _zone(words, zone)
    free = zone_free_pages(words, zone) * PAGE
    most = zone_pages(words, zone) * PAGE
    if zone == at.ZONE_DMA:
        knob = "raise lock="
    else:
        bound = limit_pages(words) < z[at.Z_END_PFN] - z[at.Z_START_PFN]
        knob = "raise limit= or set_limit()" if bound else "raise the arena's size"
    held = int(words[at.H_LEASES])
    return (
        f"{format_bytes(free)} of {format_bytes(most)} free in zone {ZONE_NAMES[zone]}"
        f"{fragmentation.why(free_blocks(words, zone), nbytes) if nbytes <= free else ''}, largest block "
        f"{format_bytes(largest_free(words, zone))}, {held} buffers leased to Python; free some, or {knob}"
    )


def leases_report(words: Words) -> str:
    """Say what is out when an arena is closed."""
    every = [cache_stats(words, c) for c in caches(words)]
    parts = [f"{s.name}: {s.active_objects}" for s in every if s.active_objects and s.name not in INTERNAL]
    if live_blocks(words):
        parts.append(f"page blocks: {live_blocks(words)}")
    if words[at.H_VM_AREAS]:
        parts.append(f"vmalloc areas: {int(words[at.H_VM_AREAS])}")
    return ", ".join(parts) or "zero-size buffers"


def buddyinfo(words: Words) -> str:
    """Free blocks by order, a line a zone, as /proc/buddyinfo; as many columns as the arena has orders, at least 11."""
    lines = []
    for zone in range(int(words[at.H_NR_ZONES]) - 1, -1, -1):
        counts = free_blocks(words, zone)
        counts += [0] * (ORDERS_SHOWN - len(counts))
        lines.append(f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} " + "".join(f"{count:6d} " for count in counts) + "\n")
    return "".join(lines)


def pagetypeinfo(words: Words) -> str:
    """Free blocks by migrate type, as /proc/pagetypeinfo. Every page here is Unmovable: nothing can be migrated."""
    block_order = min(at.HUGE_ORDER, int(words[at.H_MAX_ORDER]))
    orders = max(ORDERS_SHOWN, int(words[at.H_MAX_ORDER]) + 1)
    text = f"Page block order: {block_order}\nPages per block:  {1 << block_order}\n\n"
    text += f"{'Free pages count per migrate type at order':<43} " + "".join(f"{k:6d} " for k in range(orders)) + "\n"
    rows = range(int(words[at.H_NR_ZONES]) - 1, -1, -1)
    for zone in rows:
        counts = free_blocks(words, zone)
        counts += [0] * (orders - len(counts))
        text += f"Node {0:4d}, zone {ZONE_NAMES[zone]:>8}, type {'Unmovable':>12} "
        text += "".join(f"{'>' if count >= 100000 else ''}{min(count, 100000):6d} " for count in counts) + "\n"
    text += f"\n{'Number of blocks type ':<23}{'Unmovable':>12} \n"
    for zone in rows:
        z = _zone(words, zone)
        blocks = -(-(z[at.Z_END_PFN] - z[at.Z_START_PFN]) >> block_order)
        text += f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} {max(1, -blocks if blocks < 0 else blocks):12d} \n"
    return text


def slabinfo(words: Words) -> str:
    """Caches, as /proc/slabinfo version 2.1."""
    text = "slabinfo - version: 2.1\n"
    text += "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    text += " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
    for c in caches(words):
        s = cache_stats(words, c)
        text += f"{s.name:<17} {s.active_objects:6d} {s.total_objects:6d} {s.stride_bytes:6d} "
        text += f"{s.objects_per_slab:4d} {1 << s.order:4d} : tunables {0:4d} {0:4d} {0:4d} : slabdata "
        text += f"{s.slabs - s.empty_slabs:6d} {s.slabs:6d} {0:6d}\n"
    return text


def vmallocinfo(words: Words) -> str:
    """Areas with their guard pages, as /proc/vmallocinfo; addresses are offsets in the arena."""
    text = ""
    granule = 1
    while granule < words[at.H_VM_FRONTIER]:
        area = int(words[at.H_VMAP]) + granule * at.AREA_WORDS
        kind = int(words[area + at.V_INFO]) & at.AREA_KIND_MASK
        if kind in (at.AREA_LIVE, at.AREA_LAZY):
            pages = int(words[area + at.V_PAGES])
            start = int(words[at.H_VM_START_BYTES]) + (granule << at.GRANULE_SHIFT)
            nbytes = (pages + 1) * PAGE
            what = f"realalloc pages={pages} vmalloc N0={pages}" if kind == at.AREA_LIVE else "unpurged vm_area"
            text += f"0x{start:016x}-0x{start + nbytes:016x} {nbytes:7d} {what}\n"
        granule += int(words[area + at.V_INFO]) >> at.AREA_GRANULES_SHIFT
    return text


def meminfo(words: Words) -> str:
    """Totals, as /proc/meminfo."""
    s = stats(words, int(words[at.H_END_PFN]) * PAGE)
    managed = s.size - s.metadata
    empty = sum(c.empty_slabs << c.order for c in (cache_stats(words, c) for c in caches(words))) * PAGE
    rows = {
        "MemTotal": managed,
        "MemFree": s.free,
        "MemAvailable": s.free + s.vmalloc_lazy + empty,
        "Mlocked": (int(words[at.ZONES + at.ZONE_WORDS + at.Z_END_PFN]) - s.metadata // PAGE) * PAGE,
        "Slab": s.slab,
        "SReclaimable": empty,
        "SUnreclaim": s.slab - empty,
        "CommitLimit": s.limit,
        "Committed_AS": s.committed,
        "VmallocTotal": int(words[at.H_VM_GRANULES]) << at.GRANULE_SHIFT,
        "VmallocUsed": s.vmalloc,
        "VmallocChunk": 0,
    }
    return "".join(f"{name + ':':<16}{value // 1024:8d} kB\n" for name, value in rows.items())
