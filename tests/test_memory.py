"""Real memory: what reserving costs, what touching costs, what purging gives back, what faults."""

from __future__ import annotations

import mmap
import resource
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from kernels import CHILD
from support import MIB, PAGE, RawArena, run_child

from realalloc.memory import Memory, futex_wait

NEAR = 64  # pages that an interpreter may need for itself meanwhile


def used_pages() -> int:
    """Private resident pages, counted exactly (psutil's rss may lag by some dozen pages a processor)."""
    return psutil.Process().memory_full_info().uss // PAGE


def rss_pages() -> int:
    return psutil.Process().memory_info().rss // PAGE


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def make(pages: int, align: int = PAGE) -> Memory:
    memory = Memory((pages + 16) * PAGE, align, pages * PAGE)
    memory.advise_huge(0, pages * PAGE, wanted=False)  # one page a fault, whatever the system prefers
    return memory


def touch(memory: Memory, first: int, pages: int) -> None:
    memory.words[first * 512 : (first + pages) * 512 : 512] = 1


def test_reserving_a_tebibyte_costs_next_to_nothing() -> None:
    code = CHILD + (
        "import gc, psutil\n"
        "from support import RawArena\n"
        "from realalloc.mm.page_alloc import alloc_pages, free_pages\n"
        "from realalloc.memory import Memory\n"
        "small = RawArena(1 << 20); free_pages(small.words, alloc_pages(small.words, 0, 0), 0)\n"
        "used = lambda: psutil.Process().memory_info().rss\n"
        "used(); gc.collect(); before = used()\n"
        "plain = Memory(1 << 40, 4 << 20, 1 << 39)\n"
        "print(used() - before)\n"
        "arena = RawArena(1 << 40, 10)\n"
        "assert alloc_pages(arena.words, 10, 0) > 0\n"
        "print(used() - before)\n"
        "assert arena.plan.end_pfn == 1 << 28\n"
    )
    done = run_child(code, fresh=True)
    assert done.returncode == 0, done.stderr
    plain, arena = map(int, done.stdout.split())
    assert plain < MIB
    assert arena < 2 * MIB


@pytest.mark.parametrize("pages", [500, 3000])
def test_touching_pages_costs_that_many_and_purging_gives_them_back(pages: int) -> None:
    memory = make(2 * pages)
    before, rss_before = used_pages(), rss_pages()
    touch(memory, 10, pages)
    assert abs(used_pages() - before - pages) < NEAR
    assert abs(rss_pages() - rss_before - pages) < 4 * NEAR
    assert memory.resident_pages(0, 2 * pages * PAGE) == pages
    memory.purge(10 * PAGE, pages * PAGE)
    assert memory.resident_pages(0, 2 * pages * PAGE) == 0
    assert abs(used_pages() - before) < NEAR
    assert abs(rss_pages() - rss_before) < 4 * NEAR
    assert not memory.words[10 * 512 : (10 + pages) * 512].any()


def test_purging_is_exact_and_leaves_neighbours_alone() -> None:
    memory = make(64)
    memory.words[: 64 * 512] = 5
    memory.purge(7 * PAGE, 3 * PAGE)
    pages = memory.words[: 64 * 512].reshape(64, 512)
    assert [k for k in range(64) if (pages[k] == 0).all()] == [7, 8, 9]
    assert [k for k in range(64) if (pages[k] == 5).all()] == [*range(7), *range(10, 64)]


def test_the_mapping_goes_with_its_last_reference() -> None:
    before = used_pages()
    memory = make(2000)
    touch(memory, 0, 2000)
    assert used_pages() - before > 1900
    view = memory.view(5 * PAGE, 8)
    del memory
    assert used_pages() - before > 1900  # a view still shows it
    assert bytes(view) == (1).to_bytes(8, "little")
    del view
    assert used_pages() - before < NEAR


@pytest.mark.parametrize("align", [PAGE, 64 << 10, 2 << 20, 4 << 20, 1 << 30])
def test_the_range_is_aligned_as_asked(align: int) -> None:
    for pages in (1, 5, 600):
        memory = make(pages, align)
        assert memory.address % align == 0
        assert memory.words.nbytes == (pages + 16) * PAGE
        assert memory.words.dtype == np.int64
        assert memory.words.ctypes.data == memory.address
        touch(memory, 0, pages)
        assert memory.resident_pages(0, pages * PAGE) == pages


def test_two_ranges_never_overlap() -> None:
    many = [make(100, 2 << 20) for _ in range(8)]
    ranges = sorted((memory.address, memory.words.nbytes) for memory in many)
    assert all(a + size <= b for (a, size), (b, _) in zip(ranges, ranges[1:], strict=False))


def test_the_range_is_private_and_anonymous() -> None:
    memory = make(64)
    touch(memory, 0, 64)
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= memory.address < high:
            assert line.split()[1] == "rw-p"
            assert line.split()[4] == "0"  # no inode
            break
    else:
        pytest.fail("the range is not mapped")


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
@pytest.mark.parametrize("access", ["read", "write"])
def test_the_window_faults_when_touched(where: str, access: str) -> None:
    word = {"begin": "8 * 512", "middle": "12 * 512 + 77", "end": "24 * 512 - 1"}[where]
    line = f"memory.words[{word}] = 1" if access == "write" else f"print(memory.words[{word}])"
    code = (
        "from realalloc.memory import Memory\n"
        "memory = Memory(24 * 4096, 4096, 8 * 4096)\n"
        "memory.words[8 * 512 - 1] = 1\n"
        "print('alive', flush=True)\n"
        f"{line}\n"
    )
    done = run_child(code)
    assert (done.returncode, done.stdout) == (-11, "alive\n"), done.stderr


def test_committed_pages_do_not_fault_any_more() -> None:
    memory = make(1000)
    touch(memory, 0, 8)
    memory.commit(100 * PAGE, 800 * PAGE)
    assert memory.resident_pages(100 * PAGE, 800 * PAGE) == 800
    assert memory.resident_pages(0, 1000 * PAGE) == 808
    assert not memory.words[100 * 512 : 900 * 512].any()
    memory.purge(100 * PAGE, 800 * PAGE)
    memory.commit(100 * PAGE, 800 * PAGE)
    before = faults()
    touch(memory, 100, 800)
    committed = faults() - before
    before = faults()
    touch(memory, 10, 80)
    fresh = faults() - before
    assert committed < 40
    assert fresh >= 80


def test_committing_keeps_what_is_there_even_without_the_system_call(monkeypatch) -> None:
    memory = make(64)
    memory.words[5 * 512 + 3] = 77
    monkeypatch.setattr("realalloc.memory.MADV_POPULATE_WRITE", 9999)  # an older kernel: EINVAL
    memory.commit(2 * PAGE, 20 * PAGE)
    assert memory.resident_pages(0, 64 * PAGE) == 20
    assert memory.words[5 * 512 + 3] == 77
    assert memory.words[2 * 512 : 22 * 512].sum() == 77


def test_pages_outside_the_range_are_refused() -> None:
    memory = make(64)
    for act in (memory.commit, memory.purge):
        with pytest.raises(ValueError):
            act(1 << 40, PAGE)
    with pytest.raises(OSError):
        memory.resident_pages(1 << 40, PAGE)
    assert memory.resident_pages(0, 64 * PAGE) == 0


def test_locked_pages_are_resident_and_counted() -> None:
    memory = make(64)

    def locked() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmLck:")[1].split()[0]) // (PAGE // 1024)

    before = locked()
    memory.lock(8 * PAGE, 16 * PAGE)
    assert locked() - before == 16
    assert memory.resident_pages(8 * PAGE, 16 * PAGE) == 16
    count = faults()
    touch(memory, 8, 16)
    assert faults() - count < 8
    del memory
    assert locked() == before


def test_a_lock_that_is_not_allowed_is_an_oserror() -> None:
    code = (
        "import resource\n"
        "from realalloc.memory import Memory, _libc\n"
        "memory = Memory(1 << 20, 4096, 1 << 19)\n"
        "try:\n"
        "    memory.lock(1 << 40, 4096)\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, 'mlock' in str(error))\n"
    )
    done = run_child(code)
    assert (done.returncode, done.stdout) == (0, "OSError True\n"), done.stderr


def test_more_than_the_address_space_is_an_oserror() -> None:
    with pytest.raises((OSError, OverflowError, ValueError)) as caught:
        Memory(1 << 62, PAGE, 1 << 61)
    assert "realalloc" not in str(caught.value)


def test_a_view_shows_the_very_bytes() -> None:
    memory = make(8, 2 << 20)
    memory.words[513] = 0x0102030405060708
    view = memory.view(513 * 8, 8)
    assert (view.format, view.nbytes, view.readonly) == ("B", 8, False)
    assert bytes(view) == bytes(range(8, 0, -1))
    view[0] = 0xFF
    assert memory.words[513] == 0x01020304050607FF


def test_huge_pages_are_asked_for_or_not_and_nobody_minds() -> None:
    memory = Memory(8 << 20, 2 << 20, 6 << 20)
    memory.advise_huge(0, 4 << 20, wanted=True)
    memory.words[0] = 1
    memory.advise_huge(0, 4 << 20, wanted=False)
    assert memory.words[0] == 1


def test_residence_is_counted_page_by_page() -> None:
    memory = make(300)
    for page in (0, 3, 299):
        touch(memory, page, 1)
    assert memory.resident_pages(0, 300 * PAGE) == 3
    assert memory.resident_pages(PAGE, 2 * PAGE) == 0
    assert memory.resident_pages(3 * PAGE, 1) == 1
    assert mmap.PAGESIZE == PAGE


def test_an_arena_gives_its_memory_back_when_it_goes() -> None:
    RawArena(MIB, 4)  # its kernels are loaded
    before = used_pages()
    raw = RawArena(32 * MIB, 10)
    raw.memory.commit(raw.plan.meta_pages * PAGE, 3000 * PAGE)
    assert used_pages() - before > 2900
    del raw
    assert used_pages() - before < NEAR


def test_a_sleeper_returns_when_the_word_moved_or_the_time_is_over() -> None:
    words = np.zeros(1, np.int64)
    address = int(words.ctypes.data)
    futex_wait(address, 5, 1000.0)  # another value: no sleep
    futex_wait(address, 0, 0.001)
    words[0] = (7 << 32) + 5  # the word is the lower half, and so is what is expected
    futex_wait(address, (9 << 32) + 4, 1000.0)
    sleeper = threading.Thread(target=futex_wait, args=(address, 5, 0.05))
    sleeper.start()
    sleeper.join()
    assert not sleeper.is_alive()
