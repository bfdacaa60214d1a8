"""Pressure through the arena's face: what stalls, what the text says, triggers in poll, asyncio, threads and children."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time

import pytest
from checks import exhaust, quiet_child, refuses
from support import MIB

import realalloc as ra


def stall(arena: ra.Arena) -> None:
    """Run out of memory."""
    held = exhaust(lambda: arena.kmalloc(5000))
    assert held
    held.clear()


def test_an_arena_that_never_ran_out_has_none() -> None:
    with ra.Arena("4MiB") as arena:
        arena.kmalloc(100).release()
        seen = arena.pressure()
        assert (seen.some.total_ns, seen.full.total_ns, seen.reclaims) == (0, 0, 0)
        assert str(seen) == "".join(f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" for kind in ("some", "full"))
        assert seen.as_dict()["some"]["avg10"] == 0.0


def test_running_out_and_the_limit_are_stalls() -> None:
    with ra.Arena("4MiB") as arena:
        stall(arena)
        first = arena.pressure()
        assert first.full.total_ns > 0
        assert first.some.total_ns >= first.full.total_ns
        assert first.reclaims > 0
        assert re.fullmatch(r"(some|full) avg10=\d+\.\d\d avg60=.* total=\d+\n(full) .*\n", str(first))
    with ra.Arena("16MiB", limit="2MiB", decay=None) as arena:
        blocks = exhaust(lambda: arena.alloc_pages(6))
        blocks.clear()
        arena.alloc_pages(8).view.release()  # its memory has to come from blocks elsewhere
        assert arena.pressure().reclaims > 0


def test_shrinkers_hold_up_one_thread() -> None:
    with ra.Arena("4MiB") as arena:
        kept: list[memoryview] = []

        def scan(count: int) -> int:
            time.sleep(0.01)
            gone = len(kept[:count])
            del kept[:count]
            return gone

        with arena.register_shrinker(lambda: len(kept), scan):
            kept += exhaust_without(arena)
            arena.kmalloc(5000).release()
        seen = arena.pressure()
        assert seen.some.total_ns - seen.full.total_ns >= 10_000_000
        kept.clear()


def exhaust_without(arena: ra.Arena) -> list[memoryview]:
    """Take all without asking shrinkers."""
    return exhaust(lambda: arena.kmalloc(5000, ra.GFP_NOWAIT))


def test_a_trigger_wakes_who_waits() -> None:
    with ra.Arena("4MiB") as arena, arena.pressure_trigger("some", stall=1e-6, window=10) as trigger:
        assert trigger.wait(0) is False
        thread = threading.Timer(0.05, lambda: [stall(arena) for _ in range(50)])
        thread.start()
        assert trigger.wait(20) is True
        thread.join()
        assert trigger.wait(0) is False  # once a window
        assert trigger.clear() == 0


def test_asyncio_watches_a_trigger() -> None:
    async def main(arena: ra.Arena) -> int:
        loop, seen = asyncio.get_running_loop(), asyncio.Event()
        with arena.pressure_trigger("full", stall=1e-6, window=10) as trigger:
            loop.add_reader(trigger, seen.set)
            deadline = time.monotonic() + 20
            while not seen.is_set() and time.monotonic() < deadline:  # one stall may be shorter than a microsecond
                stall(arena)
                await asyncio.sleep(0)
            assert seen.is_set()
            loop.remove_reader(trigger)
            return trigger.clear()

    with ra.Arena("4MiB") as arena:
        assert asyncio.run(main(arena)) == 1


def test_bad_arguments_and_too_many() -> None:
    with ra.Arena("4MiB") as arena:
        refuses(arena, ValueError, "kind", arena.pressure_trigger, "most")
        for wrong in (0.01, 11, -1, float("nan")):
            with pytest.raises(ValueError, match="window"):
                arena.pressure_trigger(window=wrong)
        for wrong in (0, -1, 1.5, float("inf")):
            with pytest.raises(ValueError, match="stall"):
                arena.pressure_trigger(stall=wrong, window=1.0)
        with pytest.raises(TypeError, match="seconds"):
            arena.pressure_trigger(stall="much")  # type: ignore[arg-type]
        fds = len(os.listdir("/proc/self/fd"))
        made = [arena.pressure_trigger() for _ in range(16)]
        with pytest.raises(ValueError, match="at most 16"):
            arena.pressure_trigger()
        for trigger in made:
            trigger.close()
            trigger.close()
        assert len(os.listdir("/proc/self/fd")) == fds
        with pytest.raises(ValueError, match="closed"):
            made[0].fileno()
    with pytest.raises(ra.ArenaClosed):
        arena.pressure()
    with pytest.raises(ra.ArenaClosed):
        arena.pressure_trigger()


def test_a_trigger_outlives_its_arena() -> None:
    arena = ra.Arena("4MiB")
    trigger = arena.pressure_trigger()
    arena.close()
    assert trigger.wait(0) is False
    trigger.close()
    other = ra.Arena(MIB).pressure_trigger  # the arena dies with a trigger that nobody closes
    assert other is not None


def test_a_child_of_fork_leaves_the_parents_fd_alone() -> None:
    quiet_child(
        """
import os, realalloc as ra
arena = ra.Arena('4MiB')
trigger = arena.pressure_trigger(stall=1e-6, window=10)
def stall():
    held = []
    try:
        while True: held.append(arena.kmalloc(5000))
    except ra.OutOfMemory: pass
pid = os.fork()
if pid == 0:
    stall()
    with arena.pressure_trigger(stall=1e-6, window=10) as mine:
        for _ in range(50): stall()
        os._exit(0 if mine.wait(0) else 1)
assert os.waitpid(pid, 0)[1] == 0
assert trigger.wait(0) is False
for _ in range(50): stall()
assert trigger.wait(0) is True
left = arena.pressure_trigger()  # that nobody closes
print('done')
""",
        expect="done",
    )
