"""kswapd's other task: an arena that was woken below its low mark is brought up to the high one (kernel: balance_pgdat).

What is kept for speed becomes free pages: what threads keep, then empty slabs, then lazy areas, the oldest first. Each step
holds the lock for one of these, and the run ends as soon as there is enough, or when nothing is left. Runs that bring nothing
are counted: after MAX_FAILURES of them in a row a wake is none until free pages were above the low mark again.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.buddy import free_pages_total
from realalloc.mm.decay import IDLE_NS
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmem_cache import shrink_all_locked
from realalloc.mm.layout import (
    DECAY,
    H_CLOSED,
    STAGE_AREAS,
    STAGE_IDLE,
    STAGE_SHEAVES,
    STAGE_SLABS,
    Y_WANTED,
    Z_BEGAN_PAGES,
    Z_FAILURES,
    Z_HIGH_PAGES,
    Z_STAGE,
    ZONE_NORMAL,
)
from realalloc.mm.lazy import undo_oldest_lazy_locked
from realalloc.mm.pages import zone_at
from realalloc.mm.reclaim import drain_locked


@kernel
def _step_locked(words: Words, z: int) -> None:
    """Do one step of a run, or end it."""
    stage = words[z + Z_STAGE]
    if free_pages_total(words, ZONE_NORMAL) >= words[z + Z_HIGH_PAGES]:
        words[z + Z_FAILURES] = 0
        words[z + Z_STAGE] = STAGE_IDLE
    elif stage == STAGE_SHEAVES:
        drain_locked(words)
        words[z + Z_STAGE] = STAGE_SLABS
    elif stage == STAGE_SLABS:
        shrink_all_locked(words)
        words[z + Z_STAGE] = STAGE_AREAS
    elif undo_oldest_lazy_locked(words) == 0:
        gained = free_pages_total(words, ZONE_NORMAL) > words[z + Z_BEGAN_PAGES]
        words[z + Z_FAILURES] = 0 if gained else words[z + Z_FAILURES] + 1
        words[z + Z_STAGE] = STAGE_IDLE


@entry
def balance_tick(words: Words) -> int:
    """Do one step for an arena that was woken; return in how many ns the next one is due, 0 for at once."""
    z = zone_at(ZONE_NORMAL)
    if words[z + Z_STAGE] == STAGE_IDLE or words[H_CLOSED] != 0 or words[DECAY + Y_WANTED] == 0:
        return IDLE_NS
    lock(words)
    if words[z + Z_STAGE] != STAGE_IDLE:
        _step_locked(words, z)
    stage = words[z + Z_STAGE]
    unlock(words)
    return IDLE_NS if stage == STAGE_IDLE else 0
