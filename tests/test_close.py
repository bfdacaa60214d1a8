"""Closing while leases die: whoever is last unmaps the range, once."""

from __future__ import annotations

from support import run_child


def test_the_last_lease_dying_inside_close_unmaps_once() -> None:
    """wake_pools runs without the GIL inside close(): the last buffer may die right there, and the mapping goes once."""
    child = run_child(
        "import sys, warnings, realalloc as ra, realalloc.arena as module\n"
        "warnings.simplefilter('ignore')\n"
        "kept = ra.Arena('1MiB')\n"
        "for _ in range(20):\n"
        "    arena = ra.Arena('1MiB')\n"
        "    mapping = arena._memory.mapping\n"
        "    held = [arena.kmalloc(10)]\n"
        "    wake = module.wake_pools\n"
        "    module.wake_pools = lambda words: (held.clear(), wake(words))\n"
        "    arena.close()\n"
        "    module.wake_pools = wake\n"
        "    assert sys.getrefcount(mapping) == 2, sys.getrefcount(mapping)\n"
        "    del mapping\n"
        "kept.kmalloc(10)[0] = 1\n"
    )
    assert (child.returncode, child.stderr) == (0, "")


def test_closing_twice_and_from_two_threads() -> None:
    """Any number of threads may close the same arena: one does."""
    child = run_child(
        "import threading, realalloc as ra\n"
        "for _ in range(50):\n"
        "    arena = ra.Arena('1MiB')\n"
        "    buf = arena.kmalloc(5); arena.kfree(buf)\n"
        "    threads = [threading.Thread(target=arena.close) for _ in range(4)]\n"
        "    [thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "    assert arena.closed; arena.close()\n"
    )
    assert (child.returncode, child.stderr) == (0, "")
