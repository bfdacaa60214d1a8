"""Decay as kswapd does it, a bounded step at a time: old lazy areas, what threads keep, dirty pages that outstay their time.

``decay_tick`` looks first, without the lock: the arena lock is taken, and its bias revoked, only where there is something to
give back. Each step holds it for no longer than DROP_PAGES take. Sheaves, kept blocks and empty slabs become free pages twice
in a decay time, and age like others from then on.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.backlog import purgeable_now, settle, surplus
from realalloc.mm.commit import DROP_PAGES, MIN_RUN_ORDER, purge
from realalloc.mm.drain import flush_barn_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmem_cache import shrink_all_locked
from realalloc.mm.layout import (
    C_NR_EMPTY,
    C_STATE,
    CACHE_LIVE,
    CACHE_WORDS,
    DECAY,
    DECAY_EPOCHS,
    H_BELL,
    H_CACHES,
    H_CLOSED,
    H_NR_CACHES,
    H_NR_RECORDS,
    H_VM_LAZY_PAGES,
    MAX_BARN_SHEAVES,
    OK,
    SHEAF_BLOCKS,
    SHEAF_OWNERS,
    Y_BACKLOG,
    Y_DRAINED,
    Y_EPOCH_NS,
    Y_EPOCHS,
    Y_LOW,
    Y_NS,
    Y_PENDING,
    Y_SERVED,
    Y_STUCK,
    Y_WANTED,
)
from realalloc.mm.lazy import is_lazy_old, purge_old_lazy_locked
from realalloc.mm.pressure import update_pressure
from realalloc.mm.prim import monotonic_ns
from realalloc.mm.reclaim import drain_locked

IDLE_NS = 250_000_000  # longest sleep
BRIEF_NS = 1_000_000  # shortest, but for none
DRAIN_SHEAVES = 64  # of a barn, flushed without letting go of the lock: 4000 objects, 10 ns each
AT_ONCE_NS = 100_000_000  # between two looks at what threads keep, where freed memory goes back at once


@kernel
def _is_anything_kept(words: Words) -> int:
    """Tell whether threads keep anything, or a cache has an empty slab."""
    kept = words[H_NR_RECORDS]
    for index in range(words[H_NR_CACHES]):
        c = words[H_CACHES] + index * CACHE_WORDS
        if words[c + C_STATE] == CACHE_LIVE:
            kept += words[c + C_NR_EMPTY]
    return 1 if kept != 0 else 0


@kernel
def _flush_barns(words: Words) -> None:
    """Empty the barns in steps, without a door shut; as many steps as a barn can have, as others may fill it meanwhile."""
    for index in range(1, SHEAF_BLOCKS):
        for _ in range(MAX_BARN_SHEAVES // DRAIN_SHEAVES):
            lock(words)
            c = words[SHEAF_OWNERS + index] if words[H_CLOSED] == 0 else 0
            flushed = flush_barn_locked(words, c, DRAIN_SHEAVES) if c != 0 else 0
            unlock(words)
            if flushed < DRAIN_SHEAVES:
                break


@kernel
def _drain_once_in_a_while(words: Words) -> None:
    """Turn what is kept for speed into free pages, twice in a decay time: freed objects in sheaves hold whole slabs."""
    if words[DECAY + Y_EPOCHS] - words[DECAY + Y_DRAINED] < DECAY_EPOCHS // 2:
        return
    words[DECAY + Y_DRAINED] = words[DECAY + Y_EPOCHS]
    words[DECAY + Y_STUCK] = 0
    if _is_anything_kept(words) == 1:
        _flush_barns(words)
        lock(words)
        drain_locked(words)
        shrink_all_locked(words)
        unlock(words)


@kernel
def _purge_step(words: Words) -> int:
    """Give back a part of what is pending; return 1 if more is left."""
    asked = min(words[DECAY + Y_PENDING], DROP_PAGES)
    purged = purge(words, asked, MIN_RUN_ORDER, 0)
    words[DECAY + Y_PENDING] = max(0, words[DECAY + Y_PENDING] - purged) if purged >= asked else 0
    settle(words, asked, purged)
    return 1 if words[DECAY + Y_PENDING] > 0 else 0


@entry
def decay_tick(words: Words, now_ns: int) -> int:
    """Do one step for an arena that wants it; return in how many ns the next one is due, 0 for at once."""
    update_pressure(words, now_ns)
    served = 1 if words[DECAY + Y_WANTED] != 0 and words[H_CLOSED] == 0 and words[DECAY + Y_NS] >= 0 else 0
    words[DECAY + Y_SERVED] = served
    if served == 0:
        return IDLE_NS
    step = max(BRIEF_NS, words[DECAY + Y_NS] // DECAY_EPOCHS) if words[DECAY + Y_NS] > 0 else AT_ONCE_NS
    if words[DECAY + Y_PENDING] > 0:
        if _purge_step(words) == 1:
            return 0
    else:
        words[DECAY + Y_PENDING] = surplus(words, now_ns)
        _drain_once_in_a_while(words)
        if words[DECAY + Y_PENDING] > 0:
            return 0
    if is_lazy_old(words) == 1:
        lock(words)
        pages = purge_old_lazy_locked(words)
        unlock(words)
        if pages > 0:
            return 0
    if purgeable_now(words) == 0 and words[H_VM_LAZY_PAGES] == 0 and _is_anything_kept(words) == 0:
        return IDLE_NS
    return min(IDLE_NS, max(BRIEF_NS, step - (now_ns - words[DECAY + Y_EPOCH_NS]) % step))


@entry
def set_decay(words: Words, decay_ns: int) -> int:
    """Set how long freed memory is kept, from now on; with 0 what is there goes back at once, < 0: never."""
    lock(words)
    words[DECAY + Y_NS] = decay_ns
    words[DECAY + Y_EPOCH_NS] = monotonic_ns()
    update_pressure(words, words[DECAY + Y_EPOCH_NS])
    words[DECAY + Y_STUCK] = 0
    words[DECAY + Y_PENDING] = 0
    for age in range(DECAY_EPOCHS):
        words[DECAY + Y_BACKLOG + age] = 0
    words[DECAY + Y_LOW] = 0  # what is dirty now is as young as can be
    while decay_ns == 0 and purge_old_lazy_locked(words) > 0:
        pass
    unlock(words)
    if decay_ns == 0:
        purge(words, purgeable_now(words), MIN_RUN_ORDER, 0)
    return OK


@entry
def serve(words: Words, wanted: int, bell: int) -> int:
    """Say whether kswapd is to serve this arena, and where to ring for it; it begins, or has ended, with its next step."""
    lock(words)
    words[DECAY + Y_WANTED] = wanted
    words[H_BELL] = bell
    if wanted == 0:
        words[DECAY + Y_SERVED] = 0
    unlock(words)
    return OK
