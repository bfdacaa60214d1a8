"""Life of a budget: make, bound, close, look inside, validate. What charging is, says :mod:`realalloc.mm.charge`.

A descriptor is a block of kmalloc's, kept on a list for the next budget when its own is gone: a budget may end while a slab is
being freed, and nothing else can be freed then.
A budget is gone when it is closed and has no charges, no children and no users. Its handle in Python is a user, so a verb that
holds the handle may charge it.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.charge import end_budget_locked, find_refuser
from realalloc.mm.descriptors import bad_chain
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kmalloc_retry_locked
from realalloc.mm.layout import (
    B_BYTES,
    B_CHILDREN,
    B_COUNTS,
    B_HIGH,
    B_LIMIT,
    B_NAME,
    B_NEXT,
    B_PARENT,
    B_PEAK,
    B_STATE,
    B_THROTTLES,
    B_USED,
    B_USERS,
    BAD_BUDGET,
    BUDGET_CLOSED,
    BUDGET_FREE,
    BUDGET_OPEN,
    BUDGET_WORDS,
    C_BUDGET,
    C_NR_SLABS,
    C_STATE,
    CACHE_LIVE,
    CACHE_WORDS,
    CHARGE_KINDS,
    CHARGE_SLABS,
    EBUSY,
    EDQUOT,
    EEXIST,
    ENOMEM,
    GFP_ORDINARY,
    H_BUDGETS,
    H_CACHES,
    H_CLOSED,
    H_FREE_BUDGETS,
    H_NR_CACHES,
    OK,
    PAGE_SHIFT,
    WORD_BYTES,
)
from realalloc.mm.pages import pages_at, zero_range
from realalloc.mm.walkers import next_slab

OVERAGE_SHIFT = 20  # kernel: MEMCG_DELAY_PRECISION_SHIFT
MAX_OVERAGE = 1 << 26  # 64 times as much as allowed: nothing overflows, and nobody sleeps longer for more


@kernel
def _is_named(words: Words, b: int, parent: int, out: Words) -> int:
    if words[b + B_STATE] != BUDGET_OPEN or words[b + B_PARENT] != parent:
        return 0
    for k in range(BUDGET_WORDS - B_NAME):
        if words[b + B_NAME + k] != out[1 + k]:
            return 0
    return 1


@kernel
def _descriptor_locked(words: Words) -> int:
    b = words[H_FREE_BUDGETS]
    if b != 0:
        words[H_FREE_BUDGETS] = words[b + B_NEXT]
        return b
    where = kmalloc_retry_locked(words, BUDGET_WORDS * WORD_BYTES, GFP_ORDINARY)
    return where // WORD_BYTES if where > 0 else ENOMEM


@entry
def budget_create(words: Words, parent: int, limit: int, high: int, out: Words) -> int:
    """Make a budget with one user, its handle; its name is in ``out[1:]``, and its word index then in ``out[0]``, which no
    signal's handler can lose. EEXIST if an open sibling has that name, EDQUOT if the parent is closed, ENOMEM.
    """
    lock(words)
    out[0] = 0
    status = ENOMEM if words[H_CLOSED] != 0 else OK
    if parent != 0 and words[parent + B_STATE] != BUDGET_OPEN:
        status = EDQUOT
    b = words[H_BUDGETS]
    while b != 0 and status == OK:
        status = EEXIST if _is_named(words, b, parent, out) == 1 else OK
        b = words[b + B_NEXT]
    b = _descriptor_locked(words) if status == OK else status
    if b > 0:
        zero_range(words, b, BUDGET_WORDS)
        words[b + B_PARENT] = parent
        words[b + B_LIMIT] = limit
        words[b + B_HIGH] = high
        words[b + B_USERS] = 1
        words[b + B_STATE] = BUDGET_OPEN
        for k in range(BUDGET_WORDS - B_NAME):
            words[b + B_NAME + k] = out[1 + k]
        if parent != 0:
            words[parent + B_CHILDREN] += 1
        words[b + B_NEXT] = words[H_BUDGETS]
        words[H_BUDGETS] = b
        out[0] = b
    unlock(words)
    return b


@entry
def budget_bound(words: Words, b: int, field: int, nbytes: int) -> int:
    """Move B_LIMIT or B_HIGH; EBUSY, with nothing changed, for a limit below what is used."""
    lock(words)
    status = EBUSY if field == B_LIMIT and nbytes < words[b + B_USED] else OK
    if status == OK:
        words[b + field] = nbytes
    unlock(words)
    return status


@kernel
def _open_child(words: Words, b: int) -> int:
    """Return an open budget whose parent ``b`` is, 0 if there is none."""
    child = words[H_BUDGETS]
    while child != 0 and (words[child + B_PARENT] != b or words[child + B_STATE] != BUDGET_OPEN):
        child = words[child + B_NEXT]
    return child


@entry
def budget_close(words: Words, b: int) -> int:
    """Take no charges any more; EBUSY, with nothing changed, while a child is open."""
    lock(words)
    status = EBUSY if _open_child(words, b) != 0 else OK
    if status == OK:
        words[b + B_STATE] = BUDGET_CLOSED
    unlock(words)
    return status


@entry
def budget_drop(words: Words, out: Words) -> int:
    """Close the budget ``out[0]``, if it is not 0, and let go of its handle; ``out[0]`` is 0 then, so that it is done once."""
    lock(words)
    b = out[0]
    out[0] = 0
    if b != 0:
        words[b + B_STATE] = BUDGET_CLOSED
        words[b + B_USERS] -= 1
        end_budget_locked(words, b)
    unlock(words)
    return OK


@entry
def budget_refuser(words: Words, b: int, nbytes: int) -> int:
    """Return the budget that would refuse a charge, 0 if none would."""
    lock(words)
    found = find_refuser(words, b, nbytes)
    unlock(words)
    return found


@entry
def budget_overage(words: Words, b: int) -> int:
    """Return by how much the budget that is farthest above its B_HIGH, ``b`` or a parent, is above it, as a share of B_HIGH in
    2**-OVERAGE_SHIFT (kernel: mem_find_max_overage).
    """
    most = 0
    while b != 0:
        over = words[b + B_USED] - words[b + B_HIGH]
        if over > 0:
            unit = max(words[b + B_HIGH] >> OVERAGE_SHIFT, 1)
            most = max(most, min(over // unit, MAX_OVERAGE), 1)
        b = words[b + B_PARENT]
    return most


@entry
def budget_throttled(words: Words, b: int) -> int:
    """Count a sleep in every budget that is above its B_HIGH."""
    lock(words)
    while b != 0:
        words[b + B_THROTTLES] += 1 if words[b + B_USED] > words[b + B_HIGH] else 0
        b = words[b + B_PARENT]
    unlock(words)
    return OK


@entry
def budget_copy(words: Words, b: int, out: Words) -> int:
    """Copy a descriptor; BUDGET_FREE in its place if it is not one any more."""
    lock(words)
    for k in range(BUDGET_WORDS):
        out[k] = words[b + k]
    unlock(words)
    return OK


@entry
def slab_bytes(words: Words, c: int) -> int:
    """Return the bytes of a cache's slabs. Walks the pages."""
    lock(words)
    pages = 0
    pfn = next_slab(words, c, 0)
    while pfn != 0:
        pages += pages_at(words, pfn)
        pfn = next_slab(words, c, pfn + pages_at(words, pfn))
    unlock(words)
    return pages << PAGE_SHIFT


@kernel
def _count_slabs(words: Words, b: int) -> int:
    count = 0
    for index in range(words[H_NR_CACHES]):
        c = words[H_CACHES] + index * CACHE_WORDS
        if words[c + C_STATE] == CACHE_LIVE and words[c + C_BUDGET] == b:
            count += words[c + C_NR_SLABS]
    return count


@kernel
def _is_whole(words: Words, b: int) -> int:
    """Tell whether the equation at the head of charge.py holds for one budget."""
    used = 0
    for kind in range(CHARGE_KINDS):
        count = words[b + B_COUNTS + kind]
        nbytes = words[b + B_BYTES + kind]
        if count < 0 or nbytes < 0 or (count == 0) != (nbytes == 0):
            return 0
        used += nbytes
    children = 0
    child = words[H_BUDGETS]
    while child != 0:
        if words[child + B_PARENT] == b:
            used += words[child + B_USED]
            children += 1
        child = words[child + B_NEXT]
    whole = used == words[b + B_USED] and 0 <= used <= min(words[b + B_PEAK], words[b + B_LIMIT])
    whole = whole and children == words[b + B_CHILDREN] and words[b + B_USERS] >= 0
    whole = whole and words[b + B_STATE] != BUDGET_FREE
    return 1 if whole and words[b + B_COUNTS + CHARGE_SLABS] == _count_slabs(words, b) else 0


@entry
def validate_budgets(words: Words) -> int:
    """Check every budget; OK or the broken invariant."""
    lock(words)
    b = words[H_BUDGETS]
    status = BAD_BUDGET if bad_chain(words, b, B_NEXT, BUDGET_WORDS) == 1 else OK
    while b != 0 and status == OK:
        if _is_whole(words, b) == 0:
            status = BAD_BUDGET
        b = words[b + B_NEXT]
    unlock(words)
    return status
