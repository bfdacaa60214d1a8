"""Mempools for a face that keeps the elements itself, by numbers: BACKING_OBJECT.

What these verbs take or put they also write into ``out``, which a ``finally`` of the face reads: a signal that comes between
machine code and the face's next bytecode loses nothing.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    ENOMEM,
    H_CLOSED,
    OK,
    P_CAPACITY,
    P_CURR_NR,
    P_GETS_ALLOC,
    P_LOW,
    P_STATE,
    POOL_LIVE,
    SURPLUS,
    TAKE_CLAIM,
    TAKE_RESERVED,
)
from realalloc.mm.mempool import pool_alloc, pool_alloc_reserved, pool_free
from realalloc.mm.mempool_wait import pool_claim
from realalloc.mm.reserve import adopt_element, is_injected, owes
from realalloc.mm.waiters import account_locked, grant_locked


@entry
def pool_take(words: Words, p: int, how: int, argument: int, out: Words) -> int:
    """Take an element as ``how`` says, with flags or a request as ``argument``; ``out[0]`` is it, or not above 0.

    For a face whose elements do not come back by themselves: what ``out`` names is never lost to a signal.
    """
    if how == TAKE_CLAIM:
        out[0] = pool_claim(words, p, argument)
    else:
        out[0] = pool_alloc_reserved(words, p) if how == TAKE_RESERVED else pool_alloc(words, p, argument)
    return OK


@entry
def pool_put(words: Words, p: int, offset: int, out: Words) -> int:
    """:func:`pool_free`; ``out[0]``, 0 before, becomes 1 + its status."""
    out[0] = 1 + pool_free(words, p, offset)
    return OK


@entry
def pool_admit(words: Words, p: int, number: int, out: Words) -> int:
    """Take note of an object that the face has made and hands out: ``out[0]`` is its number, 0 if the pool is gone."""
    lock(words)
    out[0] = 0
    if words[p + P_STATE] == POOL_LIVE:
        account_locked(words, p)
        words[p + P_GETS_ALLOC] += 1
        out[0] = number
    unlock(words)
    return OK


@kernel
def offer_locked(words: Words, p: int, element: int) -> int:
    """Put a fresh element into the reserve; SURPLUS where that is full, ENOMEM when the pool is gone."""
    if words[p + P_STATE] != POOL_LIVE or words[H_CLOSED] != 0:
        return ENOMEM
    if words[p + P_CURR_NR] >= words[p + P_CAPACITY] or owes(words, p) <= 0:
        return SURPLUS
    adopt_element(words, p, element)
    words[p + P_LOW] = max(words[p + P_LOW], words[p + P_CURR_NR])
    grant_locked(words, p)
    return OK


@entry
def pool_object(words: Words, p: int, number: int, out: Words) -> int:
    """Put an object that the face has made into the reserve, as :func:`offer_locked`; ``out[0]`` is 1 if that has it."""
    lock(words)
    status = offer_locked(words, p, number)
    out[0] = 1 if status == OK else 0
    unlock(words)
    return status


@entry
def pool_injects(words: Words, p: int) -> int:
    """Tell whether this call of the face's alloc_fn is to fail; 1 or 0."""
    lock(words)
    result = is_injected(words, p)
    unlock(words)
    return result
