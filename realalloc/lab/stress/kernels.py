"""The loop of a thread without the GIL: it replaces blocks in slots of its own, and re-reads each before it is freed.

A slot is ``RECORD`` words of a table: where the block is, how many bytes were asked for, of which kind it is, its sequence
number, and what its free needs. Nothing of it is in the block, so that no damage to memory can change what is expected.
Threads meet in a shared table: a slot there is taken by exchanging its first word, and passed over when somebody has it.

Guarantees: ``counts[TAKEN + kind] - counts[FREED + kind]``, summed over all threads, is the number of live blocks of the kind;
a block counts in FREED only when every word of it was read. The first block that was found wrong is described in ``failure``.
May not: raise, or hold anything when it returns but what the tables say.
"""

from __future__ import annotations

from typing import Any, Final

from realalloc.jit import (
    alloc_pages,
    alloc_pages_exact,
    as_array,
    free_pages,
    kfree,
    kmalloc,
    kmem_cache_alloc,
    kmem_cache_free,
    krealloc,
    ksize,
    load_word,
    pfn_to_offset,
    vfree,
    vmalloc,
)
from realalloc.lab.stress.compiled import compiled, loop
from realalloc.lab.stress.options import KINDS
from realalloc.lab.stress.pattern import base_of, fill, first_wrong, is_whole, word_of
from realalloc.mm.atomic import atomic_load, atomic_store, exchange_word

KMALLOC, CACHE, PAGES, VMALLOC, LEASE, POOL, NUMPY = range(7)
assert KINDS == ("kmalloc", "cache", "pages", "vmalloc", "lease", "pool", "numpy")
RAW_KINDS, LEASE_KINDS = KINDS[:LEASE], KINDS[LEASE:]  # those of this loop, and Python's

RECORD: Final = 8
OFFSET, BYTES, KIND, SEQUENCE, ARGUMENT, LOCK = range(6)  # of a record; LOCK of shared ones

TAKEN, FREED, FULL = 0, len(KINDS), 2 * len(KINDS)  # each by kind; FULL: there was no memory
WRONG = 3 * len(KINDS)  # blocks whose contents were not what was written
NEIGHBOUR = WRONG + 1  # live blocks that were damaged when another one was freed or filled
REFUSED = WRONG + 2  # frees that were refused
SHORT = WRONG + 3  # blocks smaller than asked for, or not where a block may be
REALLOCS, READ_WORDS, PASSED = WRONG + 4, WRONG + 5, WRONG + 6
COUNTS: Final = WRONG + 7

SEEN, F_WHAT, F_KIND, F_OFFSET, F_BYTES, F_SEQUENCE, F_WORD, F_FOUND, F_EXPECTED = range(9)
FAILURE_WORDS: Final = 9

DICE, NUMBER, POSITION, STYLE = range(4)  # of a thread's state
RANDOM, FIFO, LIFO = range(3)  # which slot is next

STREAM: Final = 1 << 14  # sizes and kinds drawn ahead, a power of two
MULTIPLIER, INCREMENT, STATE_MASK = 0x5DEECE66D, 11, (1 << 48) - 1  # those of drand48(3)
HALF, HALF_MASK = 24, (1 << 24) - 1
PAGE_SHIFT: Final = 12
NEAREST_EVERY: Final = 16  # frees between two looks at the nearest blocks on both sides


@compiled
def roll(state: int) -> int:
    """Return the next state of the dice; ``state >> 17`` is a number of 31 bits. In halves, so that nothing overflows."""
    high = ((state >> HALF) * (MULTIPLIER & HALF_MASK) & HALF_MASK) << HALF
    return ((state & HALF_MASK) * MULTIPLIER + high + INCREMENT) & STATE_MASK


@compiled
def words_of(nbytes: int) -> int:
    """Return how many words a block of so many bytes is filled with: all that its class has at least."""
    return (nbytes + 7) >> 3


@compiled
def note(failure: Any, counts: Any, what: int, table: Any, at: int, word: int, found: int, expected: int) -> None:
    """Count what is wrong, and describe it if it is the first."""
    counts[what] += 1
    if failure[SEEN] == 0:
        failure[SEEN] = 1
        failure[F_WHAT] = what
        failure[F_KIND] = table[at + KIND]
        failure[F_OFFSET] = table[at + OFFSET]
        failure[F_BYTES] = table[at + BYTES]
        failure[F_SEQUENCE] = table[at + SEQUENCE]
        failure[F_WORD] = word
        failure[F_FOUND] = found
        failure[F_EXPECTED] = expected


@compiled
def read_all(words: Any, table: Any, at: int, limit: int, counts: Any, failure: Any) -> None:
    """Re-read the first ``limit`` words of the block of a record."""
    offset, nbytes = int(table[at + OFFSET]), int(table[at + BYTES])
    base = base_of(offset, nbytes, int(table[at + SEQUENCE]))
    block = as_array(words, offset, limit)
    counts[READ_WORDS] += limit
    if not is_whole(block, base, limit):
        k = first_wrong(block, base, limit)
        note(failure, counts, WRONG, table, at, k, int(block[k]), word_of(base, k))


@compiled
def read_edges(words: Any, table: Any, at: int, counts: Any, failure: Any) -> None:
    """Look at the first and the last word of a live block that nobody has touched."""
    offset, nbytes = int(table[at + OFFSET]), int(table[at + BYTES])
    base, last = base_of(offset, nbytes, int(table[at + SEQUENCE])), words_of(nbytes) - 1
    for k in (0, last):
        found = int(load_word(words, offset + 8 * k))
        if found != word_of(base, k):
            note(failure, counts, NEIGHBOUR, table, at, k, found, word_of(base, k))


@compiled
def read_neighbours(words: Any, table: Any, offset: int, counts: Any, failure: Any) -> None:
    """Look at the edges of the live blocks of this thread that are nearest to an offset, below and above."""
    below, above = -1, -1
    for at in range(0, len(table), RECORD):
        other = table[at + OFFSET]
        if other != 0 and other < offset and (below < 0 or other > table[below + OFFSET]):
            below = at
        if other > offset and (above < 0 or other < table[above + OFFSET]):
            above = at
    if below >= 0:
        read_edges(words, table, below, counts, failure)
    if above >= 0:
        read_edges(words, table, above, counts, failure)


@loop
def take(
    words: Any, table: Any, at: int, kind: int, nbytes: int, caches: Any, dice: int, sequence: int, counts: Any
) -> int:
    """Take a block into an empty record and fill it; return its offset, 0 if there is no memory."""
    offset, argument = 0, 0
    if kind == KMALLOC:
        offset = kmalloc(words, nbytes)
    elif kind == VMALLOC:
        nbytes = (nbytes + 4095) & -4096
        offset = vmalloc(words, nbytes)
    elif kind == PAGES:
        pages = (nbytes + 4095) >> PAGE_SHIFT
        argument = 0
        while (1 << argument) < pages:
            argument += 1
        if dice & 1 or argument > caches[-1]:
            offset = pfn_to_offset(alloc_pages_exact(words, pages))
            argument = -1
        else:
            offset = pfn_to_offset(alloc_pages(words, argument))
            pages = 1 << argument
        nbytes = pages << PAGE_SHIFT
    else:
        which = 2 * (dice % (len(caches) >> 1))
        argument, nbytes = int(caches[which]), int(caches[which + 1])
        offset = kmem_cache_alloc(words, argument)
    if offset == 0:
        counts[FULL + kind] += 1
        return 0
    counts[TAKEN + kind] += 1
    fill(as_array(words, offset, words_of(nbytes)), base_of(offset, nbytes, sequence))
    table[at + OFFSET], table[at + BYTES], table[at + KIND] = offset, nbytes, kind
    table[at + SEQUENCE], table[at + ARGUMENT] = sequence, argument
    return offset


@loop
def give(words: Any, table: Any, at: int, counts: Any, failure: Any) -> int:
    """Re-read the block of a record in full and free it; return where it was."""
    offset, nbytes, kind = int(table[at + OFFSET]), int(table[at + BYTES]), int(table[at + KIND])
    number = words_of(nbytes)
    if ksize(words, offset) < 8 * number:
        note(failure, counts, SHORT, table, at, 0, ksize(words, offset), 8 * number)
    read_all(words, table, at, number, counts, failure)
    if kind == PAGES:
        refused = free_pages(words, offset >> PAGE_SHIFT, int(table[at + ARGUMENT]))
    elif kind == VMALLOC:
        refused = vfree(words, offset)
    elif kind == CACHE:
        refused = kmem_cache_free(words, int(table[at + ARGUMENT]), offset)
    else:
        refused = kfree(words, offset)
    if refused != 0:
        note(failure, counts, REFUSED, table, at, 0, refused, 0)
    table[at + OFFSET] = 0
    counts[FREED + kind] += 1
    return offset


@loop
def regrow(words: Any, table: Any, at: int, nbytes: int, sequence: int, counts: Any, failure: Any) -> None:
    """Reallocate a block: what it had must be there, in place or moved; then it is filled as the block that it has become."""
    old_offset, old = int(table[at + OFFSET]), int(table[at + BYTES])
    kept = min(words_of(old), words_of(nbytes))
    base = base_of(old_offset, old, int(table[at + SEQUENCE]))
    offset = krealloc(words, old_offset, nbytes)
    if offset == 0:
        counts[FULL + KMALLOC] += 1  # the old one is whole, and is re-read when its turn comes
        return
    block = as_array(words, offset, words_of(nbytes))
    counts[REALLOCS] += 1
    counts[READ_WORDS] += kept
    if not is_whole(block, base, kept):
        k = first_wrong(block, base, kept)
        note(failure, counts, WRONG, table, at, k, int(block[k]), word_of(base, k))
    fill(block, base_of(offset, nbytes, sequence))
    table[at + OFFSET], table[at + BYTES], table[at + SEQUENCE] = offset, nbytes, sequence


@compiled
def swap(table: Any, at: int, shared: Any, there: int, counts: Any) -> None:
    """Exchange a block of one's own for one that all threads may have, unless somebody is just there."""
    if exchange_word(shared, there + LOCK, 1) != 0:
        counts[PASSED] += 1
        return
    for k in range(LOCK):
        mine = table[at + k]
        table[at + k] = shared[there + k]
        shared[there + k] = mine
    atomic_store(shared, there + LOCK, 0)


@compiled
def slot_at(style: int, position: int, dice: int, slots: int) -> int:
    """Return the slot whose turn it is."""
    if style == RANDOM:
        return (dice >> 17) % slots
    if style == FIFO:
        return position % slots
    place = position % (2 * slots)
    return place if place < slots else 2 * slots - 1 - place


@loop
def work(
    words: Any, table: Any, shared: Any, sizes: Any, kinds: Any, caches: Any, state: Any, stop: Any, counts: Any,
    failure: Any, turns: int,
) -> int:  # fmt: skip
    """Replace blocks for so many turns, or until ``stop[0]``; return the turns."""
    dice, number = int(state[DICE]), int(state[NUMBER])
    position, style = int(state[POSITION]), int(state[STYLE])
    slots, meeting = len(table) // RECORD, len(shared) // RECORD
    done = 0
    while done < turns and atomic_load(stop, 0) == 0:
        done += 1
        dice = roll(dice)
        at = RECORD * slot_at(style, position, dice, slots)
        empties = style == LIFO and position % (2 * slots) >= slots
        position += 1
        dice = roll(dice)
        chance = dice >> 17
        if chance & 3 == 0 and meeting > 0:
            swap(table, at, shared, RECORD * ((chance >> 2) % meeting), counts)
        dice = roll(dice)
        nbytes, kind = int(sizes[dice >> 17 & (STREAM - 1)]), int(kinds[dice >> 32 & (STREAM - 1)])
        number += 1
        if table[at + OFFSET] != 0:
            if chance & 60 == 0 and table[at + KIND] == KMALLOC and not empties:
                regrow(words, table, at, nbytes, number, counts, failure)
                continue
            freed = give(words, table, at, counts, failure)
            if number % NEAREST_EVERY == 0:
                read_neighbours(words, table, freed, counts, failure)
        if not empties and chance & 0x700 != 0:
            take(words, table, at, kind, nbytes, caches, chance >> 11, number, counts)
        other = RECORD * ((chance >> 11) % slots)
        if table[other + OFFSET] != 0:
            read_edges(words, table, other, counts, failure)
    state[DICE], state[NUMBER], state[POSITION] = dice, number, position
    return done


@loop
def clear(words: Any, table: Any, counts: Any, failure: Any) -> None:
    """Re-read and free all blocks of a table."""
    for at in range(0, len(table), RECORD):
        if table[at + OFFSET] != 0:
            give(words, table, at, counts, failure)
