"""The verbs of caches: kmem_cache_alloc and kmem_cache_free, by the sheaves of the calling thread.

``cache_alloc`` and ``cache_free`` are the fast paths, inlined where they are used: no lock, no call. What they cannot do goes
to an entry, which takes the arena lock, refills or flushes, and is exact: it says EINVAL for what is not a live object.
The fast path of a free checks that an object begins there; that it is in use is known to its slab's map, which is only read
with the lock: a second free of an object that is in a sheaf is refused at once if it is on top, and counted when its sheaf is
flushed; popped before that, it has two owners, as after any second free in C. ``debug="F"`` is exact.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import is_multiple
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_SHEAF,
    C_ZONE,
    CACHE_MASK,
    CACHE_SHIFT,
    CACHE_WORDS,
    D_LAST,
    D_MAGIC,
    D_PUT,
    D_PUT_END,
    D_TOP,
    EAGAIN,
    EINVAL,
    ENOMEM,
    GFP_ORDINARY,
    H_CACHES,
    H_CLOSED,
    H_END_PFN,
    KIND_OBJECTS_BIT,
    KIND_RUN,
    OK,
    PAGE_CONSTRUCTING,
    PAGE_SHIFT,
    SLAB_BYTES_SHIFT,
)
from realalloc.mm.pages import info_at
from realalloc.mm.pcp import put_large
from realalloc.mm.reclaim import drain_locked, try_again_locked
from realalloc.mm.sheaf import (
    count_of,
    count_put,
    exchange,
    exchange_and_pop,
    find_room,
    make_room_locked,
    object_alloc_locked,
    own_sheaf_locked,
    place_of,
    pop,
    put,
)
from realalloc.mm.slab import cache_free_locked, is_live_object
from realalloc.mm.slab_map import cache_of, head_of
from realalloc.mm.threads import enter, enter_near, leave, my_place, record_inside

PFN_MASK = (1 << 52) - 1
# None of them is set in KIND_LARGE. Of two bits LLVM expects one, and objects need no jump (0.4 ns a pair).
NO_LARGE_BITS = KIND_OBJECTS_BIT | KIND_RUN


@kernel
def page_info(words: Words, offset: int) -> int:
    """Return what the struct page of an offset's page says; 0, which is no slab, behind the end."""
    pfn = offset >> PAGE_SHIFT & PFN_MASK  # what is negative lies behind the end, too
    return words[info_at(pfn)] if pfn < words[H_END_PFN] else 0


@kernel
def put_object(words: Words, record: int, info: int, offset: int) -> int:
    """Put an object onto the spare sheaf of its cache in a record; 0 if none begins at ``offset``, or there is no room.

    ``info`` is of a page with KIND_OBJECTS_BIT. If its objects go the slow way, it has sheaf index 0, and that descriptor
    never has room. The others know their slabs' geometry.
    """
    d = record + place_of(info)
    nbytes = offset & ((1 << (info >> SLAB_BYTES_SHIFT)) - 1)  # a slab is aligned to its size
    if is_multiple(nbytes, words[d + D_MAGIC], words[d + D_LAST]) == 0:
        return 0
    return put(words, d, offset)


@kernel
def _is_of(words: Words, c: int, info: int) -> int:
    return 1 if words[H_CACHES] + (info >> CACHE_SHIFT & CACHE_MASK) * CACHE_WORDS == c else 0


@kernel
def free_in(words: Words, slot: int, c: int, offset: int) -> int:
    """Free an object of cache ``c`` (0: of any) in the calling thread's slot, or nobody's; 0 if that cannot be."""
    pfn = offset >> PAGE_SHIFT & PFN_MASK
    if pfn >= words[H_END_PFN]:
        return 0
    info = words[info_at(pfn)]
    if c != 0 and _is_of(words, c, info) == 0:
        return 0
    record = record_inside(words, slot)
    if info & NO_LARGE_BITS != 0:
        done = put_object(words, record, info, offset)
    else:
        done = put_large(words, slot, record, info, offset)
    leave(words, slot)
    return done


@kernel
def free_fast(words: Words, c: int, offset: int) -> int:
    """Free an object of cache ``c`` (0: of any) without the lock; 0 if that cannot be."""
    slot = enter_near(words, my_place())
    return free_in(words, slot, c, offset) if slot != 0 else 0


@kernel
def object_free_locked(words: Words, c: int, offset: int) -> int:
    """Free an object of cache ``c`` (0: of any) into the calling thread's sheaf, or its slab; EINVAL if it is not in use."""
    head = head_of(words, offset >> PAGE_SHIFT)
    if is_live_object(words, c, offset) == 0 or words[info_at(head)] & PAGE_CONSTRUCTING != 0:
        return EINVAL
    owner = cache_of(words, head)
    d = own_sheaf_locked(words, words[owner + C_SHEAF]) if words[owner + C_SHEAF] != 0 else 0
    if d != 0 and words[words[d + D_PUT]] == offset:
        return EINVAL
    if d != 0 and make_room_locked(words, owner, d) == 1 and put(words, d, offset) == 1:
        return OK
    return cache_free_locked(words, owner, offset)


@entry
def cache_alloc_locking(words: Words, c: int, gfp: int) -> int:
    """Allocate an object with the lock: its offset, ENOMEM (also when closed) or EAGAIN.

    What other threads keep is taken back before a request is refused; empty slabs, too, if pages have run out.
    """
    lock(words)
    offset = object_alloc_locked(words, c, gfp) if words[H_CLOSED] == 0 else ENOMEM
    if offset == EAGAIN and words[H_CLOSED] == 0 and drain_locked(words) > 0:
        offset = object_alloc_locked(words, c, gfp)
    best = 0
    while offset == ENOMEM and words[H_CLOSED] == 0:
        best = try_again_locked(words, words[c + C_ZONE], gfp, best)
        if best == 0:
            break
        offset = object_alloc_locked(words, c, gfp)
    unlock(words)
    return offset


@entry
def cache_alloc_slow(words: Words, c: int, gfp: int) -> int:
    """Allocate an object: what the thread has put, else with the lock; its offset, ENOMEM (also when closed) or EAGAIN."""
    offset = exchange_and_pop(words, words[c + C_SHEAF])
    return offset if offset != 0 else cache_alloc_locking(words, c, gfp)


@entry
def cache_free_slow(words: Words, c: int, offset: int) -> int:
    """Free an object of cache ``c`` (0: of any): after an exchange, or with the lock; EINVAL if it is not a live one."""
    info = page_info(words, offset)
    slot = enter(words)
    if slot != 0 and info & KIND_OBJECTS_BIT != 0 and (c == 0 or _is_of(words, c, info) == 1):
        record = record_inside(words, slot)
        d = record + place_of(info)
        if words[words[d + D_PUT]] != offset:  # else it is freed twice: an exchange would hide that
            find_room(words, d)
        done = put_object(words, record, info, offset)
        leave(words, slot)
        if done == 1:
            return OK
    lock(words)
    status = object_free_locked(words, c, offset)
    unlock(words)
    return status


@kernel
def cache_alloc(words: Words, c: int, gfp: int) -> int:
    """Allocate an object: its offset, ENOMEM or EAGAIN (constructor needed). For inlining."""
    offset = pop(words, my_place(), words[c + C_SHEAF])
    return offset if offset != 0 else cache_alloc_slow(words, c, gfp)


@kernel
def cache_free(words: Words, c: int, offset: int) -> int:
    """Free an object of cache ``c``; EINVAL, with nothing changed, if it is none. For inlining."""
    return OK if free_fast(words, c, offset) == 1 else cache_free_slow(words, c, offset)


@entry
def kmem_cache_alloc(words: Words, c: int) -> int:
    """Allocate an object, as GFP_KERNEL does: its offset, ENOMEM (also when closed) or EAGAIN (constructor needed)."""
    return cache_alloc(words, c, GFP_ORDINARY)


@entry
def kmem_cache_free(words: Words, c: int, offset: int) -> int:
    """Free an object; EINVAL, with nothing changed, if it is not a live object of this cache."""
    return cache_free(words, c, offset)


@kernel
def _pop_many(words: Words, c: int, done: int, count: int, out: Words) -> int:
    """Pop into ``out[done:count]``, also what the thread has put; return how many are done then."""
    slot = enter(words)
    if slot == 0:
        return done
    d = record_inside(words, slot) + words[c + C_SHEAF]
    while done < count:
        if count_of(words, d) == 0 and count_put(words, d) > 0:
            exchange(words, d)
        take = min(count_of(words, d), count - done)
        if take == 0:
            break
        top = words[d + D_TOP] - take
        words[d + D_TOP] = top
        for k in range(take):
            out[done + k] = words[top + 1 + k]
        done += take
    leave(words, slot)
    return done


@kernel
def push_many(words: Words, c: int, done: int, count: int, out: Words) -> int:
    """Put objects of cache ``c`` (0: of any) as far as there is room and nothing is amiss; return how many are done then.

    The checks are those of :func:`put_object`; what they need is loaded once for neighbours that are of one slab.
    """
    slot = enter(words)
    if slot == 0:
        return done
    record = record_inside(words, slot)
    while done < count:
        info = page_info(words, out[done])
        d = record + place_of(info)
        if info & KIND_OBJECTS_BIT == 0 or (c != 0 and _is_of(words, c, info) == 0):
            break
        mask = (1 << (info >> SLAB_BYTES_SHIFT)) - 1
        first = out[done] & ~mask
        magic = words[d + D_MAGIC]
        last = words[d + D_LAST]
        top = words[d + D_PUT]
        before = words[top]
        fits = 0
        for k in range(min(words[d + D_PUT_END] - top, count - done)):
            offset = out[done + k]
            if offset & ~mask != first or is_multiple(offset & mask, magic, last) == 0 or offset == before:
                break
            words[top + 1 + k] = offset
            before = offset
            fits += 1
        if fits == 0:
            break
        words[d + D_PUT] = top + fits
        done += fits
    leave(words, slot)
    return done


@entry
def kmem_cache_free_bulk(words: Words, c: int, count: int, out: Words) -> int:
    """Free the objects in ``out[:count]``; return how many were refused."""
    done = 0
    refused = 0
    while done < count:
        done = push_many(words, c, done, count, out)
        if done < count:
            refused += 1 if cache_free_slow(words, c, out[done]) != OK else 0
            done += 1
    return refused


@entry
def kmem_cache_alloc_bulk(words: Words, c: int, count: int, gfp: int, out: Words) -> int:
    """Fill ``out[:count]`` with objects; OK, or allocate none and return why (all or nothing). GFP_ZERO is the caller's."""
    if words[H_CLOSED] != 0:
        return ENOMEM
    done = 0
    while done < count:
        done = _pop_many(words, c, done, count, out)
        if done < count:
            offset = cache_alloc_slow(words, c, gfp)
            if offset < 0:
                kmem_cache_free_bulk(words, c, done, out)
                return offset
            out[done] = offset
            done += 1
    return OK
