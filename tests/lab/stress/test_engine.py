"""One process: it passes when nothing is wrong, and each kind of damage fails exactly the check that is for it."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from checks import some
from stressed import failing, flip, leak, once

from realalloc.lab.stress import Options, ProcessResult, engine
from realalloc.lab.stress.engine import Engine
from realalloc.lab.stress.worker import Worker
from realalloc.mm.jit import JIT

SHORT = Options(seconds=0.6, threads=2, sizes="log:8..4KiB", arena=16 << 20, hold="64", interval=0.05)
CALM = SHORT.but(abuse="trim=5,validate=5")


def stress(options: Options, on_round: Callable[[Worker], None] | None = None) -> ProcessResult:
    made = Engine(options, on_round=on_round)
    try:
        made.prepare()
        made.run()
        return made.finish()
    finally:
        made.close()


def test_a_run_with_every_abuse_passes() -> None:
    before = signal.getsignal(signal.SIGALRM), sys.getswitchinterval(), sys.unraisablehook
    rates = "trim=5,validate=5,resize=20,shrink=5,squeeze=3,fork=3,gc=3,signal=100,rebirth=10"
    found = stress(SHORT.but(abuse=rates, seconds=some(15, 8) / 10))
    assert failing(found) == []
    assert found.taken == found.freed and found.verified > some(1000, 20)
    assert all(found.freed[kind] > 0 for kind in ("kmalloc", "cache", "pages", "lease"))
    assert found.abuses["fork"] > 0 and found.abuses["squeeze"] > 0
    assert found.abuses["signal"] > 0 and (found.pelted > 0) is JIT
    assert len(found.by_thread) == 2 and found.read_bytes > 0
    assert found.series["memory"].columns["rss"][0] > 0
    assert (signal.getsignal(signal.SIGALRM), sys.getswitchinterval(), sys.unraisablehook) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("realalloc-stress")]


def test_a_limit_lets_memory_run_out() -> None:
    options = CALM.but(limit=1 << 20, sizes="log:64..64KiB", mix="kmalloc=8,vmalloc=1,pages=4,lease=1", hold="200")
    found = stress(options)
    assert failing(found) == [] and sum(found.full.values()) > 0


def test_so_many_operations_and_no_more_time_than_they_need() -> None:
    wanted = some(4000, 40)
    found = stress(CALM.but(operations=wanted, seconds=0.001))
    assert failing(found) == [] and found.verified >= wanted


def test_a_word_written_into_a_live_block_fails_contents() -> None:
    found = stress(CALM, once(flip))
    assert failing(found) == ["contents"]
    assert found.first_wrong_seconds is not None
    assert " is 0x" in found.wrong[0] and "at offset 0x" in found.wrong[0]


def test_a_byte_written_into_a_lease_fails_contents() -> None:
    def act(worker: Worker) -> bool:
        for held in worker.leases.held:
            if held is not None and isinstance(held.block, memoryview):
                held.block[0] ^= 1
                return True
        return False

    assert failing(stress(CALM.but(mix="kmalloc=1,lease=1"), once(act))) == ["contents"]


def test_a_leaked_block_fails_accounting() -> None:
    found = stress(CALM, once(leak))
    assert failing(found) == ["accounting"]
    assert "1 objects left when everything was freed" in found.books


def test_a_leaked_lease_fails_accounting() -> None:
    lost: list[Any] = []
    with pytest.warns(ResourceWarning, match="closed with 1 live leases"):
        found = stress(CALM, once(lambda worker: lost.append(worker.site.arena.kmalloc(5000)) is None))
    assert failing(found) == ["accounting"] and "1 leases left when everything was freed" in found.books
    lost.clear()


def test_a_thread_that_raises_fails_accounting_and_is_quoted() -> None:
    def act(worker: Worker) -> bool:
        if any(worker.leases.held):
            raise RuntimeError("sabotage")
        return False

    with pytest.warns(ResourceWarning, match="live leases"):
        found = stress(CALM.but(mix="kmalloc=1,lease=1"), once(act))
    assert "accounting" in failing(found)
    assert any("sabotage" in text for text in found.books)


def test_a_limit_of_the_resident_set_that_is_too_low_ends_the_run() -> None:
    found = stress(CALM.but(rss_limit=1 << 20, seconds=60.0))
    assert failing(found) == ["rss bound"] and found.seconds < 30


def test_a_thread_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "END_SECONDS", 0.3)
    go = threading.Event()
    made = Engine(CALM, on_round=lambda worker: worker.number or go.wait(60))
    try:
        made.prepare()
        made.run()
        found = made.finish()
        assert "children" in failing(found)
        assert found.hung == ["thread 0 did not end within 0.3 s"]
    finally:
        made.close()  # leaves the arena to the thread that hangs
        go.set()
        assert made.workers[0].ended.wait(60)
        gc.collect()
        made.site.finish()
        made.site.close()


def test_stop_ends_the_running_part_only() -> None:
    made = Engine(CALM.but(seconds=60.0))
    try:
        made.prepare()
        timer = threading.Timer(0.3, made.stop)
        timer.start()
        made.run()
        timer.join()
        found = made.finish()
        assert failing(found) == [] and 0 < found.seconds < 30 and found.verified > 0
    finally:
        made.close()


def test_a_tick_says_how_it_stands() -> None:
    ticks = []
    made = Engine(CALM)
    try:
        made.prepare()
        made.run(ticks.append)
        assert made.finish().ok
    finally:
        made.close()
    last = ticks[-1]
    assert last.verified > 0 and last.rss > 0 and last.wrong == 0 and last.total_seconds == CALM.seconds
    assert 0 <= last.fragmentation <= 1 and last.committed >= 0
