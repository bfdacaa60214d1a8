"""Waiting at a mempool: a request begins, sleeps outside of here, claims what it was granted, and ends.

A request that cannot be served at once lets the backing allocator be asked for the head of the queue, whoever that is: so
memory that came back to the arena reaches who waits. A sleeper looks again after SLICE_NS, since the backing allocator does
not say when that happens. After any return the queue is whole and the lock is free; what a request was granted is its own
until it claims it or ends.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, atomic_load, lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    GFP_ORDINARY,
    H_CLOSED,
    H_POOLS,
    N_NEED,
    N_STATE,
    NODE_GRANTED,
    NODE_WAITING,
    OK,
    P_CAPACITY,
    P_GETS_WAIT,
    P_GRANTED,
    P_HEAD,
    P_NEXT,
    P_STATE,
    P_WAITERS,
    POOL_LIVE,
    WORD_BYTES,
)
from realalloc.mm.mempool import end_if_last, handed, pool_alloc, pop_reserved
from realalloc.mm.prim import futex_sleep, monotonic_ns
from realalloc.mm.reserve import supply_locked
from realalloc.mm.waiters import (
    NODE_MASK,
    enqueue_locked,
    forget_waiters,
    grant_locked,
    leave_locked,
    node_of,
    request_of,
    spend_grant_locked,
    waits_from_now_locked,
    wake_all_locked,
)

SLICE_NS = 5_000_000_000  # kernel: io_schedule_timeout(5 * HZ)


@kernel
def _serve_locked(words: Words, p: int) -> int:
    """Serve the queue from the reserve and the backing allocator; return what stopped it, OK if nobody waits any more."""
    status = OK
    grant_locked(words, p)
    while words[p + P_HEAD] != 0 and status == OK:
        need = words[words[p + P_HEAD] + N_NEED]
        status = supply_locked(words, p, words[p + P_GRANTED] + need, need)
        before = words[p + P_WAITERS]
        grant_locked(words, p)
        if words[p + P_WAITERS] == before and status == OK:
            return ENOMEM  # the reserve is full of what others were granted
    return status


@kernel
def begin_locked(words: Words, p: int, need: int, fd: int) -> int:
    """Queue a request; return its node, or a status."""
    if words[H_CLOSED] != 0:
        return ENOMEM
    if words[p + P_STATE] != POOL_LIVE or need > words[p + P_CAPACITY]:
        return EINVAL
    node = enqueue_locked(words, p, need, fd)
    return node if node != 0 else ENOMEM


@kernel
def begun_locked(words: Words, p: int, node: int) -> int:
    """Serve the queue; OK if that reached a new node, else EAGAIN or EBUSY."""
    status = _serve_locked(words, p)
    if words[node + N_STATE] == NODE_GRANTED:
        return OK
    waits_from_now_locked(words, p, node)
    return EAGAIN if status == EAGAIN else EBUSY


@kernel
def _claim_locked(words: Words, p: int, request: int) -> int:
    node = node_of(words, request)
    if node == 0 or words[p + P_STATE] != POOL_LIVE:
        return EINVAL
    if words[node + N_STATE] != NODE_GRANTED:
        return EBUSY
    words[p + P_GETS_WAIT] += spend_grant_locked(words, p, node)
    return pop_reserved(words, p) << 1 | 1


@entry
def pool_wait_begin(words: Words, p: int, need: int, fd: int, out: Words) -> int:
    """Queue a request for ``need`` elements: ``out[0]`` is its name for the verbs below, 0 if there is none.

    OK: granted at once. EBUSY: it waits, for N_STATE to change or for ``fd`` to be written. EAGAIN: it waits, and the face
    could construct a slab. ENOMEM: no memory for a node, or the arena is closed. EINVAL: the pool is going.
    """
    lock(words)
    status = begin_locked(words, p, need, fd)
    out[0] = request_of(words, status) if status > 0 else 0
    if status > 0:
        status = begun_locked(words, p, status)
    unlock(words)
    return status


@kernel
def _state(words: Words, request: int) -> int:
    return atomic_load(words, (request & NODE_MASK) + N_STATE)


@kernel
def status_of(words: Words, request: int) -> int:
    """Tell whether a request is granted, OK, or not yet, EBUSY."""
    return OK if _state(words, request) == NODE_GRANTED else EBUSY


@kernel
def _sleep(words: Words, request: int, timeout_ns: int) -> None:
    """Sleep while a request waits."""
    word = (request & NODE_MASK) + N_STATE
    futex_sleep(address_of(words) + word * WORD_BYTES, NODE_WAITING, timeout_ns)


@entry
def pool_wait_sleep(words: Words, p: int, need: int, timeout_ns: int, out: Words) -> int:
    """:func:`pool_wait_begin` for a thread, which falls asleep at once if it must; OK, or EBUSY when it woke with nothing.

    One call that gives the GIL up instead of two: a hand-off costs a quarter less.
    """
    status = pool_wait_begin(words, p, need, -1, out)
    if status == EBUSY:
        _sleep(words, out[0], timeout_ns)
        status = status_of(words, out[0])
    return status


@entry
def pool_claim(words: Words, p: int, request: int) -> int:
    """Take one of the elements that a request was granted; EBUSY if it was granted none, EINVAL if it is over."""
    lock(words)
    taken = _claim_locked(words, p, request)
    unlock(words)
    return handed(words, p, taken)


@entry
def pool_wait_end(words: Words, p: int, request: int) -> int:
    """Give a request up, with what it was granted and has not taken; nothing if it is over."""
    lock(words)
    leave_locked(words, p, request)
    end_if_last(words, p)
    unlock(words)
    return OK


@entry
def pool_serve(words: Words, p: int) -> int:
    """Ask the backing allocator once more for those who wait; return what stopped it."""
    lock(words)
    status = _serve_locked(words, p) if words[H_CLOSED] == 0 else ENOMEM
    unlock(words)
    return status


@entry
def pool_request(words: Words, p: int) -> int:
    """Queue a request of a thread for one element; return its name, or a status: EAGAIN if the face must construct a slab."""
    lock(words)
    node = begin_locked(words, p, 1, -1)
    request = request_of(words, node) if node > 0 else ENOMEM
    if node > 0 and begun_locked(words, p, node) == EAGAIN:
        leave_locked(words, p, request)
        request = EAGAIN
    unlock(words)
    return request


@entry
def pool_nap(words: Words, p: int, request: int, timeout_ns: int) -> int:
    """Sleep until a request is granted, OK; EBUSY after a while, or for no reason, with the backing allocator asked again.

    ENOMEM if pool or arena are going: end the request.
    """
    if words[H_CLOSED] != 0 or words[p + P_STATE] != POOL_LIVE:
        return ENOMEM
    if _state(words, request) == NODE_WAITING:
        _sleep(words, request, timeout_ns)
    if _state(words, request) == NODE_WAITING:
        pool_serve(words, p)
    return status_of(words, request)


@kernel
def nap_until(words: Words, p: int, request: int, timeout_ns: int, deadline: int) -> int:
    """:func:`pool_nap` for what is left of a time, a slice at most (timeout < 0: always); ENOMEM if nothing is."""
    left = SLICE_NS if timeout_ns < 0 else min(SLICE_NS, deadline - monotonic_ns())
    return pool_nap(words, p, request, left) if left > 0 else ENOMEM


@kernel
def queue_up(words: Words, p: int) -> int:
    """Queue a request of a thread for one element; return its name, or a status."""
    lock(words)
    node = begin_locked(words, p, 1, -1)
    request = node
    if node > 0:
        request = request_of(words, node)
        begun_locked(words, p, node)
    unlock(words)
    return request


@kernel
def end_queue(words: Words, p: int, request: int, status: int) -> int:
    """Take the element that a request was granted, status OK, or give the request up; return the element or ENOMEM."""
    element = pool_claim(words, p, request) if status == OK else ENOMEM
    if element < 0:
        pool_wait_end(words, p, request)
    return max(element, ENOMEM)


@entry
def pool_alloc_wait(words: Words, p: int, timeout_ns: int) -> int:
    """Return the offset of an element, waiting for one for up to ``timeout_ns``, < 0: without limit; ENOMEM when the time is
    over, the arena is closed or the pool is going. Sleeps in slices: the backing allocator does not say when it has memory.
    """
    offset = pool_alloc(words, p, GFP_ORDINARY)
    if offset > 0 or timeout_ns == 0:
        return offset
    deadline = monotonic_ns() + timeout_ns
    request = queue_up(words, p)
    if request < 0:
        return ENOMEM
    status = status_of(words, request)
    while status == EBUSY:
        status = nap_until(words, p, request, timeout_ns, deadline)
    return end_queue(words, p, request, status)


@entry
def wake_pools(words: Words) -> int:
    """Wake whoever waits on any pool: the arena closes."""
    lock(words)
    p = words[H_POOLS]
    while p != 0:
        wake_all_locked(words, p)
        p = words[p + P_NEXT]
    unlock(words)
    return OK


@entry
def after_fork(words: Words) -> int:
    """Forget the sleepers of the parent: their threads do not exist in the child."""
    p = words[H_POOLS]
    while p != 0:
        forget_waiters(words, p)
        p = words[p + P_NEXT]
    return OK
