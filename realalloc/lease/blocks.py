"""How a block is taken and how it goes back: the verbs and tags of leases, as kernels.

Invariant: H_LEASES = live exporters + builtins in flight; it changes under the GIL only. The mapping of a closed arena goes
with its last lease. H_LINGERING = live exporters with TAG_LINGERS.
"""

from __future__ import annotations

from typing import Final

from realalloc.lease.capi import load_at, store_at
from realalloc.mm.atomic import atomic_add
from realalloc.mm.charge import charge, uncharge
from realalloc.mm.jit import JIT, Words, entry, kernel
from realalloc.mm.kmalloc import charged_bytes, kfree, kmalloc, usable_bytes, vmalloc
from realalloc.mm.kmem_cache import construct_put
from realalloc.mm.layout import (
    CHARGE_BUFFERS,
    EDQUOT,
    ENOMEM,
    GFP_NOFAIL_BIT,
    H_BAD_FREES,
    H_CLOSED,
    H_END_PFN,
    H_LEASES,
    H_LINGERING,
    H_OWNER,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
)
from realalloc.mm.mempool import pool_alloc, pool_alloc_reserved, pool_free
from realalloc.mm.mempool_wait import pool_claim
from realalloc.mm.objects import cache_alloc, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, alloc_run

# A tag says how a block goes back:  verb 0..3 | lingers 4 | owner 8.. (word index of the cache or pool, or of the budget
# that paid for a block of kmalloc, vmalloc or pages; 0 for none)
VERB_NONE: Final = 0  # nothing to give back: zero-size blocks
VERB_KMALLOC: Final = 1
VERB_CACHE: Final = 2
VERB_PAGES: Final = 3
VERB_RUN: Final = 4
VERB_VMALLOC: Final = 5
VERB_POOL: Final = 6
VERB_POOL_RESERVE: Final = 7  # taking only
VERB_CONSTRUCT: Final = 8  # an object that is with its constructor
VERB_POOL_CLAIM: Final = 9  # taking only: what a request was granted
VERB_READY: Final = 10  # nothing to give back and no lease: a view that waits on a shelf
VERB_MASK: Final = 15
TAG_LINGERS: Final = 16
TAG_KIND_MASK: Final = VERB_MASK | TAG_LINGERS
OWNER_SHIFT: Final = 8


@entry
def take(words: Words, verb: int, argument: int, gfp: int) -> int:
    """Allocate by verb; return an offset or a status. What ``argument`` means depends on the verb: bytes, order, pages,
    word index of the cache or pool, or the offset itself (VERB_NONE and VERB_CONSTRUCT). ``gfp`` is the request with
    VERB_POOL_CLAIM.
    """
    if verb == VERB_POOL_CLAIM:
        return pool_claim(words, argument, gfp)
    gfp &= ~GFP_NOFAIL_BIT  # the GIL is held: the face waits
    if verb == VERB_KMALLOC:
        return kmalloc(words, argument, gfp)
    if verb == VERB_CACHE:
        return cache_alloc(words, argument, gfp)
    if verb == VERB_POOL:
        return pool_alloc(words, argument, gfp)
    if verb == VERB_POOL_RESERVE:
        return pool_alloc_reserved(words, argument)
    if verb == VERB_VMALLOC:
        return vmalloc(words, argument, gfp)
    if verb == VERB_PAGES or verb == VERB_RUN:
        pfn = alloc_pages(words, argument, gfp) if verb == VERB_PAGES else alloc_run(words, argument, gfp)
        return pfn << PAGE_SHIFT if pfn > 0 else pfn
    return argument if words[H_CLOSED] == 0 else ENOMEM


@kernel
def budget_of(tag: int) -> int:
    """Return the word index of the budget that pays for a block, 0 for none."""
    verb = tag & VERB_MASK
    charged = verb == VERB_KMALLOC or verb == VERB_PAGES or verb == VERB_RUN or verb == VERB_VMALLOC
    return tag >> OWNER_SHIFT if charged else 0


@entry
def whole_bytes(words: Words, verb: int, argument: int, gfp: int) -> int:
    """Return what a block that ``take`` would return charges."""
    if verb == VERB_PAGES:
        return PAGE_BYTES << argument
    if verb == VERB_RUN:
        return argument << PAGE_SHIFT
    if argument > words[H_END_PFN] << PAGE_SHIFT:  # never; and rounded up it might not fit into a word
        return argument
    if verb == VERB_KMALLOC:
        return usable_bytes(words, argument, gfp)
    return (argument + PAGE_BYTES - 1) & -PAGE_BYTES


@entry
def take_charged(words: Words, verb: int, argument: int, gfp: int, b: int) -> int:
    """Charge a budget with the whole of a block, then allocate it; EDQUOT if a budget refuses."""
    nbytes = whole_bytes(words, verb, argument, gfp)
    if words[H_CLOSED] != 0 or not 0 < nbytes <= words[H_END_PFN] << PAGE_SHIFT:
        return ENOMEM
    if charge(words, b, CHARGE_BUFFERS, nbytes) != OK:
        return EDQUOT
    offset = take(words, verb, argument, gfp)
    if offset <= 0:
        uncharge(words, b, CHARGE_BUFFERS, nbytes)
    return offset


if JIT:

    @kernel
    def count_lease(words: Words, by: int) -> int:
        """Count leases; the GIL is held and keeps others out."""
        words[H_LEASES] += by
        return words[H_LEASES]

else:

    def count_lease(words: Words, by: int) -> int:
        """Count leases; another thread may run between any two bytecodes."""
        return atomic_add(words, H_LEASES, by)


@kernel
def drop_lease(words: Words) -> int:
    """Uncount a lease; return the mapping to let go of if this was the last one of a closed arena, else 0.

    The last access to the words: who gets the mapping unmaps them.
    """
    left = count_lease(words, -1)
    return words[H_OWNER] if words[H_CLOSED] != 0 and left == 0 else 0


@entry
def give_back(words: Words, tag: int, offset: int) -> int:
    """Free the block of a dead exporter, then drop its lease. A refused free is counted: it would be damage, and nobody
    is there to raise to.
    """
    verb = tag & VERB_MASK
    owner = tag >> OWNER_SHIFT
    if tag & TAG_LINGERS:
        atomic_add(words, H_LINGERING, -1)
    status = OK
    if verb == VERB_CACHE:
        status = kmem_cache_free(words, owner, offset)
    elif verb == VERB_POOL:
        status = pool_free(words, owner, offset)
    elif verb == VERB_CONSTRUCT:
        status = construct_put(words, offset)
    elif verb != VERB_NONE:
        nbytes = charged_bytes(words, offset) if owner != 0 else 0
        status = kfree(words, offset)
        if nbytes > 0:
            uncharge(words, owner, CHARGE_BUFFERS, nbytes)
    if status != OK:
        words[H_BAD_FREES] += 1
    return drop_lease(words)


@entry
def linger(words: Words, tag_address: int) -> int:
    """Mark and count a lease whose handle was freed while other views live; no signal's handler can part the two."""
    store_at(tag_address, load_at(tag_address) | TAG_LINGERS)
    return atomic_add(words, H_LINGERING, 1)
