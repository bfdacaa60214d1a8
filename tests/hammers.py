"""Shared by the tests of threads: jitted loops that hammer an arena without the GIL, and a way to run them in a child."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit

from realalloc import Arena
from realalloc.jit import kfree, kmalloc, load_word, store_word
from realalloc.mm.atomic import atomic_load

HELD = 64


@njit
def some_size(state, most):
    """Return a size of 8 to ``most`` bytes, small ones more often."""
    return 8 + (state >> 8) % (64 if state & 3 else most - 7)


@njit(nogil=True)
def replace(words, seed, rounds, most):
    """Replace random blocks that carry their offset, then free all; return errors found."""
    state = np.int64(seed)
    errors = 0
    held = np.zeros(HELD, np.int64)
    for k in range(rounds + HELD):
        state = (state * 1103515245 + 12345) % 2147483648
        slot = (state >> 12) % HELD if k < rounds else k - rounds
        old = held[slot]
        if old != 0:
            errors += load_word(words, old) != old
            errors += kfree(words, old) != 0
        fresh = kmalloc(words, some_size(state, most)) if k < rounds else 0
        if fresh != 0:
            store_word(words, fresh, fresh)
        held[slot] = fresh
    return errors


@njit(nogil=True)
def hammer(words, seed, most, stop):
    """Do the same, again and again, until ``stop[0]``."""
    errors = 0
    while atomic_load(stop, 0) == 0:
        seed += 1
        errors += replace(words, seed, 1000, most)
    return errors


@njit(nogil=True)
def take_when_told(words, gate, spins):
    """Wait for ``gate[0]``, then a moment, then take the lock for the first time."""
    while atomic_load(gate, 0) == 0:
        pass
    for _ in range(spins):
        atomic_load(gate, 0)
    return kfree(words, kmalloc(words, 100))


def compiled() -> None:
    """Compile all of them: once, in the parent of forks."""
    stop = np.ones(1, np.int64)
    with Arena("4MiB") as arena:
        hammer(arena.words, 1, 100, stop)
        replace(arena.words, 1, 10, 100)
        take_when_told(arena.words, stop, 1)


COMPILED = "import hammers; hammers.compiled()"  # for the parent of forks
CHILD = f"""
import _thread, gc, os, signal, sys, threading, time, warnings
warnings.simplefilter('ignore', DeprecationWarning)  # fork with threads
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import realalloc as ra
from hammers import hammer, replace, take_when_told
from realalloc.mm import layout
stop = np.ones(1, np.int64); errors = []
def ready(arena):
    hammer(arena.words, 1, 100, stop); replace(arena.words, 1, 10, 100); stop[0] = 0  # compiled
def hammering(words, seed, most): errors.append(hammer(words, seed, most, stop))
def start(arena, count, most, daemon=False):
    threads = [threading.Thread(target=hammering, args=(arena.words, seed, most), daemon=daemon) for seed in range(count)]
    for thread in threads: thread.start()
    return threads
def end(threads):
    stop[0] = 1
    for thread in threads: thread.join()
    assert not any(errors), errors
"""
