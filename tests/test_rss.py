"""What the system says about this process."""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest

import realalloc
from realalloc.memory import Memory
from realalloc.rss import ProcessSampler, RssSampler, Seen, Usage, rss, trim_heap

MIB = 1 << 20
PAGE = resource.getpagesize()


def touch(nbytes: int) -> Memory:
    memory = Memory(nbytes + 2 * MIB, 2 * MIB, nbytes)
    memory.advise_huge(0, nbytes, wanted=False)
    memory.words[: nbytes // 8 : PAGE // 8] = 1
    return memory


def test_rss_is_what_the_kernel_says() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(rss() - pages * PAGE) < 4 * MIB


def test_the_sampler_sees_a_peak_that_is_over() -> None:
    with RssSampler(0.005) as sampler:
        held = touch(64 * MIB)
        time.sleep(0.2)
        held.purge(0, 64 * MIB)
        del held
    assert sampler.growth >= 60 * MIB
    assert sampler.peak - sampler.end >= 60 * MIB
    assert sampler.samples > 3


def test_the_peak_is_never_below_either_end() -> None:
    with RssSampler(1000) as sampler:
        held = touch(16 * MIB)
    assert sampler.samples == 2
    assert sampler.peak == max(sampler.start, sampler.end) >= sampler.start + 15 * MIB
    del held


def test_a_sampler_can_be_used_again_but_not_twice_at_once() -> None:
    sampler = RssSampler()
    for _ in range(2):
        with sampler, pytest.raises(RuntimeError, match="running"):
            sampler.__enter__()
        assert sampler.samples >= 2


def test_the_sampler_ends_with_an_error_too() -> None:
    import threading

    with pytest.raises(ZeroDivisionError), RssSampler():
        raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name == "realalloc-rss"]


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_that_cannot_be(interval: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RssSampler(interval)


def test_usage_counts_every_first_touch() -> None:
    before = Usage.now()
    held = touch(8 * MIB)
    used = Usage.now().since(before)
    assert used.minor_faults >= 8 * MIB // PAGE
    assert used.user_seconds >= 0 and used.system_seconds >= 0 and used.major_faults >= 0
    del held


def test_a_forked_child_looks_at_itself() -> None:
    rss()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = touch(64 * MIB)
        os.write(writer, str(rss()).encode())
        os._exit(0 if held else 1)
    os.close(writer)
    with os.fdopen(reader) as file:
        its = int(file.read())
    os.waitpid(pid, 0)
    assert its >= 64 * MIB and its != rss()


def test_trim_heap_gives_free_pages_back() -> None:
    blocks = [np.ones(1000) for _ in range(4000)]
    keep = blocks[-1]
    del blocks
    before = rss()
    if not trim_heap():
        pytest.skip("not glibc")
    assert rss() <= before + MIB
    assert keep[0] == 1


def test_psutil_is_imported_in_one_file() -> None:
    package = Path(realalloc.__file__).parent
    statement = re.compile(r"^\s*(import|from) psutil\b", re.MULTILINE)
    using = [path.name for path in package.rglob("*.py") if statement.search(path.read_text())]
    assert using == ["rss.py"]


def test_a_look_at_the_process() -> None:
    before = Seen.now()
    held, file = touch(8 * MIB), Path(os.devnull).open()
    after = Seen.now()
    assert after.rss >= after.uss > 0 and after.pss >= after.uss
    assert after.minor_faults >= before.minor_faults + 8 * MIB // PAGE
    assert after.uss >= before.uss + 7 * MIB
    assert after.fds == before.fds + 1 and after.threads >= 1
    file.close()
    del held


def test_rows_come_at_a_steady_rate_with_the_callers_numbers() -> None:
    numbers = iter(range(1000))
    with ProcessSampler(0.02, lambda: {"mine": next(numbers)}) as sampler:
        time.sleep(0.5)
    times = [at for at, _ in sampler.rows]
    assert times == sorted(times) and 3 <= len(times) <= 30
    assert [row["mine"] for _, row in sampler.rows] == list(range(len(times)))
    assert sampler.rows[0][1].keys() >= {"rss", "uss", "pss", "minor_faults", "major_faults", "threads", "fds"}
    assert sampler.samples >= len(times) and sampler.peak >= max(row["rss"] for _, row in sampler.rows) - 4 * MIB


def test_rows_are_bounded() -> None:
    with ProcessSampler(0.001, most_rows=8) as sampler:
        time.sleep(0.5)
    assert 2 <= len(sampler.rows) <= 9
    assert sampler.rows[-1][0] > 0.2


def test_a_process_sampler_begins_anew() -> None:
    sampler = ProcessSampler(1000)
    for _ in range(2):
        with sampler:
            pass
        assert len(sampler.rows) == 2 and sampler.rows[0][0] < 0.5


def test_an_interval_of_rows_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ProcessSampler(0)
