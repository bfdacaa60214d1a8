"""The barn: sheaves of a cache, full ones and empty ones, that no thread has; and where sheaves come from.

Full sheaves go from threads that free to threads that take, without a look at a slab. Lists are linked by S_NEXT, under
the arena lock.

Room grows with use: a barn keeps as many full sheaves as it has sheaves. Ten there are for the asking; one more comes each
time that objects have to be taken from slabs, until it has one for each sheaf full that was returned to them. So who frees
all that it has, once, makes no sheaves for it, an eighth of the bytes of small objects, and its slabs serve others (ADR 38).

Invariant, per cache: C_NR_BARN_FULL and C_NR_BARN_EMPTY count the lists; S_COUNT of a sheaf on the second is 0.
"""

from __future__ import annotations

from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    BARN_SHARE_SHIFT,
    C_BARN_EMPTY,
    C_FLAGS,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CF_LEAN,
    H_END_PFN,
    H_SHEAF_CACHE,
    LEAN_SHIFT,
    MAX_BARN_BYTES,
    MAX_BARN_SHEAVES,
    MAX_SHEAF_OBJECTS,
    MIN_BARN_BYTES,
    MIN_BARN_SHEAVES,
    PAGE_SHIFT,
    S_BOTTOM,
    S_COUNT,
    S_NEXT,
    SHEAF_WORDS,
    SMALL_BARN_BYTES,
    WORD_BYTES,
)
from realalloc.mm.pages import reaches
from realalloc.mm.slab import cache_alloc_locked, cache_free_locked, is_live_object


@kernel
def new_sheaf_locked(words: Words) -> int:
    """Allocate an empty sheaf; return its word index, 0 if there is no memory."""
    offset = cache_alloc_locked(words, words[H_SHEAF_CACHE], 0)  # a convenience: never of the reserve
    if offset < 0:
        return 0
    words[offset // WORD_BYTES + S_COUNT] = 0
    words[offset // WORD_BYTES + S_BOTTOM] = 0
    return offset // WORD_BYTES


@kernel
def free_sheaf_locked(words: Words, sheaf: int) -> None:
    """Free an empty sheaf."""
    cache_free_locked(words, words[H_SHEAF_CACHE], sheaf * WORD_BYTES)


@kernel
def is_sheaf(words: Words, sheaf: int) -> int:
    """Tell whether an index is that of a sheaf in use, with a count that it can have: a walker asks before it looks inside."""
    if reaches(words, sheaf, SHEAF_WORDS) == 0 or is_live_object(words, words[H_SHEAF_CACHE], sheaf * WORD_BYTES) == 0:
        return 0
    return 1 if 0 <= words[sheaf + S_COUNT] <= MAX_SHEAF_OBJECTS else 0


@kernel
def barn_put(words: Words, head: int, count: int, sheaf: int) -> None:
    """Add a sheaf to a list of the barn."""
    words[sheaf + S_NEXT] = words[head]
    words[head] = sheaf
    words[count] += 1


@kernel
def barn_get(words: Words, head: int, count: int) -> int:
    """Take a sheaf off a list of the barn; 0 if there is none."""
    sheaf = words[head]
    if sheaf != 0:
        words[head] = words[sheaf + S_NEXT]
        words[count] -= 1
    return sheaf


@kernel
def barn_has_room(words: Words, c: int, count: int) -> int:
    """Tell whether a cache's barn, with ``count`` sheaves of a kind, takes one more, by the bytes of their objects.

    A visit to a slab costs as much for a small object as for a large one, and keeping it less. Products, no quotients, as
    each exchange with the barn asks.
    """
    lean = LEAN_SHIFT if words[c + C_FLAGS] & CF_LEAN else 0
    stride = words[c + C_STRIDE_BYTES]
    nbytes = (count + 1) * words[c + C_SHEAF_CAPACITY] * stride << lean
    if count < 2 or (count < MIN_BARN_SHEAVES and nbytes <= MIN_BARN_BYTES):
        return 1
    if count >= MAX_BARN_SHEAVES or nbytes > words[H_END_PFN] << PAGE_SHIFT >> BARN_SHARE_SHIFT:
        return 0
    return 1 if nbytes <= MAX_BARN_BYTES or nbytes * stride <= SMALL_BARN_BYTES else 0


@kernel
def put_empty(words: Words, c: int, sheaf: int) -> None:
    """Keep an empty sheaf, or free it where the barn has enough."""
    if barn_has_room(words, c, words[c + C_NR_BARN_EMPTY]) == 1:
        barn_put(words, c + C_BARN_EMPTY, c + C_NR_BARN_EMPTY, sheaf)
    else:
        free_sheaf_locked(words, sheaf)


@kernel
def get_empty(words: Words, c: int) -> int:
    """Return an empty sheaf of the barn, or a new one; 0 if there is no memory."""
    sheaf = barn_get(words, c + C_BARN_EMPTY, c + C_NR_BARN_EMPTY)
    return sheaf if sheaf != 0 else new_sheaf_locked(words)


@kernel
def get_room(words: Words, c: int) -> int:
    """Return an empty sheaf in exchange for a full one that the barn is to keep; 0 if it has no room for that.

    It has room for as many sheaves as it has, full and empty ones, or for MIN_BARN_SHEAVES.
    """
    if barn_has_room(words, c, words[c + C_NR_BARN_FULL]) == 0:
        return 0
    sheaf = barn_get(words, c + C_BARN_EMPTY, c + C_NR_BARN_EMPTY)
    return new_sheaf_locked(words) if sheaf == 0 and words[c + C_NR_BARN_FULL] < MIN_BARN_SHEAVES else sheaf


@kernel
def widen_barn_locked(words: Words, c: int) -> None:
    """Hear that slabs had to be asked: of what was ever returned to them, more could have been kept with more room."""
    sheaves = words[c + C_NR_BARN_FULL] + words[c + C_NR_BARN_EMPTY]
    grown = sheaves - MIN_BARN_SHEAVES  # below that there is room for the asking
    if grown < 0 or words[c + C_FREES] <= grown * words[c + C_SHEAF_CAPACITY] or barn_has_room(words, c, sheaves) == 0:
        return
    sheaf = new_sheaf_locked(words)
    if sheaf != 0:
        barn_put(words, c + C_BARN_EMPTY, c + C_NR_BARN_EMPTY, sheaf)
