"""Where every word of an arena lives, and what its values mean.

An arena is one reserved range, named by byte offsets from its start:

    header | class table | threads | NULL_RECORD | memmap | caches | resident map | vmalloc map | ... pages ... | window

A page frame number is ``offset >> PAGE_SHIFT`` of that range, so metadata pages are page frames too: reserved ones.
The arena's ``size`` ends with the last page; the window behind it holds addresses, never memory of its own.
How long each table is, and what a fresh arena holds: :mod:`realalloc.mm.geometry`. May not: read or write anything.
"""

from __future__ import annotations

import os
from typing import Final

WORD_BYTES: Final = 8
PAGE_SHIFT: Final = 12
PAGE_BYTES: Final = 1 << PAGE_SHIFT
PAGE_WORDS: Final = PAGE_BYTES // WORD_BYTES

# Status codes: the only failures that a kernel knows. Errno values, as in the kernel.
OK: Final = 0
ENOMEM: Final = -12  # no memory for this request
EAGAIN: Final = -11  # no constructed object: the caller must construct a slab, then ask again
EBUSY: Final = -16  # still in use
EINVAL: Final = -22  # not a live block of this kind here
EEXIST: Final = -17  # the name is taken
EDQUOT: Final = -122  # a budget is full, or closed
ESHUTDOWN: Final = -108  # the arena is closed

# Broken invariants, as the walkers report them; the texts are in realalloc.errors.
BAD_FREE_LIST: Final = -1001
BAD_FREE_COUNT: Final = -1002
BAD_UNMERGED: Final = -1003
BAD_PAGE_SUM: Final = -1004
BAD_PAGE_STATE: Final = -1005
BAD_COMMITTED: Final = -1006
BAD_PAGE_BLOCK: Final = -1007
BAD_SLAB_COUNT: Final = -1011
BAD_SLAB_LIST: Final = -1012
BAD_SLAB_MAP: Final = -1013
BAD_CACHE_SUM: Final = -1014
BAD_AREA: Final = -1021
BAD_AREA_BLOCKS: Final = -1022
BAD_AREA_SUM: Final = -1023
BAD_POOL: Final = -1031
BAD_POOL_ELEMENT: Final = -1032
BAD_POOL_QUEUE: Final = -1033
BAD_POOL_POISON: Final = -1034
BAD_SHEAF: Final = -1041
BAD_HEADER: Final = -1051
BAD_BUDGET: Final = -1061
BAD_MARKS: Final = -1071

# -- header: words 0..255 -------------------------------------------------------------------------------------------
MAGIC: Final = 0x7265616C616C6C6F  # "realallo"
H_MAGIC: Final = 0
H_TOTAL_WORDS: Final = 1  # words of the whole range, window included
H_CLOSED: Final = 4
H_OWNER: Final = 7  # address of the pinned mapping object (the one address in here: it belongs to the process)
H_NR_ZONES: Final = 8
H_MAX_ORDER: Final = 9
H_CACHES: Final = 10  # word index of the cache table
H_RESMAP: Final = 11  # word index of the resident map, one bit a page
H_MAX_CACHES: Final = 13
H_NR_CACHES: Final = 14  # slots ever used
H_VMAP: Final = 15  # word index of the vmalloc map
H_VM_START_BYTES: Final = 16  # offset of the vmalloc window
H_VM_GRANULES: Final = 17
H_VM_FRONTIER: Final = 18  # granules below it have been reached
H_VM_FREE: Final = 19  # list head of free areas
H_VM_LAZY: Final = 20  # list head of freed areas kept mapped
H_VM_LAZY_PAGES: Final = 21
H_VM_PAGES: Final = 22  # pages in live areas
H_VM_AREAS: Final = 23  # live areas
H_COMMITTED_PAGES: Final = 24  # pages whose resident bit is set
H_PEAK_COMMITTED_PAGES: Final = 25
H_ALLOCATED_PAGES: Final = 26
H_PEAK_ALLOCATED_PAGES: Final = 27
H_POOLS: Final = 28  # word index of the first mempool, 0 for none
H_BAD_FREES: Final = (
    29  # frees that came to nothing, of leases and of flushed sheaves: 0 unless a raw offset was freed twice
)
H_META_PAGES: Final = 30
H_FREEMAP_CACHE: Final = 31  # word index of the cache that serves free maps of tiny objects
H_HUGE: Final = 32  # HUGE_* below
H_BLOCKS: Final = 33  # page blocks handed out by alloc_pages and large kmalloc, those that threads keep included
H_ZERO: Final = 34  # always 0: the free map word of a cache that has no active slab
H_SHEAVES: Final = 36  # 1 if threads may have sheaves
H_IDLE_RECORDS: Final = 37  # list of thread records without a thread, linked by R_NEXT
H_NR_RECORDS: Final = 38
H_SHEAF_CACHE: Final = 39  # word index of the cache that serves sheaves
H_NR_SLOTS: Final = 40  # slots that threads have
H_FARTHEST: Final = 41  # how many places behind its near one a thread has to look for its slot
H_LIMIT_PAGES: Final = 42  # H_COMMITTED_PAGES may not pass it
H_HUGEMAP: Final = 43  # word index of the map of huge units, one bit a unit of 2 MiB
H_BUDGETS: Final = 44  # word index of the youngest budget, 0 for none
H_FREE_BUDGETS: Final = 45  # list of descriptors without a budget
H_NR_CLASSES: Final = 46  # kmalloc caches of a zone
H_BELL: Final = 47  # address of what kswapd sleeps on, 0 if it does not serve this arena; it belongs to the process
H_MOBILITY: Final = 48  # word index of what groups pages by lifetime
H_MEMMAP: Final = 49  # word index of page frame 0's struct page
# Each free reads it, so nothing else in its line is written: neither the lock (two threads 14.1 ns, apart 11.3), nor offset
# 0, for whose line an allocation asks that foresees its sheaf wrongly (ADR 32; two threads 8.2 ns, apart 6.9, as one alone).
H_END_PFN: Final = 50  # first pfn behind the arena
H_LOCK: Final = 56  # LOCK_*, or the identity of the thread that it is biased to
H_LEASES: Final = 57  # live exporters; the mapping may not go while > 0
H_LINGERING: Final = 58  # leases whose handle was freed while other views live
H_INSIDE: Final = 59  # 1 while the thread that the lock is biased to is inside
H_VM_REFUSED_PAGES: Final = 60  # of the last new area, where the system refused to map it; 0 where it did not

LOCK_FREE: Final = 0
LOCK_HELD: Final = 1
LOCK_REVOKING: Final = 2
LOCK_WAITED: Final = 3  # held, and somebody may sleep for it

HUGE_NEVER: Final = 0
HUGE_AUTO: Final = 1
HUGE_ALWAYS: Final = 2
HUGE_ORDER: Final = 9  # 2 MiB
HUGE_PAGES: Final = 1 << HUGE_ORDER  # of a unit

# -- zones ----------------------------------------------------------------------------------------------------------
ZONE_NORMAL: Final = 0
ZONE_DMA: Final = 1  # the locked zone
ZONES: Final = 64  # word index of zone 0
ZONE_WORDS: Final = 64
Z_START_PFN: Final = 0
Z_END_PFN: Final = 1
Z_FRONTIER_PFN: Final = 2  # pages behind it were never reached; implicitly free
Z_PAGE_BLOCK_ORDER: Final = 3  # of what is grouped by lifetime; 0: this zone is not
Z_FREE_PAGES: Final = 4  # pages on the free lists:  start + listed free + allocated = frontier
Z_ALLOCS: Final = 5
Z_FREES: Final = 6
Z_MIN_PAGES: Final = 7  # watermarks: free pages that an ordinary request leaves; 0: there are none
Z_LOW_PAGES: Final = 8  # below it kswapd is woken,
Z_HIGH_PAGES: Final = 9  # to bring free pages up to this
Z_STAGE: Final = 10  # STAGE_*: what kswapd does next for this zone
Z_BEGAN_PAGES: Final = 11  # pages that were free when its run began
Z_FAILURES: Final = 12  # runs in a row that brought nothing
Z_WAKES: Final = 13  # runs
Z_HEADS: Final = 16  # list heads by order
Z_COUNTS: Final = 40  # blocks on each list
MAX_MAX_ORDER: Final = 18
STAGE_IDLE: Final = 0
STAGE_SHEAVES: Final = 1
STAGE_SLABS: Final = 2
STAGE_AREAS: Final = 3

# -- decay of free pages that hold memory ---------------------------------------------------------------------------
DECAY: Final = ZONES + 2 * ZONE_WORDS  # word index of its state
Y_NS: Final = 0  # how long freed memory is kept; 0: goes back at once, < 0: is kept for ever
Y_EPOCH_NS: Final = 1  # when the present epoch began
Y_EPOCHS: Final = 2  # epochs that ended so far: what freed areas are stamped with
Y_LOW: Final = 3  # fewest H_COMMITTED_PAGES - H_ALLOCATED_PAGES since the present epoch began
Y_WANTED: Final = 4  # 1 if kswapd is to serve this arena
Y_SERVED: Final = 5  # 1 while it does
Y_PURGED: Final = 7  # pages that decay gave back
Y_FREED: Final = 8  # pages freed since the clock was last looked at, where kswapd does not serve
Y_DRAINED: Final = 9  # epoch of the last drain of what threads keep
Y_STUCK: Final = 10  # purgeable pages that purging could not give back since then
Y_PENDING: Final = 11  # pages that kswapd still has to give back
Y_SMALL: Final = 12  # dirty pages in free blocks that are too small for decay
Y_CLEAN: Final = 13  # a bit for each order none of whose free blocks has memory that could go
Y_BACKLOG: Final = 16  # purgeable pages that came in each of the last epochs, the youngest first
DECAY_EPOCHS: Final = 16
DECAY_WORDS: Final = Y_BACKLOG + DECAY_EPOCHS

# -- pages grouped by lifetime: a record a zone, then a word a page block -----------------------------------------------
M_HEADS: Final = 0  # list heads by order, of free blocks in UNMOVABLE page blocks; the others are at Z_HEADS
M_COUNTS: Final = M_HEADS + HUGE_ORDER  # blocks on each of these lists; Z_COUNTS counts them too
M_WORDS: Final = M_COUNTS + HUGE_ORDER
M_BLOCKS: Final = 2 * M_WORDS  # by page block: its unmovable pages, with M_PINNED where it is not wholly of one zone
M_PINNED: Final = 1 << 32
MIN_PAGE_BLOCKS: Final = 16  # zones of fewer are not grouped

# -- kmalloc class table --------------------------------------------------------------------------------------------
KMALLOC_SIZES: Final = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)  # the kernel's
KMALLOC_FINE_SIZES: Final = (  # four to an octave, as jemalloc's, but for 7168: no more of it fit into a slab than of 8192
    8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
    1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 8192,
)  # fmt: skip
KMALLOC_MAX_CACHE_BYTES: Final = 8192
# 15 words behind a power of two: the entry of n bytes has the low twelve bits of an object's 16th word, or last one. At 256 it
# was the first, and a processor let that load, an allocation's first, wait for the caller's last store: 12 ns, not 4.4.
KMALLOC_TABLE: Final = 271  # word KMALLOC_TABLE + (bytes + 7) // 8: C_SHEAF << 40 | word index of the class's cache
KMALLOC_TABLE_WORDS: Final = KMALLOC_MAX_CACHE_BYTES // 8 + 1

# -- threads and their sheaves --------------------------------------------------------------------------------------
SHEAF_OWNERS: Final = 1296  # word SHEAF_OWNERS + index: word index of the cache with that sheaf index
SHEAF_INDICES: Final = 64
SHEAF_BLOCKS: Final = 54  # sheaf index of page blocks of order 0; one more for each further order
SHEAF_BLOCK_ORDERS: Final = 10
PRESSURE: Final = 1376  # word index of what is known of stalls for want of memory
PSI_FULL_NS: Final = 0  # time in which nobody could have had fresh pages
PSI_SOME_NS: Final = 1  # time, beyond that, in which a thread was held up
PSI_UPDATED_NS: Final = 2  # end of the last period that the averages know
PSI_SEEN_NS: Final = 3  # totals of some and full at that time
PSI_AVERAGES: Final = 5  # of some over 10, 60 and 300 s, then of full; AVERAGE_SHIFT bits behind the point
PSI_RECLAIMS: Final = 11  # times that memory was taken back before a request was refused or served
PSI_TRIGGERS: Final = 16
TRIGGERS: Final = 16
TRIGGER_WORDS: Final = 8
TRG_FD: Final = 0  # eventfd + 1, 0: unused; it belongs to the process
TRG_FULL: Final = 1  # 1: watches full, 0: some
TRG_THRESHOLD_NS: Final = 2
TRG_WINDOW_NS: Final = 3
TRG_BEGAN_NS: Final = 4  # when the window began, and the total at that time
TRG_BEGAN_TOTAL_NS: Final = 5
TRG_FIRED: Final = 6  # 1: in this window it has
TRG_LAST_TOTAL_NS: Final = 7  # when the last stall ended
NOBODY: Final = 1528  # word index of a slot of no thread, whose record is NULL_RECORD: what threads without one use
KEPT_AT: Final = NOBODY + 4  # how far from its thread pointer a thread keeps what its slot is; 0: nowhere
THREADS: Final = 1536  # word index of the slots, one cache line each
THREAD_SLOTS: Final = 64
THREAD_WORDS: Final = 8
T_KEY: Final = 0  # identity of the thread, 0: free
T_INSIDE: Final = 1  # 1 while the thread is at its sheaves
T_RECORD: Final = 2  # word index of its record, NULL_RECORD while it is locked out
T_KEPT: Final = 3  # its record, NULL_RECORD if it has none
T_DISTANCE: Final = 4  # how many places behind the near one of its thread the slot is
T_RECENT: Final = 5  # offset of the large block that was last taken from a sheaf here: a hint for its free
T_RECENT_INFO: Final = 6  # what its struct page said then
T_RECENT_PLACE: Final = 7  # where a record has the descriptor for it
NULL_RECORD: Final = 2048  # a record that is always 0: every sheaf in it is empty and full
RECORD_WORDS: Final = 512  # one page: a sheaf descriptor for each index; that of index 0 is unused but for R_NEXT
D_BASE: Final = 0  # main sheaf: word index of its first place; the word below it is 0
D_LAST: Final = 1  # bits.is_multiple of the offset of an object in its slab: what the last one gives
D_PUT: Final = 2  # spare sheaf: word index of its top object
R_NEXT: Final = 3  # in the descriptor of index 0: the next idle record
D_STOCK: Final = 3  # in those of caches: top full sheaf of the stock << 32 | top empty one, in SHEAF_WORDS; 0 for none
D_PUT_BASE: Final = 4  # word index of its first place
D_PUT_END: Final = 5  # word index of its last place
D_MAGIC: Final = 6  # of the objects' stride
D_TOP: Final = 7  # of the main sheaf: word index of its top object; where callers seldom write, as the class table
SHEAF_DESC_WORDS: Final = 8
S_COUNT: Final = 0  # objects in a sheaf that is in the barn
S_NEXT: Final = 1  # next sheaf in the barn
S_DEPTH: Final = 2  # full sheaves of a stock from this one down
S_BOTTOM: Final = 3  # always 0: what a pop from an empty sheaf finds
S_OBJECTS: Final = 4
SHEAF_BYTES: Final = 512
SHEAF_WORDS: Final = SHEAF_BYTES // WORD_BYTES
MAX_SHEAF_OBJECTS: Final = SHEAF_WORDS - S_OBJECTS
MAX_STOCK_BYTES: Final = 1 << 17  # memory of the objects in the full sheaves of a stock: one sheaf of the largest ones
MAX_STOCK_SHEAVES: Final = 16
STOCK_SHIFT: Final = 32
STOCK_MASK: Final = (1 << 32) - 1
MAX_STOCK_PFN: Final = (1 << 31) * SHEAF_WORDS // PAGE_WORDS  # 1 TiB; larger arenas have none: 31 bits name a sheaf
MAX_SHEAF_BYTES: Final = 1 << 17  # memory that the objects of one sheaf may have, as they were freed
MAX_FILL_BYTES: Final = 1 << 15  # ... and how much of it is taken from the slabs at once: fresh memory is not hoarded
MIN_SHEAF_OBJECTS: Final = 4
SHEAF_SHARE_SHIFT: Final = 10  # ... and no more than this share of the arena
MAX_BLOCK_SHEAF_BYTES: Final = 1 << 20  # the same for page blocks
BLOCK_SHARE_SHIFT: Final = 6
MIN_SHEAVES_PAGES: Final = 1024  # smaller arenas have no sheaves: 4 MiB
MIN_BARN_SHEAVES: Final = 10  # full ones, and as many empty ones, that a cache's barn keeps (kernel: MAX_FULL_SHEAVES);
MIN_BARN_BYTES: Final = MIN_BARN_SHEAVES << 15  # fewer of large objects, but two;
MAX_BARN_SHEAVES: Final = 2048  # more of small objects,
BARN_SHARE_SHIFT: Final = 7  # up to this share of the arena
MAX_BARN_BYTES: Final = 1 << 18
SMALL_BARN_BYTES: Final = (
    1 << 29
)  # ... or, of objects below 2 KiB, this over their bytes: 8 MiB of 64 B, 1 MiB of 512 B

# -- kmem_cache: one descriptor -------------------------------------------------------------------------------------
CACHE_WORDS: Final = 40
C_STATE: Final = 0  # CACHE_*
C_OBJECT_BYTES: Final = 1  # size asked for
C_STRIDE_BYTES: Final = 2  # distance of two objects
C_SHEAF: Final = 3  # where a record has the sheaf descriptor: SHEAF_DESC_WORDS * sheaf index; 0 without sheaves
C_ORDER: Final = 4
C_OBJECTS: Final = 5  # per slab
C_RECIPROCAL: Final = 6  # ceil(2**RECIPROCAL_SHIFT / stride): index = bytes * it >> shift
C_FLAGS: Final = 7
C_ACTIVE: Final = 8  # pfn of the slab that serves, 0 for none
C_PARTIAL: Final = 9  # list head: 0 < inuse < objects
C_NR_PARTIAL: Final = 10
C_EMPTY: Final = 11  # list head: inuse = 0, kept
C_NR_EMPTY: Final = 12
C_MIN_PARTIAL: Final = 13  # how many empty slabs are kept
C_NR_SLABS: Final = 14
C_ALLOCS: Final = 15  # objects in use = allocs - frees
C_FREES: Final = 16
C_SLAB_ALLOCS: Final = 17
C_SLAB_FREES: Final = 18
C_ZONE: Final = 19
C_NR_CONSTRUCTING: Final = 20  # slabs whose objects are being constructed
C_FIRST_BYTES: Final = 21  # offset of the first object of the free map word that serves
C_MIN_ORDER: Final = 22
C_AT: Final = 23  # word index of the free map word that serves; H_ZERO if there is none
C_ORDER_FALLBACK: Final = 24
C_ALIGN_BYTES: Final = 25
C_SHEAF_CAPACITY: Final = 26
C_BARN_FULL: Final = 27  # list of full sheaves
C_NR_BARN_FULL: Final = 28
C_BARN_EMPTY: Final = 29
C_NR_BARN_EMPTY: Final = 30
C_MAGIC: Final = 31  # of the stride, for bits.is_multiple
C_BUDGET: Final = 32  # word index of the budget that pays for slabs, 0 for none
C_NAME: Final = 33  # 7 words of utf-8, zero padded
CACHE_NAME_BYTES: Final = 56
CACHE_FREE: Final = 0
CACHE_LIVE: Final = 1
CF_CTOR: Final = 1  # slabs are made by the face, which runs the constructor
CF_EXTERNAL_MAP: Final = 2  # free map in an object of its own
CF_NO_SHEAVES: Final = 4
CF_LEAN: Final = 8  # one of several caches for an octave of sizes: keeps less of what is free
LEAN_SHIFT: Final = 2  # ... a quarter
RECIPROCAL_SHIFT: Final = 32
PAGE_MAP_BITS: Final = 128  # free map bits that fit into the struct page
EXTERNAL_MAP_BYTES: Final = 64
MAX_OBJECTS: Final = EXTERNAL_MAP_BYTES * 8
MAX_SLAB_ORDER: Final = 3
MIN_PARTIAL_LOW: Final = 5
MIN_PARTIAL_HIGH: Final = 10

# -- struct page ----------------------------------------------------------------------------------------------------
# What a page is, a word each, is an array of its own: every free reads it, and links and maps beside it are written by others.
# kind 0..3 | order 4..8 | zone 9..10 | flags 11..15 | cache 16..31 | pending 32..41 | sheaf 42..47 | ...
INFOS: Final = 2560  # word index of what page frame 0 is
PAGE_STRUCT_WORDS: Final = 3
PG_LINK: Final = 0  # next << 32 | prev, pfns; of a slab's tail page: pfn of the head; of a vmalloc block: next
PG_MAP0: Final = 1  # slab: free map (1 = free), or word index of the external one; run: pages; area block: granule
PG_MAP1: Final = 2
KIND_MASK: Final = 15
KIND_OBJECTS_BIT: Final = 8  # set in KIND_SLAB and KIND_TAIL only
KIND_NONE: Final = 0  # reserved, never reached, or inside a block
KIND_FREE: Final = 1
KIND_PAGES: Final = 2
KIND_LARGE: Final = 3  # kmalloc above the largest cache
KIND_RUN: Final = 4  # any number of contiguous pages
KIND_SLAB: Final = 8
KIND_TAIL: Final = 9  # second and later page of a slab; order, cache and objects as in the first
KIND_AREA: Final = 7  # block of a vmalloc area
KIND_CACHED: Final = 5  # block in a thread's sheaf
KIND_RECORD: Final = 6  # a thread's record
ORDER_SHIFT: Final = 4
ORDER_MASK: Final = 31
ZONE_SHIFT: Final = 9
ZONE_MASK: Final = 3
PAGE_MARKED: Final = 1 << 11  # cached block that a walker has seen, while it walks
PAGE_CONSTRUCTING: Final = 1 << 12  # objects are with the constructor; pending counts those not yet returned
PAGE_FAILED: Final = 1 << 13  # the constructor raised: give the slab back when the last object returns
CACHE_SHIFT: Final = 16
CACHE_MASK: Final = 0xFFFF
PENDING_SHIFT: Final = 32
PENDING_ONE: Final = 1 << PENDING_SHIFT
PENDING_MASK: Final = 0x3FF
SHEAF_SHIFT: Final = 42  # sheaf index of the slab's cache, 0 if its objects have to go the slow way
SHEAF_MASK: Final = 63
OBJECTS_SHIFT: Final = 48
OBJECTS_MASK: Final = 0x3FF
SLAB_BYTES_SHIFT: Final = 58  # log2 of the slab's bytes

# -- vmalloc map: one record a granule of the window ------------------------------------------------------------------
GRANULE_PAGES: Final = 16
GRANULE_SHIFT: Final = PAGE_SHIFT + 4
GRANULE_BYTES: Final = 1 << GRANULE_SHIFT
AREA_WORDS: Final = 8
V_INFO: Final = 0  # area kind 0..3 | granules << 4, in the first granule of an area
V_LINK: Final = 1  # next << 32 | prev, granules (free and lazy lists)
V_PAGES: Final = 2
V_FIRST: Final = 3  # pfn of the first block; blocks are chained by PG_LINK
V_BYTES: Final = 4  # size asked for
V_TAG: Final = 5  # in the last granule of an area: its granules, so that the area behind can find this one
V_STAMP: Final = 6  # epoch in which a lazily kept area was freed
AREA_KIND_MASK: Final = 15
AREA_GRANULES_SHIFT: Final = 4
AREA_NONE: Final = 0
AREA_FREE: Final = 1
AREA_LIVE: Final = 2
AREA_LAZY: Final = 3
WINDOW_FACTOR: Final = 2  # addresses in the window per byte of arena

# -- mempool descriptor (a kmalloc'ed block) ---------------------------------------------------------------------------
P_NEXT: Final = 0  # word index of the next pool
P_MIN_NR: Final = 1
P_CURR_NR: Final = 2
P_BACKING: Final = 3  # BACKING_*
P_ARG: Final = 4  # bytes, word index of the cache, or order
P_ELEMENTS_BYTES: Final = 5  # offset of the array of element offsets
P_CAPACITY: Final = 6
P_ORDER: Final = 7  # ORDER_*: who is asked first
P_MISSING: Final = 8  # elements that a failed top-up still owes the reserve
P_STATE: Final = 9  # POOL_*
P_WAITERS: Final = 10  # requests in the queue
P_GETS_RESERVE: Final = 11
P_GETS_ALLOC: Final = 12
P_PUTS_RESERVE: Final = 13
P_PUTS_FREE: Final = 14
P_FAILS: Final = 15
P_LOW: Final = 16  # fewest elements the reserve ever held
P_ZONE: Final = 17
P_ELEMENT_BYTES: Final = 18
P_GRANTED: Final = 19  # elements of the reserve that are granted to requests and not yet taken
P_HEAD: Final = 20  # word index of the first request of the queue, the oldest; 0 for none
P_TAIL: Final = 21
P_FREE_NODES: Final = 22  # word index of the first free request node
P_CHUNKS: Final = 23  # word index of the youngest chunk of nodes but for the first
P_NODES: Final = 24  # nodes that are requests: in the queue or granted
P_TICKETS: Final = 25  # requests that ever were
P_PEAK_WAITERS: Final = 26
P_GETS_WAIT: Final = 27  # gets, of those from the reserve, that had to wait
P_MAX_WAIT_NS: Final = 28
P_SINCE_NS: Final = 29  # when the two sums below were last brought up to date, while somebody waits
P_SOME_NS: Final = 30  # time in which at least one request waited
P_FULL_NS: Final = 31  # time in which no fewer requests waited than elements were out
P_MADE_NS: Final = 32
P_REFILLS: Final = 33  # elements that the backing allocator gave to the reserve, the first ones included
P_REFILL_LOW: Final = 34  # a free that leaves fewer in the reserve than this tops it up to P_REFILL_HIGH
P_REFILL_HIGH: Final = 35
P_WIPE: Final = 36  # WIPE_* bits
P_DAMAGED: Final = 37  # elements whose poison was not whole when they were taken
P_FAIL_BELOW: Final = 38  # fault injection: the backing fails where a draw of FAIL_BITS bits is below this
P_FAIL_INTERVAL: Final = 39  # one in so many requests is a candidate
P_FAIL_TIMES: Final = 40  # injections left, < 0 without limit
P_FAIL_STATE: Final = 41  # of the generator
P_FAIL_CALLS: Final = 42
P_FAILED: Final = 43  # injections so far
P_ALLOC_FN: Final = 44  # addresses of the machine code of BACKING_CALLS
P_FREE_FN: Final = 45
P_SHELF: Final = 46  # address of what the face keeps beside the reserve, 0 if nothing; it belongs to the process
P_BUDGET: Final = 47  # word index of the budget that pays for elements, 0 for none
P_WAIT_COUNTS: Final = 48  # histogram of waits, WAIT_BUCKETS counts
WAIT_BUCKETS: Final = 96  # four to an octave, from 2**WAIT_SHIFT ns on
WAIT_SHIFT: Final = 8
P_NODES_FIRST: Final = P_WAIT_COUNTS + WAIT_BUCKETS  # the first chunk of request nodes is part of the descriptor
FIRST_NODES: Final = 13
NODE_WORDS: Final = 8
POOL_WORDS: Final = P_NODES_FIRST + FIRST_NODES * NODE_WORDS
ORDER_RESERVE_FIRST: Final = 0
ORDER_ALLOC_FIRST: Final = 1  # the kernel's
ORDER_RESERVE_ONLY: Final = 2  # never more than capacity elements: the backing allocator only pays what is missing
POOL_LIVE: Final = 0
POOL_DETACHED: Final = (
    1  # destroyed by force: elements that are out go to the backing allocator, the last one ends the pool
)
N_STATE: Final = 0  # NODE_*; what a sleeper sleeps on
N_NEXT: Final = 1  # in the queue, or among the free ones
N_PREV: Final = 2
N_NEED: Final = 3  # elements wanted, then elements granted and not yet taken
N_FD: Final = 4  # eventfd to write to when granted; -1: a thread sleeps on N_STATE
N_SINCE_NS: Final = 5  # when it came to wait; 0: it had not to
N_TICKET: Final = 6  # of the present request, so that a late word about the last one is told apart; 0: free
TICKETS: Final = (1 << 24) - 1
TICKET_SHIFT: Final = 39  # a request is named ticket << TICKET_SHIFT | node
NODE_FREE: Final = 0
NODE_WAITING: Final = 1
NODE_GRANTED: Final = 2
NODE_GONE: Final = 3  # in the queue still, but pool or arena are going: nobody may fall asleep on it
CHUNK_NODES: Final = 63  # a page of nodes, the first of which links chunks
WIPE_ZERO_ON_ALLOC: Final = 1
WIPE_ZERO_ON_FREE: Final = 2
WIPE_POISON_ON_ALLOC: Final = 4
WIPE_POISON_ON_FREE: Final = 8
POISON_FREE: Final = 0x6B6B6B6B6B6B6B6B  # kernel: POISON_FREE, in every byte
POISON_INUSE: Final = 0x5A5A5A5A5A5A5A5A  # kernel: POISON_INUSE
FAIL_BITS: Final = 24
TAKE_NOW: Final = 0  # how a face takes an element
TAKE_RESERVED: Final = 1
TAKE_CLAIM: Final = 2
SURPLUS: Final = 1  # status: the face gives this element to its free_fn
BACKING_KMALLOC: Final = 0
BACKING_CACHE: Final = 1
BACKING_PAGES: Final = 2
BACKING_OBJECT: Final = 3  # elements are numbers of Python objects: the face asks its own alloc_fn
BACKING_CALLS: Final = 4  # elements are numbers that a user's machine code makes

# -- budget descriptor (a kmalloc'ed block; kept for the next budget when this one is gone) -----------------------------
B_STATE: Final = 0  # BUDGET_*
B_NEXT: Final = 1  # word index of the next older budget, or of the next free descriptor
B_PARENT: Final = 2  # word index, 0 for none
B_USED: Final = 3  # bytes charged here and below
B_PEAK: Final = 4
B_LIMIT: Final = 5  # B_USED may not pass it
B_HIGH: Final = 6  # above it the faces reclaim and slow down
B_FAILURES: Final = 7  # charges that this budget refused
B_THROTTLES: Final = 8  # sleeps for being above B_HIGH
B_CHILDREN: Final = 9  # descriptors that have this one as their parent
B_USERS: Final = 10  # who may still charge it: its handle, caches, pools
B_COUNTS: Final = 12  # CHARGE_*: how many charges of that kind are out
B_BYTES: Final = 16  # CHARGE_*: their bytes
B_NAME: Final = 20  # 8 words of utf-8, zero padded
BUDGET_NAME_BYTES: Final = 64
BUDGET_WORDS: Final = B_NAME + BUDGET_NAME_BYTES // WORD_BYTES
BUDGET_FREE: Final = 0
BUDGET_OPEN: Final = 1
BUDGET_CLOSED: Final = 2  # takes no charges; those that are out stay counted until they go back
CHARGE_BUFFERS: Final = 0
CHARGE_SLABS: Final = 1
CHARGE_ELEMENTS: Final = 2  # of pools
CHARGE_ARRAYS: Final = 3
CHARGE_KINDS: Final = 4
NO_LIMIT: Final = (1 << 63) - 1

# gfp bits that kernels look at; the full set is in realalloc.gfp
GFP_DMA_BIT: Final = 0x01
GFP_HIGH_BIT: Final = 0x20
GFP_ZERO_BIT: Final = 0x100
GFP_WAIT_BIT: Final = 0x400  # __GFP_DIRECT_RECLAIM: who is refused may take memory back, and will wait
GFP_KSWAPD_BIT: Final = 0x800
GFP_NOFAIL_BIT: Final = 0x8000
GFP_NORETRY_BIT: Final = 0x10000
GFP_MEMALLOC_BIT: Final = 0x20000
GFP_NOMEMALLOC_BIT: Final = 0x80000
GFP_ORDINARY: Final = GFP_WAIT_BIT | GFP_KSWAPD_BIT  # what GFP_KERNEL means here

LIST_PREV_MASK: Final = 0xFFFFFFFF

# Relations that the code above and below relies on.
assert DECAY + DECAY_WORDS <= KMALLOC_TABLE
assert Z_HEADS + MAX_MAX_ORDER + 1 <= Z_COUNTS
assert Z_COUNTS + MAX_MAX_ORDER + 1 <= ZONE_WORDS
assert 8 <= H_END_PFN & -8 == H_MEMMAP & -8 < H_LOCK & -8 < H_INSIDE < ZONES  # cache lines have eight words
assert Z_WAKES < Z_HEADS
assert B_COUNTS + CHARGE_KINDS <= B_BYTES
assert B_BYTES + CHARGE_KINDS <= B_NAME
assert C_NAME + CACHE_NAME_BYTES // WORD_BYTES == CACHE_WORDS
assert MAX_MAX_ORDER <= ORDER_MASK
assert KMALLOC_TABLE + KMALLOC_TABLE_WORDS <= SHEAF_OWNERS
assert KMALLOC_TABLE % 8 == D_TOP  # loads that an allocation begins with: far from the first word of a line
assert SHEAF_OWNERS + SHEAF_INDICES <= PRESSURE
assert PRESSURE + PSI_TRIGGERS + TRIGGERS * TRIGGER_WORDS <= NOBODY
assert NOBODY + THREAD_WORDS == THREADS
assert SHEAF_BLOCKS + SHEAF_BLOCK_ORDERS == SHEAF_INDICES
assert THREADS + THREAD_SLOTS * THREAD_WORDS == NULL_RECORD
assert THREADS % PAGE_WORDS == 0
assert NULL_RECORD + RECORD_WORDS == INFOS
assert S_BOTTOM + 1 == S_OBJECTS
assert SHEAF_INDICES <= 1 << (OBJECTS_SHIFT - SHEAF_SHIFT)
assert MAX_OBJECTS <= min(OBJECTS_MASK, PENDING_MASK)
assert SHEAF_INDICES * SHEAF_DESC_WORDS == RECORD_WORDS == PAGE_WORDS
assert PAGE_BYTES // KMALLOC_SIZES[0] <= MAX_OBJECTS  # an order-0 slab of the smallest class fits its free map
assert KMALLOC_SIZES[-1] == KMALLOC_FINE_SIZES[-1] == KMALLOC_MAX_CACHE_BYTES == 2 * PAGE_BYTES
assert (PAGE_BYTES << MAX_SLAB_ORDER) < 1 << (RECIPROCAL_SHIFT // 2)  # the reciprocal is exact below 2**16


def slab_min_objects() -> int:
    """Objects that a slab should hold: the kernel's ``4 * (fls(nr_cpus) + 1)``."""
    return 4 * ((os.cpu_count() or 1).bit_length() + 1)
