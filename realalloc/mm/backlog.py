"""When dirty pages go back: a backlog of epochs, and a smooth curve from all to nothing over the decay time (as jemalloc's).

The decay time has DECAY_EPOCHS epochs. At the end of each, the purgeable pages that came in it are put in front of the
backlog, and what may stay is the sum of the backlog, each entry by the share that its age allows: smootherstep,
6x^5 - 15x^4 + 10x^3, so that a burst goes back slowly, then fast, then slowly, and wholly after the decay time. What came is
what is above the lowest mark of dirty pages in the epoch: pages that are taken and freed all the time never age (jemalloc,
which compares the ends of epochs, gives them back).

Where kswapd serves an arena, it alone calls what is here, without the arena lock but for purging. Elsewhere who frees pages
does, with the lock, each time INLINE_PAGES were freed: an arena in which nothing happens then keeps what it has.
Invariant: after an epoch the backlog's sum is the purgeable pages; Y_STUCK are those that no purge could take.
Y_LOW is written without order by who allocates and by kswapd: a mark that is lost makes pages older than they are.
"""

from __future__ import annotations

from realalloc.mm.commit import DROP_PAGES, MIN_RUN_ORDER, MIN_RUN_PAGES, purge_locked, purgeable_pages
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    DECAY,
    DECAY_EPOCHS,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    Y_BACKLOG,
    Y_EPOCH_NS,
    Y_EPOCHS,
    Y_FREED,
    Y_LOW,
    Y_NS,
    Y_PURGED,
    Y_SERVED,
    Y_STUCK,
)
from realalloc.mm.prim import monotonic_ns

INLINE_PAGES = 64  # freed pages for each look at the clock
INLINE_PURGE_PAGES = 1024  # that who frees gives back at most, at one time
SHARE_SHIFT = 10


def _share(age: int) -> int:
    x = 1 - (age + 1) / DECAY_EPOCHS
    return round((6 * x**5 - 15 * x**4 + 10 * x**3) * (1 << SHARE_SHIFT))


SHARES = tuple(_share(age) for age in range(DECAY_EPOCHS))  # of what came so many epochs ago, 1024 for all


@kernel
def _kept_by_age(words: Words) -> int:
    total = 0
    for age in range(DECAY_EPOCHS):
        total += words[DECAY + Y_BACKLOG + age] * SHARES[age]
    return total >> SHARE_SHIFT


@kernel
def purgeable_now(words: Words) -> int:
    """Count the pages that decay can give back, but for those that it has tried in vain."""
    return max(0, purgeable_pages(words) - words[DECAY + Y_STUCK])


@kernel
def _marked(words: Words) -> int:
    return words[H_COMMITTED_PAGES] - words[H_ALLOCATED_PAGES]


@kernel
def _shorten(words: Words, pages: int) -> None:
    """Take the youngest pages off the backlog, which were taken again first, until ``pages`` are left."""
    total = 0
    for age in range(DECAY_EPOCHS):
        total += words[DECAY + Y_BACKLOG + age]
    for age in range(DECAY_EPOCHS):
        gone = min(words[DECAY + Y_BACKLOG + age], max(0, total - pages))
        words[DECAY + Y_BACKLOG + age] -= gone
        total -= gone


@entry
def surplus(words: Words, now_ns: int) -> int:
    """Move on to the present epoch; return how many purgeable pages are more than may stay, 0 before an epoch has ended."""
    step = max(1, words[DECAY + Y_NS] // DECAY_EPOCHS)
    ended = (now_ns - words[DECAY + Y_EPOCH_NS]) // step
    if ended <= 0:
        return 0
    words[DECAY + Y_EPOCH_NS] += ended * step
    words[DECAY + Y_EPOCHS] += ended
    shift = min(ended, DECAY_EPOCHS)
    for age in range(DECAY_EPOCHS - 1, -1, -1):
        words[DECAY + Y_BACKLOG + age] = words[DECAY + Y_BACKLOG + age - shift] if age >= shift else 0
    dirty = _marked(words)
    purgeable = purgeable_now(words)
    old = max(0, min(words[DECAY + Y_LOW], dirty) - (dirty - purgeable))
    words[DECAY + Y_LOW] = dirty
    _shorten(words, old)
    words[DECAY + Y_BACKLOG] += purgeable - old
    more = purgeable - _kept_by_age(words)
    return more if more >= MIN_RUN_PAGES else 0  # fewer are not worth a system call


@kernel
def settle(words: Words, wanted: int, purged: int) -> None:
    """Write down what came of a surplus."""
    words[DECAY + Y_PURGED] += purged
    if wanted >= DROP_PAGES or purged == 0:  # else what is left may just be less than a huge unit
        words[DECAY + Y_STUCK] += max(0, wanted - purged)
    words[DECAY + Y_LOW] = min(words[DECAY + Y_LOW], _marked(words))


@entry
def decay_inline_locked(words: Words) -> int:
    """Give back what is more than may stay, a bounded part of it, where kswapd does not."""
    words[DECAY + Y_FREED] = 0
    if words[DECAY + Y_NS] <= 0:
        return 0
    wanted = min(surplus(words, monotonic_ns()), INLINE_PURGE_PAGES)
    purged = purge_locked(words, wanted, MIN_RUN_ORDER, 0) if wanted > 0 else 0
    settle(words, 0, purged)
    return purged


@kernel
def account_freed(words: Words, pages: int) -> None:
    """Hear that pages were freed."""
    words[DECAY + Y_FREED] += pages
    if words[DECAY + Y_FREED] >= INLINE_PAGES and words[DECAY + Y_SERVED] == 0:
        decay_inline_locked(words)
