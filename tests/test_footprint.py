"""Limit, decay, trim and the books against the system, through the arena's face; what psutil would see, by mincore."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import numpy as np
import pytest
from checks import exhaust, quiet_child, refuses, unchanged
from support import JIT, MIB, PAGE

import realalloc as ra
from realalloc.mm import layout

needs_thread = pytest.mark.skipif(not JIT, reason="kswapd is machine code")
WAIT_S = 20


def fill(buf: memoryview) -> memoryview:
    """Touch every page."""
    np.frombuffer(buf, np.uint8)[::512] = 1
    return buf


def until(true: Any, seconds: float = WAIT_S) -> bool:
    """Wait for something that happens in the background."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(true())


# -- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [False, "auto", True])
def test_no_verb_gets_past_the_limit(huge: Any) -> None:
    with ra.Arena("32MiB", limit="5MiB", huge_pages=huge, decay=None) as arena:
        cache = arena.kmem_cache("things", 3000)
        verbs = [
            lambda: arena.kmalloc(100),
            lambda: arena.kmalloc(5000),
            lambda: arena.kmalloc(700_000),
            lambda: arena.vmalloc(100_000),
            lambda: arena.alloc_pages(3).view,
            lambda: arena.alloc_pages_exact(50_000).view,
            lambda: arena.kzalloc(20_000),
            cache.alloc,
        ]
        for verb in verbs:
            held = [fill(buf) for buf in exhaust(verb)]
            assert arena.stats().committed <= 5 * MIB
            seen = arena.residency()
            assert seen.pages + seen.window <= 5 * MIB
            assert sum(len(buf) for buf in held) > 3 * MIB
            arena.validate()
            held.clear()
        mixed: list[memoryview] = []
        for verb in verbs:
            for _ in range(7):
                try:
                    mixed.append(fill(verb()))
                except ra.OutOfMemory:
                    mixed[:] = mixed[::2]
                assert arena.stats().committed <= 5 * MIB
        mixed.clear()


@pytest.mark.skipif(not JIT, reason="without machine code NumPy's arrays live elsewhere")
def test_arrays_obey_the_limit() -> None:
    with ra.Arena("64MiB", limit="8MiB") as arena:
        held = []
        with pytest.raises(MemoryError), arena.numpy():
            for _ in range(100):
                held.append(np.ones(100_000))
        assert 5 * MIB < sum(a.nbytes for a in held) <= 8 * MIB
        assert arena.stats().committed <= 8 * MIB
        held.clear()


@pytest.mark.parametrize("decay", [None, 0.02, 0])
def test_no_thread_gets_past_the_limit(decay: float | None) -> None:
    limit = 6 * MIB
    with ra.Arena("64MiB", limit=limit, decay=decay) as arena:
        over: list[int] = []
        stop = threading.Event()

        def work(seed: int) -> None:
            rng = random.Random(seed)
            held: list[memoryview] = []
            while not stop.is_set():
                try:
                    held.append(fill(arena.kmalloc(rng.choice((60, 4000, 30_000, 300_000)))))
                except ra.OutOfMemory:
                    held = held[len(held) // 2 :]
                if len(held) > 60 or rng.random() < 0.3:
                    held[rng.randrange(len(held) or 1) :] = []

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(60):
            time.sleep(0.01)
            seen = arena.residency()
            if seen.pages + seen.window > limit or arena.stats().committed > limit:
                over.append(seen.pages)
        stop.set()
        for thread in threads:
            thread.join()
        assert over == []
        assert arena.stats().peak_committed > limit // 2
        arena.validate()
        assert arena.residency().stray == 0


def test_a_limit_moves_down_to_what_is_in_use_and_up_again() -> None:
    with ra.Arena("16MiB", decay=None) as arena:
        held = [fill(arena.alloc_pages(0).view) for _ in range(2 * MIB // PAGE)]
        del held[::2]
        used = arena.stats().allocated
        with unchanged(arena), pytest.raises(ValueError, match="below what is in use"):
            arena.set_limit(MIB // 2)
        arena.set_limit(used)
        assert arena.stats().committed <= used
        assert arena.residency().stray == 0
        arena.set_limit(used + MIB)
        more = exhaust(lambda: arena.alloc_pages(0))
        assert len(more) == MIB // PAGE + (used - len(held) * PAGE) // PAGE
        arena.set_limit(None)
        assert arena.stats().limit == arena.size - arena.stats().metadata
        del held, more


def test_a_refusal_names_the_limit() -> None:
    with ra.Arena("16MiB", limit="1MiB") as arena:
        text = refuses(arena, ra.OutOfMemory, "raise limit= or set_limit", arena.alloc_pages, 9)
        assert "1 MiB of 1 MiB free" in text


@pytest.mark.parametrize("huge", [False, "auto", True])
def test_prefault_stops_at_the_limit(huge: Any) -> None:
    with ra.Arena("16MiB", limit="5MiB", prefault=True, huge_pages=huge, decay=None) as arena:
        assert arena.stats().committed <= 5 * MIB
        assert arena.stats().committed > 2 * MIB
        assert arena.residency().stray == 0
        assert arena.residency().untouched == 0


def test_bad_limits_and_times_are_refused() -> None:
    with ra.Arena(MIB) as arena:
        for wrong in (0, -1, 100, "many"):
            refuses(arena, ValueError, "limit", arena.set_limit, wrong)
        refuses(arena, TypeError, "limit", arena.set_limit, 1.5)
        for number in (-1, -0.001, float("nan"), float("inf"), 1e12):
            refuses(arena, ValueError, "decay", arena.set_decay, number)
            with pytest.raises(ValueError, match="decay"):
                ra.Arena(MIB, decay=number)
        for what in (True, "10", b"1", []):
            refuses(arena, TypeError, "decay", arena.set_decay, what)
        refuses(arena, ValueError, "keep", arena.trim, -1)
        refuses(arena, TypeError, "keep", arena.trim, 1.0)
    for verb in (arena.trim, arena.residency, lambda: arena.set_decay(1), lambda: arena.set_limit(MIB)):
        with pytest.raises(ra.ArenaClosed):
            verb()


# -- trim -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [False, "auto", True])
@pytest.mark.parametrize("size", [4096, 65536, MIB])
def test_half_is_freed_and_half_goes_back(size: int, huge: Any) -> None:
    with ra.Arena("64MiB", huge_pages=huge, decay=None) as arena:
        held = [fill(arena.kmalloc(size)) for _ in range(16 * MIB // size)]
        del held[::2]
        assert arena.trim() >= 7.5 * MIB
        seen = arena.residency()
        assert seen.pages + seen.window <= 8.5 * MIB
        assert seen.stray == 0
        del held[:-1]
        arena.trim()
        seen = arena.residency()
        assert seen.pages + seen.window <= size + 64 * 1024
        arena.validate()
        held.clear()


def test_what_trim_returns_is_what_went() -> None:
    with ra.Arena("64MiB", decay=None) as arena:
        held = [fill(arena.kmalloc(100_000)) for _ in range(100)]
        area = fill(arena.vmalloc(5 * MIB))
        held.clear()
        area.release()
        before, seen = arena.stats().committed, arena.residency()
        gone = arena.trim()
        assert gone == before - arena.stats().committed
        now = arena.residency()
        assert now.pages + now.window == 0
        assert seen.pages + seen.window == gone - seen.untouched
        assert arena.trim() == 0


@pytest.mark.parametrize("keep", [0, 64 * 1024, MIB, "3MiB", "1GiB"])
def test_trim_keeps_what_it_is_told_to(keep: Any) -> None:
    with ra.Arena("64MiB", decay=None) as arena:
        held = [fill(arena.kmalloc(5000)) for _ in range(2000)]
        held.clear()
        kept = {"3MiB": 3 * MIB, "1GiB": arena.stats().committed}.get(keep, keep)
        gone = arena.trim(keep=keep)
        assert kept - 64 * 1024 <= arena.stats().free_resident <= kept
        assert (gone == 0) == (keep == "1GiB")
        arena.validate()


# -- books ------------------------------------------------------------------------------------------------------------


def test_the_split_of_what_is_committed_adds_up() -> None:
    with ra.Arena("64MiB", lock=64 * 1024 if can_lock() else 0, decay=None) as arena:
        held = [arena.kmalloc(size) for size in (10, 500, 9000, 100_000, 5 * MIB) for _ in range(5)]
        del held[::3]
        s = arena.stats()
        locked_free = s.committed - s.allocated - s.free_resident
        assert locked_free == (64 * 1024 if can_lock() else 0)
        assert s.vmalloc_lazy > 0
        assert s.cached > 0
        assert s.slab + s.vmalloc + s.vmalloc_lazy <= s.allocated
        arena.trim()
        s = arena.stats()
        assert (s.free_resident, s.cached, s.empty_slabs, s.vmalloc_lazy) == (0, 0, 0, 0)
        held.clear()


def can_lock() -> bool:
    """Whether this process may lock a little memory."""
    try:
        ra.Arena(MIB, lock=64 * 1024).close()
    except ra.OutOfMemory:
        return False
    return True


@pytest.mark.parametrize("huge", [False, "auto", True])
def test_books_and_smaps_agree(huge: Any) -> None:
    with ra.Arena("64MiB", huge_pages=huge, decay=None) as arena:
        rng = random.Random(5)
        held: list[memoryview] = []
        for _ in range(400):
            held.append(fill(arena.kmalloc(rng.choice((50, 3000, 40_000, 700_000, 5_000_000)) + 1)))
            if arena.stats().allocated > 40 * MIB:
                rng.shuffle(held)
                del held[len(held) // 3 :]
        seen = arena.residency()
        assert seen.stray == 0
        # a page of metadata that was only ever read is the system's page of zeros: in memory, but nobody's
        assert seen.pages + seen.window <= rss_of(arena) <= seen.pages + seen.window + seen.metadata
        held.clear()


def rss_of(arena: ra.Arena) -> int:
    """Add up Rss of the mappings in the arena's range."""
    total, inside = 0, False
    end = arena.address + int(arena.words[layout.H_TOTAL_WORDS]) * 8
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = arena.address <= low and high <= end
            elif head == "Rss:" and inside:
                total += int(line.split()[1]) * 1024
    return total


# -- decay ------------------------------------------------------------------------------------------------------------


@needs_thread
def test_freed_memory_goes_back_while_the_program_does_nothing() -> None:
    with ra.Arena("64MiB", decay=0.3) as arena:
        held = [fill(arena.kmalloc(3000)) for _ in range(5000)]
        blocks = [fill(arena.kmalloc(500_000)) for _ in range(20)]
        area = fill(arena.vmalloc(6 * MIB))
        assert arena.stats().committed > 30 * MIB
        held.clear()
        blocks.clear()
        area.release()
        assert until(lambda: arena.stats().committed <= 256 * 1024)
        s = arena.stats()
        assert s.decayed > 25 * MIB
        assert (s.cached, s.vmalloc_lazy) == (0, 0)
        seen = arena.residency()
        assert seen.pages + seen.window <= 256 * 1024
        assert seen.stray == 0
        arena.validate()


@needs_thread
def test_decay_takes_its_time() -> None:
    with ra.Arena("64MiB", decay=1000) as arena:
        held = [fill(arena.kmalloc(500_000)) for _ in range(40)]
        held.clear()
        before = arena.stats().committed
        time.sleep(0.6)
        assert arena.stats().committed == before
        arena.set_decay(0.1)
        assert until(lambda: arena.stats().committed <= 256 * 1024)
        arena.set_decay(None)
        fill(arena.kmalloc(500_000)).release()
        before = arena.stats().committed
        time.sleep(0.4)
        assert arena.stats().committed == before > 0


def test_without_kswapd_who_frees_gives_back() -> None:
    with ra.Arena("64MiB", decay=0.05, kswapd=False) as arena:
        held = [fill(arena.kmalloc(500_000)) for _ in range(40)]
        held.clear()
        before = arena.stats().committed
        assert before > 15 * MIB
        deadline = time.monotonic() + WAIT_S
        while arena.stats().committed > 4 * MIB and time.monotonic() < deadline:
            time.sleep(0.005)
            fill(arena.alloc_pages(7).view)
            fill(arena.vmalloc(MIB))
        assert arena.stats().committed <= 4 * MIB  # what comes and goes is kept
        assert arena.stats().decayed > 10 * MIB
        arena.validate()
        assert arena.residency().stray == 0


def test_no_decay_means_at_once() -> None:
    with ra.Arena("64MiB", decay=0) as arena:
        area = fill(arena.vmalloc(8 * MIB))
        area.release()
        assert arena.stats().committed <= 64 * 1024
        block = fill(arena.alloc_pages(10).view)
        assert arena.stats().committed >= 4 * MIB
        block.release()
        assert arena.stats().committed <= 64 * 1024
        arena.set_decay(None)
        fill(arena.alloc_pages(10).view).release()
        assert arena.stats().committed >= 4 * MIB
        arena.set_decay(0)
        assert arena.stats().committed <= 64 * 1024


@needs_thread
@pytest.mark.parametrize("huge", [False, "auto", True])
def test_contents_survive_while_memory_goes_back_around_them(huge: Any) -> None:
    with ra.Arena("96MiB", decay=0.02, huge_pages=huge) as arena:
        rng = random.Random(9)
        held: dict[int, tuple[memoryview, int]] = {}
        deadline = time.monotonic() + 1.5
        turn = 0
        while time.monotonic() < deadline:
            turn += 1
            size = rng.choice((64, 1500, 9000, 120_000, 2_500_000, 5_000_000))
            if sum(len(buf) for buf, _ in held.values()) < 50 * MIB:
                buf = arena.kmalloc(size)
                buf[:] = bytes([turn & 255]) * size
                held[turn] = buf, turn & 255
            for key in rng.sample(sorted(held), min(len(held), 2)):
                buf, mark = held.pop(key)
                assert bytes(buf[:: max(1, len(buf) // 97)]).strip(bytes([mark])) == b""
        for buf, mark in held.values():
            assert bytes(buf).strip(bytes([mark])) == b""
        arena.validate()
        assert arena.residency().stray == 0
        held.clear()
        del buf
        assert until(lambda: arena.stats().committed <= 512 * 1024)


def test_environment_sets_the_default_arenas_decay() -> None:
    for value, wanted in (("none", "-1"), ("0", "0"), ("2.5", "2500000000")):
        code = """
import realalloc as ra
from realalloc.mm import layout
print(ra.default_arena().words[layout.DECAY + layout.Y_NS])
"""
        quiet_child(code, env={"REALALLOC_DECAY": value, "REALALLOC_SIZE": "1MiB"}, expect=wanted)
    assert os.environ.get("REALALLOC_DECAY") is None


def test_a_lowered_limit_on_address_space_costs_no_memory() -> None:
    """mremap(2) unmaps its target, and then refuses: no call may be made that a limit would refuse."""
    quiet_child(
        """
import resource
import numpy as np
import realalloc as ra
arena = ra.Arena('64MiB', decay=None)
arena.vfree(arena.vmalloc(3 << 20))
kept = arena.vmalloc(2 << 20); kept[:] = bytes([7]) * len(kept)
big = [arena.vmalloc(5 << 20) for _ in range(3)]
size = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size - (16 << 20), resource.RLIM_INFINITY))
refused = 0
for _ in range(5):
    try: arena.vmalloc(7 << 20)
    except ra.OutOfMemory: refused += 1
del big[:2]
arena.trim()
blocks = []
try:
    while True:
        blocks.append(arena.kmalloc(100_000, ra.GFP_KERNEL | ra.GFP_ZERO))
        assert not any(blocks[-1][::4096]); np.frombuffer(blocks[-1], np.uint8)[:] = 1
except ra.OutOfMemory: pass
assert refused == 5 and len(blocks) > 300
assert all(octet == 7 for octet in kept[::97])
arena.validate(); assert arena.residency().stray == 0
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
blocks.clear(); big.clear(); kept.release()
arena.vmalloc(7 << 20)[:] = bytes(7 << 20)
arena.validate(); arena.close()
print('done')
""",
        expect="done",
    )


@pytest.mark.parametrize("size", ["3MiB", "5MiB", "9500KiB"])
def test_an_arena_of_huge_pages_may_end_inside_one(size: str) -> None:
    with ra.Arena(size, huge_pages=True, decay=None) as arena:
        held = [fill(arena.alloc_pages(0).view) for _ in range(arena.stats().free // PAGE)]
        seen = arena.residency()
        assert seen.stray == 0
        assert arena._memory.resident_pages(0, arena.size) * PAGE <= seen.pages + seen.metadata
        held.clear()


@needs_thread
def test_a_closed_arena_gives_back_what_its_leases_leave() -> None:
    arena = ra.Arena("64MiB", decay=1000)
    words = arena.words
    held = [fill(arena.kmalloc(200_000)) for _ in range(100)]
    last = arena.kmalloc(100)
    with pytest.warns(ResourceWarning, match="live leases"):
        arena.close()
    held.clear()
    assert words[layout.H_COMMITTED_PAGES] * PAGE <= MIB
    last.release()
