"""The queue of a mempool: order, grants that are taken or given up, nodes beyond the first; a model that knows who is next."""

from __future__ import annotations

from collections import deque

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kernels import assert_pristine, destroy_pool, resize_pool
from support import PAGE, RawArena

from realalloc.mm.layout import (
    BACKING_KMALLOC,
    BAD_POOL_QUEUE,
    CHUNK_NODES,
    EBUSY,
    EINVAL,
    ENOMEM,
    FIRST_NODES,
    GFP_WAIT_BIT,
    N_STATE,
    NODE_GRANTED,
    NODE_WAITING,
    P_CURR_NR,
    P_FAIL_BELOW,
    P_FAIL_TIMES,
    P_FREE_NODES,
    P_GETS_WAIT,
    P_GRANTED,
    P_MAX_WAIT_NS,
    P_NODES,
    P_PEAK_WAITERS,
    P_WAIT_COUNTS,
    P_WAITERS,
    WAIT_BUCKETS,
    WAIT_SHIFT,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc, pool_alloc_reserved, pool_free
from realalloc.mm.mempool_life import pool_create, pool_fill, pool_refill, validate_pool
from realalloc.mm.mempool_wait import after_fork, pool_alloc_wait, pool_claim, pool_wait_begin, pool_wait_end
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.waiters import NODE_MASK, wait_bucket


def make_pool(raw: RawArena, min_nr: int, *, failing: bool = True) -> int:
    """Make a pool that has its reserve and nothing else: the backing allocator fails from then on."""
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, 100, 100, 0, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == 0
    if failing:
        raw.words[p + P_FAIL_BELOW] = 1 << 24
        raw.words[p + P_FAIL_TIMES] = -1
    return p


@numba.njit
def bucket(wait_ns):
    """Call what is only ever inlined."""
    return wait_bucket(wait_ns)


def get(raw: RawArena, p: int, name: int) -> int:
    return int(raw.words[p + name])


def begin(raw: RawArena, p: int, need: int = 1) -> tuple[int, int]:
    """Queue a request; return status and name."""
    out = np.zeros(1, np.int64)
    return int(pool_wait_begin(raw.words, p, need, -1, out)), int(out[0])


def state(raw: RawArena, request: int) -> int:
    return int(raw.words[(request & NODE_MASK) + N_STATE])


def waiting(raw: RawArena, p: int, need: int = 1) -> int:
    status, request = begin(raw, p, need)
    assert status == EBUSY and state(raw, request) == NODE_WAITING
    return request


def take(raw: RawArena, p: int, count: int) -> list[int]:
    taken = [int(pool_alloc(raw.words, p, 0)) for _ in range(count)]
    assert min(taken) > 0
    return taken


def check(raw: RawArena, p: int) -> None:
    assert validate_pool(raw.words, p) == 0


def test_each_element_that_comes_back_goes_to_the_oldest_request(raw: RawArena) -> None:
    p = make_pool(raw, 3)
    held = take(raw, p, 3)
    requests = [waiting(raw, p) for _ in range(5)]
    assert get(raw, p, P_WAITERS) == get(raw, p, P_PEAK_WAITERS) == 5
    for k in range(3):
        assert pool_free(raw.words, p, held[k]) == 0
        assert [state(raw, r) for r in requests] == [NODE_GRANTED] * (k + 1) + [NODE_WAITING] * (4 - k)
        check(raw, p)
    assert pool_alloc(raw.words, p, 0) == pool_alloc_reserved(raw.words, p) == ENOMEM  # all of it is granted
    taken = [int(pool_claim(raw.words, p, r)) for r in requests[:3]]
    assert sorted(taken) == sorted(held)
    assert pool_claim(raw.words, p, requests[3]) == EBUSY
    assert pool_claim(raw.words, p, requests[0]) == EINVAL  # it is over
    assert get(raw, p, P_GETS_WAIT) == 3
    for offset in taken[:2]:
        pool_free(raw.words, p, offset)
    taken += [int(pool_claim(raw.words, p, r)) for r in requests[3:]]
    for offset in taken[2:]:
        pool_free(raw.words, p, offset)
    assert sum(get(raw, p, P_WAIT_COUNTS + k) for k in range(WAIT_BUCKETS)) == 5
    assert get(raw, p, P_MAX_WAIT_NS) > 0
    check(raw, p)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_nobody_overtakes_a_request_for_many(raw: RawArena) -> None:
    p = make_pool(raw, 4)
    held = take(raw, p, 3)  # one is left
    many, one = waiting(raw, p, 3), waiting(raw, p, 1)
    assert pool_alloc(raw.words, p, GFP_WAIT_BIT) == pool_alloc(raw.words, p, 0) == ENOMEM
    pool_free(raw.words, p, held.pop())
    assert [state(raw, many), state(raw, one)] == [NODE_WAITING] * 2
    pool_free(raw.words, p, held.pop())
    assert [state(raw, many), state(raw, one)] == [NODE_GRANTED, NODE_WAITING]
    assert get(raw, p, P_GRANTED) == 3
    first = int(pool_claim(raw.words, p, many))
    assert pool_wait_end(raw.words, p, many) == 0  # two of three were not taken: the next has one of them
    assert state(raw, one) == NODE_GRANTED
    check(raw, p)
    second = int(pool_claim(raw.words, p, one))
    for offset in (*held, first, second):
        assert pool_free(raw.words, p, offset) == 0
    check(raw, p)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_who_leaves_passes_the_grant_on_and_lets_those_behind_move_up(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    held = take(raw, p, 2)
    requests = [waiting(raw, p, need) for need in (2, 1, 2, 1)]
    pool_free(raw.words, p, held[0])
    assert [state(raw, r) for r in requests] == [NODE_WAITING] * 4
    pool_wait_end(raw.words, p, requests[0])
    assert state(raw, requests[1]) == NODE_GRANTED
    check(raw, p)
    pool_wait_end(raw.words, p, requests[1])
    pool_wait_end(raw.words, p, requests[1])  # over: nothing
    assert state(raw, requests[2]) == NODE_WAITING
    pool_wait_end(raw.words, p, requests[2])
    assert state(raw, requests[3]) == NODE_GRANTED
    taken = int(pool_claim(raw.words, p, requests[3]))
    assert taken == held[0]
    assert get(raw, p, P_NODES) == 0
    for offset in (taken, held[1]):
        pool_free(raw.words, p, offset)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("count", [FIRST_NODES, FIRST_NODES + 1, FIRST_NODES + CHUNK_NODES + 1, 200])
def test_any_number_of_requests(raw: RawArena, count: int) -> None:
    p = make_pool(raw, 1)
    (held,) = take(raw, p, 1)
    requests = [waiting(raw, p) for _ in range(count)]
    assert len(set(requests)) == count
    check(raw, p)
    for request in requests[2::3]:
        pool_wait_end(raw.words, p, request)
    check(raw, p)
    for request in [request for k, request in enumerate(requests) if k % 3 != 2]:
        pool_free(raw.words, p, held)
        assert state(raw, request) == NODE_GRANTED
        held = int(pool_claim(raw.words, p, request))
    check(raw, p)
    assert get(raw, p, P_NODES) == 0
    pool_free(raw.words, p, held)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_without_memory_for_a_node_there_is_no_request(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    (held,) = take(raw, p, 1)
    requests = [waiting(raw, p) for _ in range(FIRST_NODES)]
    pages = []
    while (pfn := int(alloc_pages(raw.words, 0, 0))) > 0:
        pages.append(pfn)
    assert begin(raw, p) == (ENOMEM, 0)
    check(raw, p)
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    requests.append(waiting(raw, p))
    for request in requests:
        pool_wait_end(raw.words, p, request)
    pool_free(raw.words, p, held)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_request_that_can_never_be_served_is_refused(raw: RawArena) -> None:
    p = make_pool(raw, 3)
    assert begin(raw, p, 4) == (EINVAL, 0)
    status, request = begin(raw, p, 3)
    assert status == 0 and get(raw, p, P_GRANTED) == 3
    assert resize_pool(raw, p, 2) == EBUSY
    pool_wait_end(raw.words, p, request)
    held = take(raw, p, 1)
    request = waiting(raw, p, 3)
    assert resize_pool(raw, p, 2) == EBUSY
    assert destroy_pool(raw, p) == EBUSY
    pool_wait_end(raw.words, p, request)
    assert resize_pool(raw, p, 2) == 0
    pool_free(raw.words, p, held[0])
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_pool_ends_by_force_with_its_last_element_and_its_last_waiter(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    held = take(raw, p, 2)
    request = waiting(raw, p)
    pool_free(raw.words, p, held.pop())
    assert state(raw, request) == NODE_GRANTED
    last = waiting(raw, p)
    assert destroy_pool(raw, p, force=1) == 0
    assert pool_claim(raw.words, p, request) == EINVAL
    assert begin(raw, p) == (EINVAL, 0)
    assert pool_alloc(raw.words, p, 0) == ENOMEM
    pool_wait_end(raw.words, p, request)
    pool_free(raw.words, p, held.pop())
    pool_wait_end(raw.words, p, last)
    assert_pristine(raw)  # the descriptor is gone, too


def test_the_child_of_a_fork_has_no_requests(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    held = take(raw, p, 2)
    requests = [waiting(raw, p) for _ in range(FIRST_NODES + 3)]
    pool_free(raw.words, p, held.pop())
    assert after_fork(raw.words) == 0
    assert [get(raw, p, name) for name in (P_WAITERS, P_GRANTED, P_NODES)] == [0, 0, 0]
    check(raw, p)
    for request in requests:
        assert pool_claim(raw.words, p, request) == EINVAL
        assert pool_wait_end(raw.words, p, request) == 0
    held += take(raw, p, 1)
    for offset in held:
        pool_free(raw.words, p, offset)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_the_backing_allocator_serves_the_queue_in_order(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    held = take(raw, p, 2)
    requests = [waiting(raw, p) for _ in range(3)]
    raw.words[p + P_FAIL_TIMES] = 0
    assert pool_refill(raw.words, p, 2) == 0
    assert [state(raw, r) for r in requests] == [NODE_GRANTED] * 2 + [NODE_WAITING]
    status, newest = begin(raw, p)  # comes after the one that waits, and both are served: the reserve has room again
    assert status == EBUSY  # it is full of what the first two were granted
    held += [int(pool_claim(raw.words, p, r)) for r in requests[:2]]
    assert pool_alloc(raw.words, p, GFP_WAIT_BIT) == ENOMEM
    fresh = int(pool_alloc(raw.words, p, 0))  # who may not wait has one of its own
    assert fresh > 0
    held.append(fresh)
    assert pool_refill(raw.words, p, 2) == 0
    held += [int(pool_claim(raw.words, p, r)) for r in (requests[2], newest)]
    check(raw, p)
    for offset in held:
        assert pool_free(raw.words, p, offset) == 0
    assert get(raw, p, P_CURR_NR) == 2
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_jitted_wait_ends_with_an_element_or_its_time(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    held = int(pool_alloc_wait(raw.words, p, -1))
    assert held > 0
    assert pool_alloc_wait(raw.words, p, 1_000_000) == pool_alloc_wait(raw.words, p, 0) == ENOMEM
    assert get(raw, p, P_NODES) == 0
    pool_free(raw.words, p, held)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_buckets_of_waits_grow_by_quarters_of_an_octave() -> None:
    edges = sorted({(4 + q) << (octave + WAIT_SHIFT) >> 2 for octave in range(30) for q in range(4)})
    for edge in edges:
        assert bucket(edge) >= bucket(edge - 1)
        octave = (edge >> WAIT_SHIFT).bit_length() - 1
        low = ((4 + bucket(edge) % 4) << (octave + WAIT_SHIFT)) >> 2
        assert bucket(edge) // 4 == min(octave, WAIT_BUCKETS // 4 - 1)
        assert octave < 2 or octave >= WAIT_BUCKETS // 4 or low <= edge < low * 1.26
    assert bucket(0) == bucket(1) == 0
    assert bucket(1 << 62) == WAIT_BUCKETS - 1


def test_the_walker_notices_a_lost_request(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    held = take(raw, p, 1)
    request = waiting(raw, p)
    raw.words[p + P_WAITERS] += 1
    assert validate_pool(raw.words, p) == BAD_POOL_QUEUE
    raw.words[p + P_WAITERS] -= 1
    raw.words[p + P_GRANTED] += 1
    assert validate_pool(raw.words, p) == BAD_POOL_QUEUE
    raw.words[p + P_GRANTED] -= 1
    check(raw, p)
    pool_wait_end(raw.words, p, request)
    pool_free(raw.words, p, held[0])
    assert get(raw, p, P_FREE_NODES) != 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


class Machine(RuleBasedStateMachine):
    """A pool beside a queue in Python that says who is served, and when."""

    @initialize(min_nr=st.integers(0, 5))
    def make(self, min_nr: int) -> None:
        self.raw = RawArena(64 * PAGE, 4)
        self.p = make_pool(self.raw, min_nr)
        self.capacity = max(1, min_nr)
        self.reserve = self.capacity
        self.held: list[int] = []
        self.queue: deque[tuple[int, int]] = deque()
        self.granted: dict[int, int] = {}

    def grant(self) -> None:
        while self.queue and self.queue[0][1] <= self.reserve - sum(self.granted.values()):
            request, need = self.queue.popleft()
            self.granted[request] = need

    @rule()
    def alloc(self) -> None:
        offset = int(pool_alloc(self.raw.words, self.p, 0))
        if not self.queue and self.reserve > sum(self.granted.values()):
            assert offset > 0
            self.held.append(offset)
            self.reserve -= 1
        else:
            assert offset == ENOMEM

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1000))
    def free(self, which: int) -> None:
        offset = self.held.pop(which % len(self.held))
        assert pool_free(self.raw.words, self.p, offset) == 0
        self.reserve = min(self.reserve + 1, self.capacity)
        self.grant()

    @rule(need=st.integers(1, 6))
    def ask(self, need: int) -> None:
        status, request = begin(self.raw, self.p, need)
        if need > self.capacity:
            assert (status, request) == (EINVAL, 0)
            return
        self.queue.append((request, need))
        self.grant()
        assert status == (0 if request in self.granted else EBUSY)

    @precondition(lambda self: self.granted)
    @rule(which=st.integers(0, 1000))
    def claim(self, which: int) -> None:
        request = sorted(self.granted)[which % len(self.granted)]
        offset = int(pool_claim(self.raw.words, self.p, request))
        assert offset > 0 and offset not in self.held
        self.held.append(offset)
        self.reserve -= 1
        self.granted[request] -= 1
        if not self.granted[request]:
            del self.granted[request]

    @precondition(lambda self: self.granted or self.queue)
    @rule(which=st.integers(0, 1000))
    def leave(self, which: int) -> None:
        every = sorted([*self.granted, *(request for request, _ in self.queue)])
        request = every[which % len(every)]
        pool_wait_end(self.raw.words, self.p, request)
        self.granted.pop(request, None)
        self.queue = deque(entry for entry in self.queue if entry[0] != request)
        self.grant()

    @rule(min_nr=st.integers(0, 6))
    def resize(self, min_nr: int) -> None:
        capacity = max(1, min_nr)
        wanted = max([need for _, need in self.queue] + [sum(self.granted.values())])
        status = resize_pool(self.raw, self.p, min_nr)
        if wanted > capacity:
            assert status == EBUSY
        else:
            assert status == 0
            self.capacity = capacity
            self.reserve = min(self.reserve, capacity)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "raw"):
            return
        check(self.raw, self.p)
        fields = [get(self.raw, self.p, name) for name in (P_CURR_NR, P_WAITERS, P_GRANTED)]
        assert fields == [self.reserve, len(self.queue), sum(self.granted.values())]

    def teardown(self) -> None:
        if not hasattr(self, "raw"):
            return
        for request in [*self.granted, *(request for request, _ in self.queue)]:
            pool_wait_end(self.raw.words, self.p, request)
        for offset in self.held:
            pool_free(self.raw.words, self.p, offset)
        assert destroy_pool(self.raw, self.p) == 0
        assert_pristine(self.raw)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
