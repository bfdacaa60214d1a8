"""Looking at an arena: its words as the records of :mod:`realalloc.records`.

Reads words without the lock: each number is right, numbers of one snapshot may be a few operations apart. Who is the only one
at work reads what is in use exactly, whatever kswapd does meanwhile.
"""

from __future__ import annotations

import time

import numpy as np

from realalloc import fragmentation
from realalloc.mm import layout as at
from realalloc.mm.drain import cached_objects
from realalloc.mm.jit import Words
from realalloc.mm.residency import RES_COMMITTED, RES_METADATA, RES_PAGES, RES_STRAY, RES_WINDOW, RESIDENCY_WORDS
from realalloc.mm.residency import residency as look_at_pages
from realalloc.records import CacheStats, PoolStats, Residency, Stats
from realalloc.sizes import as_int
from realalloc.zones import (
    PAGE,
    SETTLE_TRIES,
    ZONE_NAMES,
    dirty_pages,
    free_blocks,
    kept_blocks,
    largest_free,
    limit_pages,
    live_blocks,
    zone_free_pages,
    zone_words,
)

INTERNAL = ("freemap", "sheaf")  # caches whose objects are metadata


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
    family = (index - len(INTERNAL)) // int(words[at.H_NR_CLASSES])
    if family >= int(words[at.H_NR_ZONES]):
        return None
    size = int(words[c + at.C_OBJECT_BYTES])
    text = str(size) if size % 1024 else f"{size // 1024}k"
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


def _counts(words: Words, c: int) -> tuple[list[int], int]:
    """Read a cache's descriptor, and count its objects in sheaves, of one moment: kswapd may drain these in between."""
    field, kept = [0] * at.C_NAME, 0
    for _ in range(SETTLE_TRIES):
        field = [int(value) for value in words[c : c + at.C_NAME]]
        kept = cached_objects_of(words, c)
        if field[at.C_ALLOCS] == words[c + at.C_ALLOCS] and field[at.C_FREES] == words[c + at.C_FREES]:
            break
    return field, kept


def cache_stats(words: Words, c: int) -> CacheStats:
    """Read one cache's descriptor."""
    field, kept = _counts(words, c)
    per_slab = field[at.C_OBJECTS]
    return CacheStats(
        name=cache_name(words, c),
        object_bytes=field[at.C_OBJECT_BYTES],
        stride_bytes=field[at.C_STRIDE_BYTES],
        align_bytes=field[at.C_ALIGN_BYTES],
        order=field[at.C_ORDER],
        objects_per_slab=per_slab,
        active_objects=field[at.C_ALLOCS] - field[at.C_FREES] - kept,
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


def residency(words: Words) -> Residency:
    """Ask the system about every page that was ever reached."""
    out = np.zeros(RESIDENCY_WORDS, np.int64)
    look_at_pages(words, out)
    named = (RES_METADATA, RES_PAGES, RES_WINDOW, RES_COMMITTED, RES_STRAY)
    metadata, pages, window, committed, stray = (int(out[word]) * PAGE for word in named)
    return Residency(metadata, pages, window, committed, committed + stray - pages - window, stray)


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
        min_free=zone_words(words, at.ZONE_NORMAL)[at.Z_MIN_PAGES] * PAGE,
        low_free=zone_words(words, at.ZONE_NORMAL)[at.Z_LOW_PAGES] * PAGE,
        high_free=zone_words(words, at.ZONE_NORMAL)[at.Z_HIGH_PAGES] * PAGE,
        kswapd_wakes=zone_words(words, at.ZONE_NORMAL)[at.Z_WAKES],
        live_objects=sum(s.active_objects for s in every if s.name not in INTERNAL),
        live_blocks=live_blocks(words),
        live_areas=int(words[at.H_VM_AREAS]),
        leases=int(words[at.H_LEASES]),
        lingering=int(words[at.H_LINGERING]),
        page_allocs=sum(zone_words(words, zone)[at.Z_ALLOCS] for zone in zones),
        page_frees=sum(zone_words(words, zone)[at.Z_FREES] for zone in zones),
    )


def _unusable(words: Words) -> int:
    return fragmentation.indices(free_blocks(words, at.ZONE_NORMAL))[1][min(at.HUGE_ORDER, int(words[at.H_MAX_ORDER]))]


def report_fragmentation(words: Words) -> fragmentation.Fragmentation:
    """Survey zones, window and slabs."""
    return fragmentation.fragmentation(words, ZONE_NAMES, {c: cache_name(words, c) for c in caches(words)})


def leases_report(words: Words) -> str:
    """Say what is out when an arena is closed."""
    every = [cache_stats(words, c) for c in caches(words)]
    parts = [f"{s.name}: {s.active_objects}" for s in every if s.active_objects and s.name not in INTERNAL]
    if live_blocks(words):
        parts.append(f"page blocks: {live_blocks(words)}")
    if words[at.H_VM_AREAS]:
        parts.append(f"vmalloc areas: {int(words[at.H_VM_AREAS])}")
    return ", ".join(parts) or "zero-size buffers"
