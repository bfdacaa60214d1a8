"""Requests that wait for elements of a mempool: a queue, served in order of arrival.

1. A request is a node. It is WAITING in the queue, or GRANTED: so many elements of the reserve are its own, and it has left
   the queue. Whoever asked then takes them, or gives the grant up; either way the node is free again.
2. Only the head of the queue is granted anything, and only all that it needs. So nobody overtakes, a large request too is
   served, and one element wakes one waiter.
3. A grant is a number of elements, not certain ones: they stay in the reserve until they are taken. A waiter that dies
   or is cancelled just then loses nothing: its number goes to the next.

A thread sleeps on N_STATE (futex), an event loop on an eventfd; both are woken with the arena lock held, so that whoever gives
up may close its eventfd afterwards. Everything here is done with the lock.

When pool or arena go, nodes of the queue become GONE, so that nobody falls asleep who was just about to.

Invariant: P_WAITERS = nodes in the queue, all WAITING; P_NODES = P_WAITERS + granted nodes.
Invariant: P_GRANTED = sum of N_NEED over granted nodes <= P_CURR_NR.
Invariant: the queue is empty, or its head needs more than P_CURR_NR - P_GRANTED.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, atomic_store
from realalloc.mm.bits import clz
from realalloc.mm.descriptors import bad_chain
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked, kmalloc_locked
from realalloc.mm.layout import (
    BAD_POOL_QUEUE,
    CHUNK_NODES,
    FIRST_NODES,
    GFP_ORDINARY,
    N_FD,
    N_NEED,
    N_NEXT,
    N_PREV,
    N_SINCE_NS,
    N_STATE,
    N_TICKET,
    NODE_FREE,
    NODE_GONE,
    NODE_GRANTED,
    NODE_WAITING,
    NODE_WORDS,
    OK,
    P_CHUNKS,
    P_CURR_NR,
    P_FREE_NODES,
    P_FULL_NS,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_GRANTED,
    P_HEAD,
    P_MAX_WAIT_NS,
    P_NODES,
    P_NODES_FIRST,
    P_PEAK_WAITERS,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    P_SINCE_NS,
    P_SOME_NS,
    P_TAIL,
    P_TICKETS,
    P_WAIT_COUNTS,
    P_WAITERS,
    TICKET_SHIFT,
    TICKETS,
    WAIT_BUCKETS,
    WAIT_SHIFT,
    WORD_BYTES,
)
from realalloc.mm.prim import eventfd_signal, futex_wake_one, monotonic_ns

NODE_MASK = (1 << TICKET_SHIFT) - 1  # a request's node


@kernel
def pool_out(words: Words, p: int) -> int:
    """Count elements that users hold."""
    gets = words[p + P_GETS_RESERVE] + words[p + P_GETS_ALLOC]
    return gets - words[p + P_PUTS_RESERVE] - words[p + P_PUTS_FREE]


@kernel
def spare_elements(words: Words, p: int) -> int:
    """Count elements of the reserve that are not granted to anyone."""
    return words[p + P_CURR_NR] - words[p + P_GRANTED]


@kernel
def account_locked(words: Words, p: int) -> None:
    """Bring the stall times up to date, before the number of waiters or of elements out changes."""
    if words[p + P_WAITERS] > 0:
        now = monotonic_ns()
        words[p + P_SOME_NS] += now - words[p + P_SINCE_NS]
        if words[p + P_WAITERS] >= pool_out(words, p):
            words[p + P_FULL_NS] += now - words[p + P_SINCE_NS]
        words[p + P_SINCE_NS] = now


@kernel
def wait_bucket(wait_ns: int) -> int:
    """Return the bucket of a wait: four to an octave."""
    scaled = max(wait_ns >> WAIT_SHIFT, 1)
    octave = 63 - clz(scaled)
    quarter = ((scaled << 2) >> octave) & 3
    return min(octave * 4 + quarter, WAIT_BUCKETS - 1)


@kernel
def _add_nodes(words: Words, p: int, first: int, count: int) -> None:
    for k in range(count - 1, -1, -1):
        node = first + k * NODE_WORDS
        words[node + N_STATE] = NODE_FREE
        words[node + N_TICKET] = 0
        words[node + N_NEXT] = words[p + P_FREE_NODES]
        words[p + P_FREE_NODES] = node


@kernel
def init_nodes_locked(words: Words, p: int) -> None:
    """Free the nodes that are part of the descriptor."""
    _add_nodes(words, p, p + P_NODES_FIRST, FIRST_NODES)


@kernel
def _take_node(words: Words, p: int) -> int:
    if words[p + P_FREE_NODES] == 0:
        offset = kmalloc_locked(words, (CHUNK_NODES + 1) * NODE_WORDS * WORD_BYTES, GFP_ORDINARY)
        if offset < 0:
            return 0
        chunk = offset // WORD_BYTES
        words[chunk] = words[p + P_CHUNKS]
        words[p + P_CHUNKS] = chunk
        _add_nodes(words, p, chunk + NODE_WORDS, CHUNK_NODES)
    node = words[p + P_FREE_NODES]
    words[p + P_FREE_NODES] = words[node + N_NEXT]
    words[p + P_NODES] += 1
    return node


@kernel
def _free_node(words: Words, p: int, node: int) -> None:
    atomic_store(words, node + N_STATE, NODE_FREE)
    words[node + N_TICKET] = 0
    words[node + N_NEXT] = words[p + P_FREE_NODES]
    words[p + P_FREE_NODES] = node
    words[p + P_NODES] -= 1


@kernel
def _unlink(words: Words, p: int, node: int) -> None:
    account_locked(words, p)
    after = words[node + N_NEXT]
    before = words[node + N_PREV]
    words[before + N_NEXT if before != 0 else p + P_HEAD] = after
    words[after + N_PREV if after != 0 else p + P_TAIL] = before
    words[p + P_WAITERS] -= 1


@kernel
def wake_node_locked(words: Words, node: int) -> None:
    """Wake whoever waits by a node, to look at it."""
    if words[node + N_FD] >= 0:
        eventfd_signal(words[node + N_FD])
    else:
        futex_wake_one(address_of(words) + (node + N_STATE) * WORD_BYTES)


@entry
def grant_locked(words: Words, p: int) -> int:
    """Grant elements to the queue from its head on, as far as they go."""
    while words[p + P_HEAD] != 0 and words[words[p + P_HEAD] + N_NEED] <= spare_elements(words, p):
        node = words[p + P_HEAD]
        _unlink(words, p, node)
        words[p + P_GRANTED] += words[node + N_NEED]
        atomic_store(words, node + N_STATE, NODE_GRANTED)
        wake_node_locked(words, node)
    return OK


@entry
def enqueue_locked(words: Words, p: int, need: int, fd: int) -> int:
    """Queue a request for ``need`` elements; return its node, 0 if there is no memory for one."""
    node = _take_node(words, p)
    if node == 0:
        return 0
    account_locked(words, p)
    words[p + P_TICKETS] += 1
    words[node + N_TICKET] = 1 + words[p + P_TICKETS] % TICKETS
    words[node + N_NEED] = need
    words[node + N_FD] = fd
    words[node + N_SINCE_NS] = 0
    words[node + N_STATE] = NODE_WAITING
    last = words[p + P_TAIL]
    words[node + N_NEXT] = 0
    words[node + N_PREV] = last
    words[last + N_NEXT if last != 0 else p + P_HEAD] = node
    words[p + P_TAIL] = node
    if words[p + P_WAITERS] == 0:
        words[p + P_SINCE_NS] = monotonic_ns()
    words[p + P_WAITERS] += 1
    return node


@kernel
def waits_from_now_locked(words: Words, p: int, node: int) -> None:
    """Note that a request was not served at once."""
    words[node + N_SINCE_NS] = monotonic_ns()
    words[p + P_PEAK_WAITERS] = max(words[p + P_PEAK_WAITERS], words[p + P_WAITERS])


@kernel
def spend_grant_locked(words: Words, p: int, node: int) -> int:
    """Use one element of a grant up, the caller takes it now; return 1 if the request had waited."""
    waited = 1 if words[node + N_SINCE_NS] != 0 else 0
    words[p + P_GRANTED] -= 1
    words[node + N_NEED] -= 1
    if words[node + N_NEED] == 0:
        if waited == 1:
            wait_ns = monotonic_ns() - words[node + N_SINCE_NS]
            words[p + P_WAIT_COUNTS + wait_bucket(wait_ns)] += 1
            words[p + P_MAX_WAIT_NS] = max(words[p + P_MAX_WAIT_NS], wait_ns)
        _free_node(words, p, node)
    return waited


@kernel
def request_of(words: Words, node: int) -> int:
    """Return the name of the request that a node now is: the node and its ticket."""
    return words[node + N_TICKET] << TICKET_SHIFT | node


@kernel
def node_of(words: Words, request: int) -> int:
    """Return the node of a request, 0 if the request is over: its node is free, or another request's."""
    node = request & NODE_MASK
    return node if request != 0 and words[node + N_TICKET] == request >> TICKET_SHIFT else 0


@entry
def leave_locked(words: Words, p: int, request: int) -> int:
    """Give a request up, whether it waits or was granted something; nothing if it is over. Its grant goes to the next."""
    node = node_of(words, request)
    if node == 0:
        return OK
    if words[node + N_STATE] != NODE_GRANTED:
        _unlink(words, p, node)
    else:
        words[p + P_GRANTED] -= words[node + N_NEED]
    _free_node(words, p, node)
    return grant_locked(words, p)


@entry
def wake_all_locked(words: Words, p: int) -> int:
    """Wake every waiter for good: pool or arena are going. Who was just about to sleep finds the word changed."""
    node = words[p + P_HEAD]
    while node != 0:
        atomic_store(words, node + N_STATE, NODE_GONE)
        wake_node_locked(words, node)
        node = words[node + N_NEXT]
    return OK


@kernel
def _forget_nodes(words: Words, p: int, first: int, count: int) -> None:
    for k in range(count):
        node = first + k * NODE_WORDS
        if words[node + N_STATE] != NODE_FREE:
            _free_node(words, p, node)


@entry
def forget_waiters(words: Words, p: int) -> int:
    """Free all requests: in the child of a fork nobody waits."""
    _forget_nodes(words, p, p + P_NODES_FIRST, FIRST_NODES)
    chunk = words[p + P_CHUNKS]
    while chunk != 0:
        _forget_nodes(words, p, chunk + NODE_WORDS, CHUNK_NODES)
        chunk = words[chunk]
    words[p + P_HEAD] = 0
    words[p + P_TAIL] = 0
    words[p + P_WAITERS] = 0
    words[p + P_GRANTED] = 0
    return OK


@entry
def free_chunks_locked(words: Words, p: int) -> int:
    """Give the nodes that are not part of the descriptor back; none is in use."""
    chunk = words[p + P_CHUNKS]
    while chunk != 0:
        after = words[chunk]
        kfree_locked(words, chunk * WORD_BYTES)
        chunk = after
    words[p + P_CHUNKS] = 0
    return OK


@kernel
def _count_granted(words: Words, first: int, count: int) -> int:
    """Return nodes << 32 | elements of the granted requests of a chunk."""
    found = 0
    for k in range(count):
        node = first + k * NODE_WORDS
        if words[node + N_STATE] == NODE_GRANTED:
            found += (1 << 32) + words[node + N_NEED]
    return found


@kernel
def _is_node(words: Words, p: int, node: int) -> int:
    """Tell whether an index is that of a node of the pool, whose chunks can be followed."""
    if 0 <= node - p - P_NODES_FIRST < FIRST_NODES * NODE_WORDS:
        return 1 if (node - p - P_NODES_FIRST) % NODE_WORDS == 0 else 0
    chunk = words[p + P_CHUNKS]
    while chunk != 0 and not NODE_WORDS <= node - chunk <= CHUNK_NODES * NODE_WORDS:
        chunk = words[chunk]
    return 1 if chunk != 0 and (node - chunk) % NODE_WORDS == 0 else 0


@entry
def validate_queue_locked(words: Words, p: int) -> int:
    """Check the invariants at the head of this file; OK or BAD_POOL_QUEUE."""
    waiting = 0
    before = 0
    if bad_chain(words, words[p + P_CHUNKS], 0, (CHUNK_NODES + 1) * NODE_WORDS) == 1:
        return BAD_POOL_QUEUE
    node = words[p + P_HEAD]
    while node != 0 and waiting <= words[p + P_WAITERS]:
        if _is_node(words, p, node) == 0:
            return BAD_POOL_QUEUE
        if words[node + N_STATE] != NODE_WAITING or words[node + N_PREV] != before or words[node + N_NEED] <= 0:
            return BAD_POOL_QUEUE
        waiting += 1
        before = node
        node = words[node + N_NEXT]
    granted = _count_granted(words, p + P_NODES_FIRST, FIRST_NODES)
    chunk = words[p + P_CHUNKS]
    while chunk != 0:
        granted += _count_granted(words, chunk + NODE_WORDS, CHUNK_NODES)
        chunk = words[chunk]
    if (
        waiting != words[p + P_WAITERS]
        or before != words[p + P_TAIL]
        or waiting + (granted >> 32) != words[p + P_NODES]
    ):
        return BAD_POOL_QUEUE
    if granted & 0xFFFFFFFF != words[p + P_GRANTED] or spare_elements(words, p) < 0:
        return BAD_POOL_QUEUE
    if waiting != 0 and words[words[p + P_HEAD] + N_NEED] <= spare_elements(words, p):
        return BAD_POOL_QUEUE
    return OK
