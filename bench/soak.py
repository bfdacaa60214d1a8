"""Soak: jitted threads that are born, allocate, exchange blocks, check what is in them and end, while the process forks.

Each worker replaces random blocks of 8 to 70 000 bytes in slots of its own and in slots that all share, for TURNS turns, frees
its own and ends; the next one starts. A block's first and last word say what it is, and are checked before it is freed. Half
of the workers use an arena that is too small for them, so that memory runs out and is reclaimed all the time. Meanwhile the
main thread trims, validates and forks every few milliseconds; a child validates, allocates, frees, trims and exits. At the
end everything is freed and both arenas must be whole and empty.

An operation is one kmalloc that gave a block or one kfree.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings

import numpy as np
from numba import njit

import realalloc as ra
from realalloc.jit import kfree, kmalloc, load_word, store_word
from realalloc.lab.loops.waits import exchange

OPERATIONS = 10**9
SMOKE_OPERATIONS = 10**7
TURNS = 50_000
PRIVATE = 128
SHARED = 1024
LEAST, MOST = 8, 70_000
STREAM = 1 << 16  # sizes, a power of two
SIZES = ("64MiB", "5MiB")
PAUSE = 0.003
CHILD_SECONDS = 60
WORDS_MASK = (1 << 20) - 1

DONE, FULL, WRONG, REFUSED = range(4)  # what a worker counts: operations, no memory, bad contents, frees refused


@njit(forceinline=True)
def _tag(offset, number):
    """Name a block: its offset, scrambled, and how many words it has."""
    return (offset * 0x9E3779B97F4A7C1) & ~WORDS_MASK | number


@njit(forceinline=True)
def _free(words, offset, counts):
    """Check what is in a block and free it."""
    tag = load_word(words, offset)
    number = tag & WORDS_MASK
    if tag != _tag(offset, number) or number == 0 or number > MOST:
        counts[WRONG] += 1  # nobody knows what it is: it is lost
        return
    if number > 1 and load_word(words, offset + 8 * (number - 1)) != ~tag:
        counts[WRONG] += 1
    store_word(words, offset, 0)
    if kfree(words, offset) != 0:
        counts[REFUSED] += 1
    counts[DONE] += 1


@njit(nogil=True)
def work(words, shared, sizes, seed, turns, counts):
    """Replace random blocks, then free one's own."""
    mine = np.zeros(PRIVATE, np.int64)
    state = np.uint64(seed * 2 + 1)
    for _ in range(turns):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        dice = np.int64(state >> np.uint64(8))
        fresh = 0
        if dice & 7 != 0:
            nbytes = sizes[dice >> 8 & (STREAM - 1)]
            fresh = kmalloc(words, nbytes)
            if fresh == 0:
                counts[FULL] += 1
            else:
                counts[DONE] += 1
                number = nbytes >> 3
                tag = _tag(fresh, number)
                store_word(words, fresh + 8 * (number - 1), ~tag)
                store_word(words, fresh, tag)
        if dice & 8 != 0:
            slot = dice >> 24 & (PRIVATE - 1)
            old = mine[slot]
            mine[slot] = fresh
        else:
            old = exchange(shared, dice >> 24 & (SHARED - 1), fresh)
        if old != 0:
            _free(words, old, counts)
    clear(words, mine, counts)


@njit(nogil=True)
def clear(words, slots, counts):
    """Free what is in the slots."""
    for k in range(len(slots)):
        old = exchange(slots, k, 0)
        if old != 0:
            _free(words, old, counts)


class Soak:
    """The arenas, their shared slots, and what has been counted."""

    def __init__(self) -> None:
        self.arenas = [ra.Arena(size) for size in SIZES]
        self.shared = [np.zeros(SHARED, np.int64) for _ in SIZES]
        rng = np.random.default_rng(21)
        self.sizes = (np.exp(rng.uniform(np.log(LEAST), np.log(MOST + 8), STREAM)).astype(np.int64) & -8).clip(LEAST)
        self.counts = np.zeros(4, np.int64)
        self.forks = 0
        self.born = 0
        self.errors: list[str] = []
        self.stop = False
        self._lock = threading.Lock()

    def note(self, what: str) -> None:
        """Count an error, and show the first ones."""
        self.errors.append(what)
        if len(self.errors) <= 5:
            print(what, flush=True)

    def one(self, seed: int, which: int, turns: int = TURNS) -> None:
        """Be a worker."""
        counts = np.zeros(4, np.int64)
        try:
            work(self.arenas[which].words, self.shared[which], self.sizes, seed, turns, counts)
        except BaseException:
            self.note(traceback.format_exc())
        with self._lock:
            self.counts += counts
            self.born += 1

    def lane(self, seed: int, step: int) -> None:
        """Keep one worker alive, in one arena and the other; those of different lanes meet there."""
        while not self.stop:
            worker = threading.Thread(target=self.one, args=(seed, seed // step % len(SIZES)))
            worker.start()
            worker.join()
            seed += step

    def look(self) -> None:
        """Do all that takes from threads what they keep, or counts it."""
        for arena in self.arenas:
            try:
                arena.trim()
                arena.validate()
                arena.stats()
            except ra.CorruptionError as error:
                self.note(f"parent: {error}")

    def fork(self) -> None:
        """Let a child find both arenas whole, and use them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                for arena in self.arenas:
                    arena.validate()
                    for size in (8, 500, 9000, 70_000):
                        assert kfree(arena.words, kmalloc(arena.words, size)) == 0
                    arena.trim()
                    arena.validate()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        deadline = time.monotonic() + CHILD_SECONDS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:  # it hangs, maybe in the fork itself
                os.kill(child, signal.SIGKILL)
                deadline += CHILD_SECONDS
            time.sleep(0.0005)
        self.forks += 1
        if ended[1] != 0:
            self.note(f"child {child}: exit {os.waitstatus_to_exitcode(ended[1])}")

    def finish(self) -> None:
        """Free everything; nothing may be left."""
        for arena, shared in zip(self.arenas, self.shared, strict=True):
            clear(arena.words, shared, self.counts)
            try:
                arena.validate()
                arena.trim()
                arena.validate()
            except ra.CorruptionError as error:
                self.note(f"at the end: {error}")
            stats = arena.stats()
            left = (stats.live_objects, stats.live_blocks, stats.live_areas, stats.allocated, stats.committed)
            if any(left):
                self.note(f"left over (objects, blocks, areas, allocated, committed): {left}")
            arena.close()
        if self.counts[WRONG] or self.counts[REFUSED]:
            self.note(f"{self.counts[WRONG]} blocks with wrong contents, {self.counts[REFUSED]} frees refused")


def soak(seconds: float | None, threads: int, *, smoke: bool) -> bool:
    """Run for some seconds, or until there were enough operations; report, and tell whether all was right."""
    enough = SMOKE_OPERATIONS if smoke else OPERATIONS
    run = Soak()
    for which in range(len(SIZES)):
        run.one(which, which, 1000)  # compiles
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    begin = time.perf_counter()
    lanes = [threading.Thread(target=run.lane, args=(1000 + k, threads)) for k in range(threads)]
    for lane in lanes:
        lane.start()
    estimated = smoke or seconds is not None
    try:
        while True:
            spent = time.perf_counter() - begin
            if spent >= seconds if seconds is not None else run.counts[DONE] >= enough:
                break
            if not estimated and spent > 5:
                estimated = True
                print(f"soak: about {enough * spent / max(run.counts[DONE], 1):.0f} s for {enough:.0e}", flush=True)
            run.fork()
            run.look()
            time.sleep(PAUSE)
    finally:
        run.stop = True
        for lane in lanes:
            lane.join()
        sys.setswitchinterval(interval)
    spent = time.perf_counter() - begin
    run.finish()
    done, full = int(run.counts[DONE]), int(run.counts[FULL])
    print(
        f"soak: {done / 1e6:.1f} million operations, {full} times no memory, {run.forks} forks, {run.born} threads, "
        f"{spent:.1f} s, {spent / max(done, 1) * 1e9:.0f} ns each, {len(run.errors)} errors",
        flush=True,
    )
    return not run.errors
