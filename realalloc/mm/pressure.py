"""How long allocations have stalled for want of memory: the kernel's pressure stall information (kernel/sched/psi.c).

*full*: time in which nobody could have had fresh pages, since who held the lock was taking memory back. *some*: that, and
time in which a thread alone was held up: in shrinkers, in a throttle. Averages over 10, 60 and 300 s are exponential, as
the kernel's, of periods of 2 s, in fixed point: FIXED_1 is all of the time. They are brought up to date when somebody looks,
and by kswapd.

A trigger fires, once a window at most, when the stall within its window reaches its threshold: by who stalls, at the end
of the stall, which is the only moment at which it can. It writes to an eventfd.
Invariant: total of some >= total of full, and both only grow.
"""

from __future__ import annotations

from realalloc.mm.atomic import compare_and_swap, lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    ENOMEM,
    OK,
    PRESSURE,
    PSI_AVERAGES,
    PSI_FULL_NS,
    PSI_SEEN_NS,
    PSI_SOME_NS,
    PSI_TRIGGERS,
    PSI_UPDATED_NS,
    TRG_BEGAN_NS,
    TRG_BEGAN_TOTAL_NS,
    TRG_FD,
    TRG_FIRED,
    TRG_FULL,
    TRG_LAST_TOTAL_NS,
    TRG_THRESHOLD_NS,
    TRG_WINDOW_NS,
    TRIGGER_WORDS,
    TRIGGERS,
)
from realalloc.mm.prim import eventfd_signal, monotonic_ns

PERIOD_NS = 2_000_000_000  # kernel: PSI_FREQ
FIXED_SHIFT = 11
FIXED_1 = 1 << FIXED_SHIFT
DECAYS = (1677, 1981, 2034)  # 1/exp(2s/10s), 1/exp(2s/60s), 1/exp(2s/300s); kernel: EXP_10s ...
AVERAGE_SHIFT = 20  # averages are kept finer than the kernel's percent with two places
MOST_PERIODS = 4096  # after which nothing is left of an average


@kernel
def _total(words: Words, full: int) -> int:
    return words[PRESSURE + PSI_FULL_NS] + (0 if full == 1 else words[PRESSURE + PSI_SOME_NS])


@kernel
def _fold(average: int, decay: int, share: int) -> int:
    """Let one period pass (kernel: calc_load)."""
    return (average * decay + share * (FIXED_1 - decay)) >> FIXED_SHIFT


@entry
def update_pressure(words: Words, now_ns: int) -> int:
    """Bring the averages up to date; whole periods in which nobody looked count as one stretch, the stall spread over it."""
    last = words[PRESSURE + PSI_UPDATED_NS]
    periods = (now_ns - last) // PERIOD_NS
    if periods <= 0 or compare_and_swap(words, PRESSURE + PSI_UPDATED_NS, last, last + periods * PERIOD_NS) == 0:
        return 0
    for full in range(2):
        total = _total(words, full)
        stalled = total - words[PRESSURE + PSI_SEEN_NS + full]
        words[PRESSURE + PSI_SEEN_NS + full] = total
        share = min(1 << AVERAGE_SHIFT, (stalled << AVERAGE_SHIFT) // (periods * PERIOD_NS))
        for k in range(3):
            at = PRESSURE + PSI_AVERAGES + 3 * full + k
            for _ in range(min(periods, MOST_PERIODS)):
                words[at] = _fold(words[at], DECAYS[k], share)
    return periods


@kernel
def _watch(words: Words, at: int, now_ns: int) -> None:
    """Look whether a trigger has to fire (kernel: update_triggers, window_update)."""
    total = _total(words, words[at + TRG_FULL])
    if now_ns - words[at + TRG_BEGAN_NS] > words[at + TRG_WINDOW_NS]:
        words[at + TRG_BEGAN_NS] = now_ns
        words[at + TRG_BEGAN_TOTAL_NS] = words[at + TRG_LAST_TOTAL_NS]
        words[at + TRG_FIRED] = 0
    words[at + TRG_LAST_TOTAL_NS] = total
    if words[at + TRG_FIRED] == 0 and total - words[at + TRG_BEGAN_TOTAL_NS] >= words[at + TRG_THRESHOLD_NS]:
        words[at + TRG_FIRED] = 1
        eventfd_signal(words[at + TRG_FD] - 1)


@entry
def account_stall_locked(words: Words, ns: int, full: int) -> int:
    """Count a stall that has ended."""
    words[PRESSURE + (PSI_FULL_NS if full == 1 else PSI_SOME_NS)] += max(0, ns)
    now_ns = 0
    for k in range(TRIGGERS):
        at = PRESSURE + PSI_TRIGGERS + k * TRIGGER_WORDS
        if words[at + TRG_FD] > 0:
            now_ns = monotonic_ns() if now_ns == 0 else now_ns
            _watch(words, at, now_ns)
    return OK


@entry
def account_stall(words: Words, ns: int) -> int:
    """Count a stall of the calling thread alone."""
    lock(words)
    account_stall_locked(words, ns, 0)
    unlock(words)
    return OK


@entry
def add_trigger(words: Words, fd: int, full: int, threshold_ns: int, window_ns: int) -> int:
    """Have ``fd`` written to when the stall in a window reaches the threshold; the trigger's number, or ENOMEM."""
    result = ENOMEM
    lock(words)
    for k in range(TRIGGERS):
        at = PRESSURE + PSI_TRIGGERS + k * TRIGGER_WORDS
        if result == ENOMEM and words[at + TRG_FD] == 0:
            words[at + TRG_FD] = fd + 1
            words[at + TRG_FULL] = full
            words[at + TRG_THRESHOLD_NS] = threshold_ns
            words[at + TRG_WINDOW_NS] = window_ns
            words[at + TRG_BEGAN_NS] = monotonic_ns()
            words[at + TRG_BEGAN_TOTAL_NS] = words[at + TRG_LAST_TOTAL_NS] = _total(words, full)
            words[at + TRG_FIRED] = 0
            result = k
    unlock(words)
    return result


@entry
def remove_trigger(words: Words, k: int, fd: int) -> int:
    """Take a trigger away, if it is still the one of this fd, which nobody writes to from then on; 1 if it was."""
    at = PRESSURE + PSI_TRIGGERS + k * TRIGGER_WORDS
    lock(words)
    found = 1 if words[at + TRG_FD] == fd + 1 else 0
    if found == 1:
        words[at + TRG_FD] = 0
    unlock(words)
    return found


@kernel
def forget_triggers(words: Words) -> None:
    """In a fork's child: the fds are the parent's to read."""
    for k in range(TRIGGERS):
        words[PRESSURE + PSI_TRIGGERS + k * TRIGGER_WORDS + TRG_FD] = 0
