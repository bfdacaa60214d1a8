"""What is in the sheaves of a cache, its threads' and its barn's, counted, and returned to the slabs.

With the arena lock; who takes what threads have has locked them out of their sheaves first (threads.py).
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.barn import barn_get, free_sheaf_locked, put_empty
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_BARN_EMPTY,
    C_BARN_FULL,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_SHEAF,
    D_BASE,
    D_PUT_BASE,
    OK,
    S_COUNT,
    S_NEXT,
    S_OBJECTS,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_OWNERS,
)
from realalloc.mm.records import clear_sheaves, next_record, record_at
from realalloc.mm.sheaf import count_of, count_put, flush_locked, has_sheaves
from realalloc.mm.stock import count_stock, first_full, free_stock_locked


@kernel
def take_sheaves_locked(words: Words, d: int) -> None:
    """Take the sheaves of a descriptor away, whatever is in them."""
    if has_sheaves(words, d) == 1:
        free_sheaf_locked(words, words[d + D_BASE] - S_OBJECTS)
        free_sheaf_locked(words, words[d + D_PUT_BASE] - S_OBJECTS)
        clear_sheaves(words, d)


@kernel
def _drain_descriptor(words: Words, c: int, d: int) -> None:
    flush_locked(words, c, words[d + D_BASE], count_of(words, d))
    flush_locked(words, c, words[d + D_PUT_BASE], count_put(words, d))
    sheaf = first_full(words, d)
    while sheaf != 0:
        flush_locked(words, c, sheaf + S_OBJECTS, words[sheaf + S_COUNT])
        sheaf = words[sheaf + S_NEXT]
    free_stock_locked(words, d)
    take_sheaves_locked(words, d)


@kernel
def _drain_barn(words: Words, c: int, head: int, number: int) -> None:
    sheaf = barn_get(words, head, number)
    while sheaf != 0:
        flush_locked(words, c, sheaf + S_OBJECTS, words[sheaf + S_COUNT])
        free_sheaf_locked(words, sheaf)
        sheaf = barn_get(words, head, number)


@entry
def flush_barn_locked(words: Words, c: int, most: int) -> int:
    """Return up to ``most`` full sheaves of a cache's barn to the slabs; return how many there were."""
    count = 0
    while count < most and words[c + C_BARN_FULL] != 0:
        sheaf = barn_get(words, c + C_BARN_FULL, c + C_NR_BARN_FULL)
        flush_locked(words, c, sheaf + S_OBJECTS, words[sheaf + S_COUNT])
        words[sheaf + S_COUNT] = 0
        put_empty(words, c, sheaf)
        count += 1
    return count


@entry
def drain_cache_locked(words: Words, c: int) -> int:
    """Return everything in the sheaves of a cache, of all threads and the barn, to the slabs; the others are locked out."""
    place = next_record(words, 0) if words[c + C_SHEAF] != 0 else 0
    while place != 0:
        _drain_descriptor(words, c, record_at(words, place) + words[c + C_SHEAF])
        place = next_record(words, place)
    _drain_barn(words, c, c + C_BARN_FULL, c + C_NR_BARN_FULL)
    _drain_barn(words, c, c + C_BARN_EMPTY, c + C_NR_BARN_EMPTY)
    return OK


@entry
def cached_objects_locked(words: Words, index: int) -> int:
    """Count what threads and barn keep of one sheaf index; exact while nobody is at its sheaves."""
    count = 0
    place = next_record(words, 0)
    while place != 0:
        d = record_at(words, place) + index * SHEAF_DESC_WORDS
        count += count_of(words, d) + count_put(words, d) + count_stock(words, d)
        place = next_record(words, place)
    c = words[SHEAF_OWNERS + index] if index < SHEAF_BLOCKS else 0
    sheaf = words[c + C_BARN_FULL] if c != 0 else 0
    while sheaf != 0:
        count += words[sheaf + S_COUNT]
        sheaf = words[sheaf + S_NEXT]
    return count


@entry
def cached_objects(words: Words, index: int) -> int:
    """Count with the lock: it keeps records and barn, whose links are followed, from going back to the buddy meanwhile."""
    lock(words)
    count = cached_objects_locked(words, index)
    unlock(words)
    return count
