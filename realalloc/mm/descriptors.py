"""Descriptors that are blocks of kmalloc's and name each other: whether a walker may follow what it has read.

A walker is asked where something is damaged. So an index is one of a live block, large enough, before a word is read there,
and a list that goes round ends: "where is the damage" may not be answered by a crash, nor by silence.
"""

from __future__ import annotations

from realalloc.mm.jit import Words, kernel
from realalloc.mm.kmalloc import ksize_locked
from realalloc.mm.layout import H_END_PFN, H_VM_START_BYTES, PAGE_SHIFT, WORD_BYTES
from realalloc.mm.pages import reaches
from realalloc.mm.vmalloc import validate_area_locked
from realalloc.mm.window import granule_of


@kernel
def holds(words: Words, offset: int, nbytes: int) -> int:
    """Tell whether a live block of at least ``nbytes`` begins at an offset, any, each word of which can be read."""
    if not 0 <= nbytes <= words[H_END_PFN] << PAGE_SHIFT or ksize_locked(words, offset) < nbytes:
        return 0
    if offset < words[H_VM_START_BYTES]:
        return 1
    return 1 if validate_area_locked(words, granule_of(words, offset)) >= 0 else 0


@kernel
def is_descriptor(words: Words, at: int, count: int) -> int:
    """Tell whether a live block of at least ``count`` words begins at a word index, any."""
    return 1 if reaches(words, at, count) == 1 and holds(words, at * WORD_BYTES, count * WORD_BYTES) == 1 else 0


@kernel
def bad_chain(words: Words, at: int, link: int, count: int) -> int:
    """Tell whether a list of blocks of ``count`` words from ``at`` on, linked by word ``link``, leads elsewhere or goes round.

    Brent: the place that is compared with moves on after one step, two, four ...
    """
    met = 0
    steps = 0
    while at != 0:
        if at == met or is_descriptor(words, at, count) == 0:
            return 1
        if steps & (steps - 1) == 0:
            met = at
        steps += 1
        at = words[at + link]
    return 0
