"""Mempools whose elements are made and freed by a user's machine code: ``alloc_fn`` and ``free_fn`` by address.

Elements are the numbers that ``alloc_fn(words, data, gfp)`` returns, 0 < element < 2**62: offsets, addresses, handles.
Anything else means that it failed, and the reserve is used. Neither function is ever called with the lock held, so both may
use any verb.
Everything but the calls is :mod:`realalloc.mm.mempool`: whatever that cannot serve, or would free, is done here.
An element is counted as out, or is in the reserve, or is ``free_fn``'s: exactly one of them, at any time outside of the calls.
What users free cannot be checked, as in the kernel, but for one thing: no more come back than went out.
"""

from __future__ import annotations

from typing import Final

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    EBUSY,
    EINVAL,
    ENOMEM,
    GFP_WAIT_BIT,
    H_CLOSED,
    N_NEED,
    OK,
    ORDER_ALLOC_FIRST,
    ORDER_RESERVE_ONLY,
    P_ALLOC_FN,
    P_ARG,
    P_CURR_NR,
    P_FREE_FN,
    P_GETS_ALLOC,
    P_GRANTED,
    P_HEAD,
    P_ORDER,
    P_REFILL_HIGH,
    P_REFILL_LOW,
    P_STATE,
    P_WAITERS,
    POOL_LIVE,
    SURPLUS,
)
from realalloc.mm.mempool import pool_alloc, pool_free
from realalloc.mm.mempool_face import offer_locked, pool_injects
from realalloc.mm.mempool_wait import (
    end_queue,
    nap_until,
    queue_up,
    status_of,
)
from realalloc.mm.prim import call_alloc_fn, call_free_fn, monotonic_ns
from realalloc.mm.reserve import owes
from realalloc.mm.waiters import account_locked, pool_out

MAX_ELEMENT: Final = (1 << 62) - 1


@kernel
def _make(words: Words, p: int, gfp: int) -> int:
    """Ask alloc_fn; ENOMEM if it failed, or was made to."""
    if pool_injects(words, p) == 1:
        return ENOMEM
    made = call_alloc_fn(words[p + P_ALLOC_FN], address_of(words), words[p + P_ARG], gfp)
    return made if 0 < made <= MAX_ELEMENT else ENOMEM


@kernel
def _offer(words: Words, p: int, made: int) -> int:
    """Put a fresh element into the reserve; where that is full or gone, free_fn has it, and the result is not OK."""
    free_fn = words[p + P_FREE_FN]
    lock(words)
    status = offer_locked(words, p, made)
    unlock(words)
    if status != OK:
        call_free_fn(free_fn, address_of(words), made)
    return status


@entry
def calls_fill(words: Words, p: int, target: int, gfp: int) -> int:
    """Bring the reserve up to ``target``, or as near as it may have; ENOMEM if alloc_fn failed."""
    while words[p + P_CURR_NR] < target and owes(words, p) > 0:
        made = _make(words, p, gfp)
        if made < 0:
            return ENOMEM
        if _offer(words, p, made) != OK:
            break
    return OK


@entry
def _calls_fresh(words: Words, p: int, gfp: int) -> int:
    """Hand out what alloc_fn makes; ENOMEM."""
    free_fn = words[p + P_FREE_FN]
    made = _make(words, p, gfp)
    if made < 0:
        return ENOMEM
    lock(words)
    live = words[p + P_STATE] == POOL_LIVE and words[H_CLOSED] == 0
    if live:
        account_locked(words, p)
        words[p + P_GETS_ALLOC] += 1
    unlock(words)
    if not live:
        call_free_fn(free_fn, address_of(words), made)
        return ENOMEM
    return made


@entry
def calls_alloc(words: Words, p: int, gfp: int) -> int:
    """Return an element, or ENOMEM. Never sleeps."""
    order = words[p + P_ORDER]
    if words[H_CLOSED] != 0 or words[p + P_STATE] != POOL_LIVE:
        return ENOMEM
    if order == ORDER_ALLOC_FIRST:
        made = _calls_fresh(words, p, gfp & ~GFP_WAIT_BIT)
        if made > 0:
            return made
    element = pool_alloc(words, p, gfp & GFP_WAIT_BIT)
    if element > 0 or order == ORDER_ALLOC_FIRST or (gfp & GFP_WAIT_BIT and words[p + P_WAITERS] > 0):
        return element
    if order != ORDER_RESERVE_ONLY:
        return _calls_fresh(words, p, gfp)
    if owes(words, p) <= 0 or calls_fill(words, p, words[p + P_CURR_NR] + 1, gfp) != OK:
        return ENOMEM
    return pool_alloc(words, p, gfp & GFP_WAIT_BIT)


@entry
def calls_free(words: Words, p: int, element: int) -> int:
    """Return an element: to the reserve, else to free_fn. EINVAL if it can be none, or none is out."""
    free_fn = words[p + P_FREE_FN]  # with its last element the descriptor of a pool destroyed by force may go
    if not 0 < element <= MAX_ELEMENT or pool_out(words, p) == 0:
        return EINVAL
    if pool_free(words, p, element) == SURPLUS:
        call_free_fn(free_fn, address_of(words), element)
    elif words[p + P_CURR_NR] < words[p + P_REFILL_LOW]:
        calls_fill(words, p, words[p + P_REFILL_HIGH], 0)
    return OK


@entry
def calls_serve(words: Words, p: int, gfp: int) -> int:
    """Ask alloc_fn for who waits at the head of the queue; OK, or ENOMEM if it failed."""
    lock(words)
    head = words[p + P_HEAD]
    need = words[head + N_NEED] - words[p + P_CURR_NR] + words[p + P_GRANTED] if head != 0 else 0
    need = min(max(need, 1), owes(words, p)) if head != 0 else 0
    unlock(words)
    for _ in range(need):
        made = _make(words, p, gfp)
        if made < 0 or _offer(words, p, made) != OK:
            return ENOMEM
    return OK


@entry
def calls_alloc_wait(words: Words, p: int, timeout_ns: int) -> int:
    """Return an element, waiting for one as :func:`realalloc.mm.mempool_wait.pool_alloc_wait` does."""
    element = calls_alloc(words, p, GFP_WAIT_BIT)
    if element > 0 or timeout_ns == 0:
        return element
    deadline = monotonic_ns() + timeout_ns
    request = queue_up(words, p)
    if request < 0:
        return ENOMEM
    status = status_of(words, request)
    while status == EBUSY:
        calls_serve(words, p, GFP_WAIT_BIT)
        status = nap_until(words, p, request, timeout_ns, deadline)
    return end_queue(words, p, request, status)
