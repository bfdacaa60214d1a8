"""Jitted loops of threads that hand objects to each other; made as those of ``basic`` are.

Objects say in themselves what they hold, so whoever frees one checks it: CORRUPT is returned where anything else is found.
Helpers are inlined for everybody: where they were calls, which depends on the allocator's code, numba counted references to
``how``, with locked instructions (37 % of realalloc's rptest).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from realalloc.lab.loops.waits import LINE, enter, exchange, fill, leave, roll, wait_above
from realalloc.lease.capi import load_at, store_at
from realalloc.mm.atomic import atomic_load, atomic_store, compare_and_swap
from realalloc.mm.prim import sched_yield

CORRUPT = -2
STREAM = 4096  # sizes of a stream that goes round, a power of two
HAND = 4096  # objects handed over at once
DEPTH = 100  # batches that wait at most
LOCK, COUNT, WAITING = 0, LINE, 2 * LINE  # words of a stack of batches
WRITTEN = 128  # bytes of an object, at most
COOKIE = 0x5EED
GROWTH = 100_000  # entries
PRIMES = np.array([1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049])
HEADER = 24  # bytes: the next one, its array, the number of its objects
PAGE = 4096


def make(f: Any) -> dict[str, Any]:
    """Make the loops over one kind of allocator."""
    alloc, free, at = f.alloc, f.free, f.at

    @njit(nogil=True)
    def hand_out(how: Any, sizes: Any, stack: Any, batches: int) -> int:
        """Allocate batches, each in an array that is allocated as well; put them onto a stack. A failure goes there as 0."""
        failed = False
        for batch in range(batches):
            holder = alloc(how, 8 * HAND)
            failed |= holder == 0
            for k in range(HAND if holder != 0 else 0):
                number = batch * HAND + k
                size = int(sizes[number & (STREAM - 1)])
                block = alloc(how, size)
                if block != 0:
                    fill(at(how, block), min(size, WRITTEN), number)
                failed |= block == 0
                store_at(at(how, holder) + 8 * k, block)
            while True:
                enter(stack, LOCK)
                count = stack[COUNT]
                if count < DEPTH:
                    break
                leave(stack, LOCK)
                sched_yield()
            stack[WAITING + count] = holder
            atomic_store(stack, COUNT, count + 1)
            leave(stack, LOCK)
        return -1 if failed else 0

    @njit(nogil=True)
    def take_in(how: Any, stack: Any, batches: int) -> int:
        """Take batches, read and free everything."""
        total = 0
        for _ in range(batches):
            while True:
                wait_above(stack, COUNT, 1)
                enter(stack, LOCK)
                count = stack[COUNT]
                if count > 0:
                    break
                leave(stack, LOCK)
            holder = stack[WAITING + count - 1]
            atomic_store(stack, COUNT, count - 1)
            leave(stack, LOCK)
            for k in range(HAND if holder != 0 else 0):
                block = load_at(at(how, holder) + 8 * k)
                if block != 0:
                    total += load_at(at(how, block))
                    free(how, block)
            if holder != 0:
                free(how, holder)
        return total

    @njit(forceinline=True)
    def new_items(how: Any, items: int) -> int:
        block = alloc(how, 8 * items)
        if block != 0:
            for k in range(items):
                store_at(at(how, block) + 8 * k, (items - k) ^ COOKIE)
        return block

    @njit(forceinline=True)
    def free_items(how: Any, block: int) -> int:
        if block == 0:
            return 0
        address = at(how, block)
        items = load_at(address) ^ COOKIE
        wrong = 0
        for k in range(items):
            wrong |= load_at(address + 8 * k) ^ COOKIE ^ (items - k)
        free(how, block)
        return wrong

    @njit(nogil=True)
    def stress(how: Any, seed: int, count: int, retained: int, table: Any) -> int:
        """Allocate some that die young and some that stay, exchange some with other threads; free all of one's own."""
        state = seed
        kept = alloc(how, max(8 * retained, 8))
        data, room, top, keeping = 0, 0, 0, 0
        if kept == 0:
            return -1
        total, wrong = 0, 0
        while count > 0 or keeping < retained:
            state = roll(state)
            young = keeping == retained or (count > 0 and (state >> 17) % 100 <= 50)
            state = roll(state)
            items = 1 << ((state >> 17) % (5 if young else 7))
            state = roll(state)
            if (state >> 17) % 100 <= 1:
                items *= 100
            items += items == 40
            block = new_items(how, items)
            if block == 0:
                return -1
            total += items
            if young:
                count -= 1
                if top == room:
                    fresh = alloc(how, 8 * (room + GROWTH))
                    if fresh == 0:
                        return -1
                    for k in range(top):
                        store_at(at(how, fresh) + 8 * k, load_at(at(how, data) + 8 * k))
                    if data != 0:
                        free(how, data)
                    data, room = fresh, room + GROWTH
                store_at(at(how, data) + 8 * top, block)
                top += 1
            else:
                store_at(at(how, kept) + 8 * keeping, block)
                keeping += 1
            state = roll(state)
            if (state >> 17) % 100 <= 66 and top > 0:
                state = roll(state)
                place = at(how, data) + 8 * ((state >> 17) % top)
                wrong |= free_items(how, load_at(place))
                store_at(place, 0)
            state = roll(state)
            if (state >> 17) % 100 <= 25 and top > 0:
                state = roll(state)
                place = at(how, data) + 8 * ((state >> 17) % top)
                state = roll(state)
                store_at(place, exchange(table, (state >> 17) % len(table), load_at(place)))
        for k in range(retained):
            wrong |= free_items(how, load_at(at(how, kept) + 8 * k))
        for k in range(top):
            wrong |= free_items(how, load_at(at(how, data) + 8 * k))
        free(how, kept)
        if data != 0:
            free(how, data)
        return CORRUPT if wrong != 0 else total

    @njit(nogil=True)
    def clear(how: Any, table: Any, keep: int) -> int:
        """Free what the table holds, but for every second entry if asked to keep some."""
        wrong = 0
        for k in range(len(table)):
            if keep == 0 or k % 2 == 0:
                wrong |= free_items(how, table[k])
                table[k] = 0
        return CORRUPT if wrong != 0 else 0

    @njit(forceinline=True)
    def new_tagged(how: Any, size: int) -> int:
        block = alloc(how, size)
        if block != 0:
            address = at(how, block)
            for k in range(0, size, PAGE):
                store_at(address + k, size)
            store_at(address + size - 8, size)
        return block

    @njit(forceinline=True)
    def free_tagged(how: Any, block: int) -> int:
        if block == 0:
            return 0
        address = at(how, block)
        size = load_at(address)
        wrong = load_at(address + size - 8) ^ size
        free(how, block)
        return wrong

    @njit(forceinline=True)
    def free_posted(how: Any, header: int) -> int:
        wrong = 0
        while header != 0:
            address = at(how, header)
            following, array, count = load_at(address), load_at(address + 8), load_at(address + 16)
            for k in range(count):
                wrong |= free_tagged(how, load_at(at(how, array) + 8 * k))
            free(how, array)
            free(how, header)
            header = following
        return wrong

    @njit(nogil=True)
    def correspond(how: Any, me: int, threads: int, blocks: Any, posts: Any, sizes: Any, seed: int, loops: int) -> int:
        """Free and replace some of one's own, strided by primes; every second time post as many to another thread."""
        state = seed
        total, wrong = 0, 0
        for loop in range(loops):
            posted = exchange(posts, LINE * me, 0)
            for turn in range(2):
                state = roll(state)
                count = 24 + (state >> 17) % 56 if turn == 0 else 30 + (state >> 17) % 70
                state = roll(state)
                stride = PRIMES[(state >> 17) % len(PRIMES)]
                state = roll(state)
                place = (state >> 17) % len(blocks)
                for _ in range(count):
                    place = (place + stride) % len(blocks)
                    wrong |= free_tagged(how, blocks[place])
                    blocks[place] = 0
                    if turn == 1:
                        state = roll(state)
                        size = int(sizes[(state >> 17) % len(sizes)])
                        blocks[place] = new_tagged(how, size)
                        if blocks[place] == 0:
                            return -1
                        total += size
                if turn == 0:
                    wrong |= free_posted(how, posted)
            if loop % 2 == 0:
                continue
            header, array = alloc(how, HEADER), alloc(how, 8 * count)
            if header == 0 or array == 0:
                return -1
            for k in range(count):
                state = roll(state)
                size = int(sizes[(state >> 17) % len(sizes)])
                block = new_tagged(how, size)
                if block == 0:
                    return -1
                total += size
                store_at(at(how, array) + 8 * k, block)
            store_at(at(how, header) + 8, array)
            store_at(at(how, header) + 16, count)
            whose = LINE * ((me + 1) % threads)
            while True:
                old = atomic_load(posts, whose)
                store_at(at(how, header), old)
                if compare_and_swap(posts, whose, old, header) == 1:
                    break
        return CORRUPT if wrong != 0 else total

    @njit(nogil=True)
    def part(how: Any, me: int, blocks: Any, posts: Any) -> int:
        """Free one's own and what was posted."""
        wrong = free_posted(how, exchange(posts, LINE * me, 0))
        for k in range(len(blocks)):
            wrong |= free_tagged(how, blocks[k])
            blocks[k] = 0
        return CORRUPT if wrong != 0 else 0

    @njit(nogil=True)
    def leak(how: Any, table: Any, index: int) -> int:
        """Leave a zeroed object in a shared slot, free what was there; the thread ends after that."""
        block = alloc(how, 128)
        if block == 0:
            return -1
        fill(at(how, block), 128, 0)
        store_at(at(how, block), index)
        old = exchange(table, index, block)
        if old != 0:
            wrong = load_at(at(how, old)) ^ index
            free(how, old)
            return CORRUPT if wrong != 0 else 1
        return 1

    return {
        "hand_out": hand_out,
        "take_in": take_in,
        "stress": stress,
        "clear": clear,
        "correspond": correspond,
        "part": part,
        "leak": leak,
    }
