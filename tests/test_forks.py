"""Forks while machine code hammers the arena without the GIL: each child is whole, works, and gives everything back."""

from __future__ import annotations

import functools

import pytest
from checks import quiet_child
from hammers import CHILD, COMPILED
from support import JIT

hammering_child = functools.partial(quiet_child, first=COMPILED)
jitted = pytest.mark.skipif(not JIT, reason="only machine code runs without the GIL")

FORK = """
def fork(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(); code = 0
        except ra.CorruptionError as error: os.write(1, f'child: {error}; '.encode())
        finally: os._exit(code)
    deadline = time.monotonic() + 15
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline: os.kill(pid, signal.SIGKILL); deadline += 99; os.write(1, b'child: hangs; ')
        time.sleep(0.0005)
    return ended[1] != 0
def use():
    arena.validate()
    bufs = [arena.kmalloc(size) for size in (8, 100, 9000, 70000)] + [arena.alloc_pages(2).view, arena.vmalloc(5000)]
    for buf in bufs: buf[:] = bytes(len(buf))
    del buf; bufs.clear()
    assert replace(arena.words, 5, 500, 9000) == 0
    arena.validate(); arena.trim(); arena.validate()
    assert arena.words[layout.H_NR_RECORDS] == 0
    arena.kmalloc(64).release()
"""


@jitted
@pytest.mark.parametrize("most", [64, 8192, 70_000])
def test_children_forked_while_two_threads_hammer_are_whole(most: int) -> None:
    """Objects alone, objects of all sizes, page blocks too."""
    hammering_child(
        CHILD
        + FORK
        + f"""
arena = ra.Arena('64MiB'); ready(arena); use(); threads = start(arena, 2, {most}); bad = 0
for _ in range(100):
    bad += fork(use)
    time.sleep(0.002)
end(threads); arena.validate(); arena.trim(); arena.validate()
print(bad, arena.stats().live_objects, arena.stats().allocated)
""",
        expect="0 0 0",
        fresh=most == 8192,
    )


@jitted
def test_children_forked_while_threads_are_born_and_end_are_whole() -> None:
    hammering_child(
        CHILD
        + FORK
        + """
arena = ra.Arena('64MiB'); ready(arena); use(); over = threading.Event(); bad = 0
def bear(seed):
    while not over.is_set():
        thread = threading.Thread(target=lambda: errors.append(replace(arena.words, seed, 300, 8000)))
        thread.start(); thread.join()
lanes = [threading.Thread(target=bear, args=(seed,)) for seed in (1, 2)]
for lane in lanes: lane.start()
for _ in range(100): bad += fork(use)
over.set()
for lane in lanes: lane.join()
arena.validate(); arena.trim(); arena.validate()
print(bad, any(errors), arena.stats().allocated)
""",
        expect="0 False 0",
    )


@jitted
def test_a_child_starts_threads_of_its_own_and_forks_again() -> None:
    hammering_child(
        CHILD
        + FORK
        + """
arena = ra.Arena('64MiB'); ready(arena); use(); threads = start(arena, 2, 64)
def grandchildren():
    arena.validate()
    stop[0] = 0  # the parent's: this is a copy
    mine = start(arena, 2, 64)
    bad = sum(fork(use) for _ in range(5))
    end(mine); use()
    assert bad == 0
bad = sum(fork(grandchildren) for _ in range(8))
end(threads); arena.validate()
print(bad)
""",
        expect="0",
    )


@jitted
def test_what_the_parents_threads_kept_is_given_back_by_a_trim_of_the_child() -> None:
    hammering_child(
        CHILD
        + FORK
        + """
arena = ra.Arena('64MiB'); kept = threading.Barrier(4); over = threading.Event()
def keep():
    for size in (8, 500, 5000, 9000, 60000): del [arena.kmalloc(size) for _ in range(30)][:]
    kept.wait(); over.wait()
threads = [threading.Thread(target=keep) for _ in range(3)]
for thread in threads: thread.start()
kept.wait()
def look():
    assert arena.words[layout.H_NR_RECORDS] > 0 and arena.stats().live_objects == 0 and arena.stats().live_blocks == 0
    arena.validate(); arena.trim(); arena.validate()
    assert arena.words[layout.H_NR_RECORDS] == 0 and arena.stats().allocated == 0
bad = sum(fork(look) for _ in range(3))
over.set()
for thread in threads: thread.join()
look_here = arena.stats().live_objects; arena.trim(); arena.validate()
print(bad, look_here, arena.stats().allocated)
""",
        expect="0 0 0",
    )


@jitted
def test_a_fork_in_a_thread_with_sheaves_of_its_own_leaves_it_those() -> None:
    hammering_child(
        CHILD
        + FORK
        + """
arena = ra.Arena('64MiB'); ready(arena); use(); threads = start(arena, 1, 64); bad = []
def work():
    for k in range(20):
        buf = arena.kmalloc(100); buf[:] = b'p' * 100
        def look():
            assert bytes(buf) == b'p' * 100; arena.kfree(buf); use()
        bad.append(fork(look))
        assert bytes(buf) == b'p' * 100
forkers = [threading.Thread(target=work) for _ in range(2)]
for forker in forkers: forker.start()
for forker in forkers: forker.join()
end(threads); arena.validate(); arena.trim(); print(sum(bad), len(bad), arena.stats().live_objects)
""",
        expect="0 40 0",
    )


@jitted
def test_a_fork_while_another_thread_takes_the_bias_of_the_lock_away_leaves_the_child_a_lock() -> None:
    """The thread's first locking is timed to fall into the fork, which holds the lock with bias."""
    hammering_child(
        CHILD
        + FORK
        + """
def use(): arena.kmalloc(100).release(); arena.validate()
bad = 0; gate = np.ones(1, np.int64); arena = ra.Arena('4MiB'); take_when_told(arena.words, gate, 1); use()
for turn in range(200):
    with ra.Arena('4MiB') as arena:
        gate[0] = 0; words = arena.words
        thread = threading.Thread(target=lambda: take_when_told(words, gate, turn % 50 * 20000)); thread.start()
        time.sleep(0.001); gate[0] = 1
        bad += fork(use)
        thread.join(); del words
    if bad: break
print(bad)
""",
        expect="0",
    )
