"""Charging a budget: what is taken counts in it and in all of its parents, or nowhere (kernel: mm/page_counter.c).

The arena lock is held, so a charge that a parent refuses was never seen by anybody: the kernel, without a lock, adds first and
rolls back. A closed budget takes no charges; its descriptor is free when the last charge, child and user of it is gone.

Invariant, with the lock:   B_USED = sum of B_BYTES + B_USED of the children,   0 <= B_USED <= min(B_PEAK, B_LIMIT)
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    B_BYTES,
    B_CHILDREN,
    B_COUNTS,
    B_FAILURES,
    B_LIMIT,
    B_NEXT,
    B_PARENT,
    B_PEAK,
    B_STATE,
    B_USED,
    B_USERS,
    BUDGET_CLOSED,
    BUDGET_FREE,
    BUDGET_OPEN,
    EDQUOT,
    H_BUDGETS,
    H_FREE_BUDGETS,
    OK,
)


@kernel
def find_refuser(words: Words, b: int, nbytes: int) -> int:
    """Return which budget refuses a charge of ``nbytes`` to ``b``: a full one, itself or above, or a closed ``b``; else 0."""
    if words[b + B_STATE] != BUDGET_OPEN:
        return b
    at = b
    while at != 0 and nbytes <= words[at + B_LIMIT] - words[at + B_USED]:
        at = words[at + B_PARENT]
    return at


@kernel
def _add(words: Words, b: int, kind: int, nbytes: int) -> None:
    words[b + B_BYTES + kind] += nbytes
    while b != 0:
        words[b + B_USED] += nbytes
        words[b + B_PEAK] = max(words[b + B_PEAK], words[b + B_USED])
        b = words[b + B_PARENT]


@entry
def charge_locked(words: Words, b: int, kind: int, nbytes: int) -> int:
    """Charge ``nbytes`` to a budget and to all above it; EDQUOT, with nothing charged, where one has no room, or is closed."""
    refuser = find_refuser(words, b, nbytes)
    if refuser != 0:
        words[refuser + B_FAILURES] += 1
        return EDQUOT
    words[b + B_COUNTS + kind] += 1
    _add(words, b, kind, nbytes)
    return OK


@entry
def end_budget_locked(words: Words, b: int) -> int:
    """Free the descriptor of a closed budget that nobody charges or is charged to, and those of such parents."""
    while b != 0 and words[b + B_STATE] == BUDGET_CLOSED:
        if words[b + B_USERS] != 0 or words[b + B_CHILDREN] != 0 or words[b + B_USED] != 0:
            break
        if words[H_BUDGETS] == b:
            words[H_BUDGETS] = words[b + B_NEXT]
        else:
            before = words[H_BUDGETS]
            while words[before + B_NEXT] != b:
                before = words[before + B_NEXT]
            words[before + B_NEXT] = words[b + B_NEXT]
        words[b + B_STATE] = BUDGET_FREE
        words[b + B_NEXT] = words[H_FREE_BUDGETS]
        words[H_FREE_BUDGETS] = b
        b = words[b + B_PARENT]
        if b != 0:
            words[b + B_CHILDREN] -= 1
    return OK


@entry
def uncharge_locked(words: Words, b: int, kind: int, nbytes: int) -> int:
    """Take back a charge."""
    words[b + B_COUNTS + kind] -= 1
    words[b + B_BYTES + kind] -= nbytes
    at = b
    while at != 0:
        words[at + B_USED] -= nbytes
        at = words[at + B_PARENT]
    return end_budget_locked(words, b)


@entry
def charge(words: Words, b: int, kind: int, nbytes: int) -> int:
    """Charge, as :func:`charge_locked`."""
    lock(words)
    status = charge_locked(words, b, kind, nbytes)
    unlock(words)
    return status


@entry
def uncharge(words: Words, b: int, kind: int, nbytes: int) -> int:
    """Take back a charge."""
    lock(words)
    uncharge_locked(words, b, kind, nbytes)
    unlock(words)
    return OK


@entry
def recharge(words: Words, b: int, kind: int, by: int) -> int:
    """Charge ``by`` bytes more for what is charged already, or less; EDQUOT, with nothing changed, where there is no room."""
    lock(words)
    status = OK
    refuser = find_refuser(words, b, by) if by > 0 else 0
    if refuser != 0:
        words[refuser + B_FAILURES] += 1
        status = EDQUOT
    else:
        _add(words, b, kind, by)
    unlock(words)
    return status


@entry
def attach(words: Words, at: int, b: int) -> int:
    """Let a cache or pool, whose word ``at`` says so from now on, charge a budget; EDQUOT if that is closed."""
    lock(words)
    status = EDQUOT
    if words[b + B_STATE] == BUDGET_OPEN:
        words[b + B_USERS] += 1
        words[at] = b
        status = OK
    unlock(words)
    return status


@entry
def detach_locked(words: Words, at: int) -> int:
    """End what :func:`attach` began, if it did."""
    b = words[at]
    words[at] = 0
    if b != 0:
        words[b + B_USERS] -= 1
        end_budget_locked(words, b)
    return OK
