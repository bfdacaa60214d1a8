"""Every word of a lived-in arena, one after the other, made what it should not be: do walkers say so, or at least end?

Run in a child (``python damage.py seed share``), as a walker that follows a damaged word ends the process: each stretch of
words is tried in a fork, which says first what it is about to do. Prints what ended a fork, then how many words it tried,
and how many changes were reported.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import realalloc as ra
from realalloc.mm import layout as at
from realalloc.mm.drain import flush_barn_locked
from realalloc.mm.mempool_wait import pool_wait_begin

MIB = 1 << 20
STRETCH = 400
SECONDS = 30  # for one change: a walker that goes round for ever is as bad as one that ends
WORD = 1 << 64


def lived_in() -> tuple[ra.Arena, list[Any], list[Callable[[], None]]]:
    """Make an arena with something of every kind; what keeps it so; the walkers of single things."""
    arena = ra.Arena(16 * MIB, max_order=6, lock=256 << 10, decay=None)
    plain = [arena.kmalloc(n) for n in (8, 24, 100, 700, 3000, 8192, 20_000, 100_000) for _ in range(9)]
    kept: list[Any] = plain[::2]
    del plain
    cache = arena.kmem_cache("tiny", 8)
    kept.append([cache.alloc() for _ in range(1200)])
    busy = arena.kmem_cache("busy", 48)
    built = arena.kmem_cache("built", 300, ctor=lambda view: None)
    kept.append(built.alloc())
    areas = [arena.vmalloc(n) for n in (5000, 5 * at.PAGE_BYTES, 70_000, 80_000)]
    kept += areas[1::2]
    del areas
    arena.trim()  # an area whose addresses are free
    arena.vfree(arena.vmalloc(200_000))
    kept.append(arena.kmalloc(100, gfp=ra.GFP_KERNEL | ra.GFP_DMA))
    budget = arena.budget("all", limit="4MiB")
    with budget:
        kept += [budget, arena.kmalloc(5000), budget.budget("part"), arena.kmem_cache("paid", 100)]
    pools = [arena.mempool(4, size=500), arena.mempool(3, cache=busy), arena.mempool(2, order=1)]
    kept.append(pools[0].alloc())
    kept.append([pools[1].alloc() for _ in range(3)])
    request = np.zeros(1, np.int64)
    for _ in range(16):  # more than the descriptor has nodes for
        pool_wait_begin(arena.words, pools[1].at, 1, -1, request)
    objects = [busy.alloc() for _ in range(2500)]
    kept.append(objects[2200:])
    del objects  # into sheaves, stock, barn and slabs
    kept.append([busy.alloc() for _ in range(300)])  # and some sheaves are empty now
    del kept[-1][100:]
    flush_barn_locked(arena.words, busy.at, 2)
    worker = threading.Thread(target=lambda: kept.append([arena.kmalloc(n) for n in (64, 64, 5000, 20_000)]))
    worker.start()
    worker.join()
    arena.validate()
    return arena, kept, [arena.validate, cache.validate, busy.validate, *(pool.validate for pool in pools)]


def places(words: Any) -> Iterator[int]:
    """Name the words that are looked at by walkers, or lead there."""
    frontier = int(words[at.ZONES + at.Z_FRONTIER_PFN])
    begin, end = int(words[at.H_META_PAGES]), frontier
    yield from range(at.INFOS)
    yield from range(at.INFOS, at.INFOS + end)
    memmap, caches = int(words[at.H_MEMMAP]), int(words[at.H_CACHES])
    yield from range(memmap + begin * at.PAGE_STRUCT_WORDS, memmap + end * at.PAGE_STRUCT_WORDS)
    yield from range(caches, caches + int(words[at.H_NR_CACHES]) * at.CACHE_WORDS)
    yield from range(int(words[at.H_RESMAP]), int(words[at.H_VMAP]) + int(words[at.H_VM_FRONTIER]) * at.AREA_WORDS)
    for pfn in range(begin, end):
        info = int(words[at.INFOS + pfn])
        owner = caches + (info >> at.CACHE_SHIFT & at.CACHE_MASK) * at.CACHE_WORDS
        inner = owner in (int(words[at.H_SHEAF_CACHE]), int(words[at.H_FREEMAP_CACHE]))
        kind = info & at.KIND_MASK
        if kind == at.KIND_RECORD or (kind == at.KIND_SLAB and inner):
            yield from range(pfn * at.PAGE_WORDS, (pfn + 1) * at.PAGE_WORDS)
    for head, link, count in ((at.H_POOLS, at.P_NEXT, at.POOL_WORDS), (at.H_BUDGETS, at.B_NEXT, at.BUDGET_WORDS)):
        where = int(words[head])
        while where != 0:
            yield from range(where, where + count)
            if head == at.H_POOLS:
                array = int(words[where + at.P_ELEMENTS_BYTES]) // at.WORD_BYTES
                yield from range(array, array + int(words[where + at.P_CAPACITY]))
                chunk = int(words[where + at.P_CHUNKS])
                if chunk != 0:
                    yield from range(chunk, chunk + (at.CHUNK_NODES + 1) * at.NODE_WORDS)
            where = int(words[where + link])


def values(words: Any, where: int, rng: random.Random) -> list[int]:
    """Choose what to put there: the edges, neighbours, and what looks like an index, a pfn or a link of something else."""
    end = int(words[at.H_END_PFN])
    old = int(words[where])
    other = int(words[rng.randrange(at.INFOS)])
    some = rng.randrange(end)
    found = {0, 1, 2, -1, old + 1, old - 1, -old, old << 1, old ^ 1 << rng.randrange(64), old ^ 1 << 32, other, some}
    found |= {
        end,
        end - 1,
        end * at.PAGE_WORDS,
        end << at.PAGE_SHIFT,
        words.size,
        words.size - 1,
        words.nbytes,
        -1 << 63,
    }
    found |= {(1 << 63) - 1, 1 << 61, 1 << 60 | old, some << 32 | some, some * at.PAGE_WORDS, rng.getrandbits(64)}
    atomics = where in (at.H_LOCK, at.H_INSIDE) or (
        at.NOBODY <= where < at.NULL_RECORD and where % at.THREAD_WORDS == at.T_INSIDE
    )
    if atomics:  # that somebody is at work: a walker waits
        found -= {1, 2, 3}
    return sorted({(value + (WORD >> 1)) % WORD - (WORD >> 1) for value in found} - {old})


def attempt(words: Any, todo: list[int], done: int, walks: list[Callable[[], None]], notes: Any, seed: int) -> None:
    """Change words one by one, and have each walker look, in a process that may end of it."""
    for k in range(done, len(todo)):
        where = todo[k]
        old = int(words[where])
        for value in values(words, where, random.Random(seed * 1_000_003 + where)):
            notes[:4] = k, where, value, notes[3]
            signal.alarm(SECONDS)
            words[where] = value
            caught = False
            for walk in walks:
                try:
                    walk()
                except ra.CorruptionError:
                    caught = True
            words[where] = old
            notes[3] += caught
    signal.alarm(0)
    walks[0]()  # what walkers change they change back


def main(seed: int, share: float) -> None:
    """Try a share of the words."""
    np.seterr(over="ignore")  # without machine code: there sums of damaged words wrap
    arena, _kept, walks = lived_in()
    words = arena.words
    rng = random.Random(seed)
    todo = [where for where in sorted(set(places(words))) if rng.random() < share]
    notes = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)
    for first in range(0, len(todo), STRETCH):
        part = todo[first : first + STRETCH]
        done = 0
        while done < len(part):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    attempt(words, part, done, walks, notes, seed)
                    status = 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == 0:
                break
            print(f"word {notes[1]} = {notes[2]}: {code}", flush=True)
            done = int(notes[0]) + 1
    print(len(todo), "words,", notes[3], "reported")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
