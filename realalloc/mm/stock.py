"""The stock: whole sheaves, full and empty ones, that a thread keeps beside its two, so that it need not go to the barn.

A number of free objects that goes up and down passes the two sheaves often, and each time costs two visits to the lock: of
10000 random replacements ten in a thousand, 70 ns and more each, and as much again where another thread has written the words
behind the lock last. What a barn gives may have been another thread's, too: then every first write is a miss.

A stock is a word of a sheaf descriptor, with two lists linked by S_NEXT, in units of SHEAF_WORDS. It belongs to whom the
descriptor belongs to (threads.py), so its owner works on it without the lock. Only with the lock it gets another sheaf, up to
MAX_STOCK_BYTES of objects; from then on full ones and empty ones take turns.

Invariant, per stock: full sheaves hold something, empty ones nothing; S_DEPTH of a full one = those from it down; both
kinds together are no more than MAX_STOCK_SHEAVES.
"""

from __future__ import annotations

from realalloc.mm.barn import free_sheaf_locked, is_sheaf
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    C_FLAGS,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CF_LEAN,
    D_STOCK,
    H_END_PFN,
    LEAN_SHIFT,
    MAX_STOCK_BYTES,
    MAX_STOCK_PFN,
    MAX_STOCK_SHEAVES,
    PAGE_SHIFT,
    S_COUNT,
    S_DEPTH,
    S_NEXT,
    SHEAF_SHARE_SHIFT,
    SHEAF_WORDS,
    STOCK_MASK,
    STOCK_SHIFT,
)


@kernel
def first_full(words: Words, d: int) -> int:
    """Return the top full sheaf of a descriptor's stock, 0 if there is none."""
    return (words[d + D_STOCK] >> STOCK_SHIFT) * SHEAF_WORDS


@kernel
def first_empty(words: Words, d: int) -> int:
    """Return the top empty sheaf of a descriptor's stock, 0 if there is none."""
    return (words[d + D_STOCK] & STOCK_MASK) * SHEAF_WORDS


@kernel
def _put_back(words: Words, d: int, full: int, empty: int) -> None:
    words[d + D_STOCK] = full // SHEAF_WORDS << STOCK_SHIFT | empty // SHEAF_WORDS


@kernel
def take_full(words: Words, d: int) -> int:
    """Take the top full sheaf off a stock; 0 if there is none."""
    sheaf = first_full(words, d)
    if sheaf != 0:
        _put_back(words, d, words[sheaf + S_NEXT], first_empty(words, d))
    return sheaf


@kernel
def take_empty(words: Words, d: int) -> int:
    """Take the top empty sheaf off a stock; 0 if there is none."""
    sheaf = first_empty(words, d)
    if sheaf != 0:
        _put_back(words, d, first_full(words, d), words[sheaf + S_NEXT])
    return sheaf


@kernel
def depth_of(words: Words, d: int) -> int:
    """Count the full sheaves of a stock."""
    sheaf = first_full(words, d)
    return words[sheaf + S_DEPTH] if sheaf != 0 else 0


@kernel
def stock_full(words: Words, d: int, sheaf: int) -> None:
    """Put a full sheaf, with its count, onto a stock."""
    words[sheaf + S_DEPTH] = depth_of(words, d) + 1
    words[sheaf + S_NEXT] = first_full(words, d)
    _put_back(words, d, sheaf, first_empty(words, d))


@kernel
def stock_empty(words: Words, d: int, sheaf: int) -> None:
    """Put an empty sheaf onto a stock."""
    words[sheaf + S_COUNT] = 0
    words[sheaf + S_NEXT] = first_empty(words, d)
    _put_back(words, d, first_full(words, d), sheaf)


@kernel
def stock_may_grow(words: Words, c: int, d: int) -> int:
    """Tell whether a stock without empty sheaves may take a full one of cache ``c`` in exchange for a new one.

    None in arenas of more than 1 TiB: later the word would have to name any sheaf that is the main or the spare one then.
    """
    lean = LEAN_SHIFT if words[c + C_FLAGS] & CF_LEAN else 0
    depth = depth_of(words, d)
    nbytes = (depth + 1) * words[c + C_SHEAF_CAPACITY] * words[c + C_STRIDE_BYTES] << lean
    if depth >= MAX_STOCK_SHEAVES or words[H_END_PFN] > MAX_STOCK_PFN:
        return 0
    return 1 if nbytes <= min(MAX_STOCK_BYTES, words[H_END_PFN] << PAGE_SHIFT >> SHEAF_SHARE_SHIFT) else 0


@kernel
def count_stock(words: Words, d: int) -> int:
    """Count the objects of a stock."""
    count = 0
    sheaf = first_full(words, d)
    while sheaf != 0:
        count += words[sheaf + S_COUNT]
        sheaf = words[sheaf + S_NEXT]
    return count


@kernel
def free_stock_locked(words: Words, d: int) -> None:
    """Free all sheaves of a stock, whatever is in them."""
    sheaf = take_full(words, d)
    while sheaf != 0:
        free_sheaf_locked(words, sheaf)
        sheaf = take_full(words, d)
    sheaf = take_empty(words, d)
    while sheaf != 0:
        free_sheaf_locked(words, sheaf)
        sheaf = take_empty(words, d)


@kernel
def bad_stock(words: Words, d: int) -> int:
    """Tell whether a stock breaks its invariant, or leads to what is no sheaf."""
    sheaf = first_full(words, d)
    depth = words[sheaf + S_DEPTH] if is_sheaf(words, sheaf) == 1 else 0
    if not 0 <= depth <= MAX_STOCK_SHEAVES:
        return 1
    for left in range(depth, 0, -1):
        if is_sheaf(words, sheaf) == 0 or words[sheaf + S_DEPTH] != left or words[sheaf + S_COUNT] == 0:
            return 1
        sheaf = words[sheaf + S_NEXT]
    if sheaf != 0:
        return 1
    sheaf = first_empty(words, d)
    count = depth
    while sheaf != 0:
        if count == MAX_STOCK_SHEAVES or is_sheaf(words, sheaf) == 0 or words[sheaf + S_COUNT] != 0:
            return 1
        count += 1
        sheaf = words[sheaf + S_NEXT]
    return 0
