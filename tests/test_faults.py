"""The kernel says no: madvise, mremap and mlock fail from some moment on, each with each of its errors, in a child.

A seccomp filter answers for the system call, so that every caller in the process is refused, as a hostile sandbox would.
Whatever fails: an error of the vocabulary or a silent fallback, contents whole, zeroes where asked for, books exact.
"""

from __future__ import annotations

import errno

import pytest
from support import JIT, run_child

import realalloc as ra
from realalloc.mm import layout

# A filter of seccomp(2): load the call's number, answer with an error if it is the one, with the advice if one is given.
REFUSE = """
import ctypes, os, struct, sys
def refuse(number, error, advice=None):
    statement = lambda code, k, yes=0, no=0: struct.pack('HBBI', code, yes, no, k)
    program = [statement(0x20, 0), statement(0x15, number, 0, 1 if advice is None else 3)]
    if advice is not None:
        program += [statement(0x20, 32), statement(0x15, advice, 0, 1)]  # the lower half of the third argument
    program += [statement(0x06, 0x00050000 | error), statement(0x06, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b''.join(program))
    filters = struct.pack('HP', len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filters, 0, 0):  # no new privileges, then the filter
        print('no seccomp'); sys.exit(0)
"""

WORK = """
import random, realalloc as ra
arena = ra.Arena('96MiB', decay=DECAY, huge_pages=HUGE, min_free='256KiB', lock='1MiB')
rng = random.Random(5)
held = {}
def take(nbytes, mark):
    how = rng.choice((arena.kmalloc, arena.kzalloc, arena.vmalloc, arena.vzalloc))
    try: buf = how(nbytes)
    except ra.OutOfMemory: return None
    if how in (arena.kzalloc, arena.vzalloc): assert not any(buf[:: max(1, nbytes // 501)]), how
    buf[:] = bytes([mark]) * nbytes
    return buf
def turn(number):
    served = 0
    for k in range(number):
        mark = rng.randrange(1, 256)
        buf = take(rng.choice((100, 3000, 20_000, 200_000, 1_100_000, 2_500_000, 6_000_000)), mark)
        if buf is not None:
            held[len(held), k] = buf, mark; served += 1
        while sum(len(one) for one, _ in held.values()) > 40 << 20 or (held and rng.random() < 0.3):
            one, mark = held.pop(rng.choice(list(held)))
            assert bytes(one[:: max(1, len(one) // 997)]).strip(bytes([mark])) == b''
            if rng.random() < 0.2 and len(one) < 1 << 20:
                try: one = arena.krealloc(one, 2 * len(one))
                except ra.OutOfMemory: pass
                assert one[0] == one[len(one) // 2 - 1] == mark
            one.release()
        if k % 40 == 0:
            arena.trim(); arena.validate()
    return served
turn(150)
"""

AFTER = """
assert turn(400) > 100
try: arena.set_limit('48MiB')
except (ra.OutOfMemory, ValueError): pass
turn(100)
for buf, mark in held.values():
    assert bytes(buf).strip(bytes([mark])) == b''
    buf.release()
del buf
held.clear()
arena.trim(); arena.validate()
stats = arena.stats()
assert stats.live_objects == stats.leases == 0
assert arena.residency().stray == 0
assert len(arena.kmalloc(4 << 20)) == 4 << 20  # contiguous: nothing is asked for it
try: assert len(arena.vmalloc(5_000_000)) == 5_000_000
except ra.OutOfMemory: assert STRICT == 0  # no mremap, no scattered pages side by side
try: small = ra.Arena('4MiB', lock='64KiB'); small.kmalloc(100, ra.GFP_KERNEL | ra.GFP_DMA); small.close()
except ra.OutOfMemory as error: assert 'lock' in str(error) or 'cannot reserve' in str(error)
arena.close()
print('whole')
"""

MADVISE, MREMAP, MLOCK = 28, 25, 149  # system calls of x86-64
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14


HUGE = ("'auto'", "True", "False")
CASES = [
    *((MADVISE, None, errno.ENOMEM, huge) for huge in HUGE),
    *((MADVISE, MADV_DONTNEED, error, huge) for error in (errno.EINVAL, errno.EAGAIN) for huge in HUGE),
    *((MADVISE, MADV_HUGEPAGE, errno.EINVAL, huge) for huge in HUGE[:2]),
    *((MREMAP, None, error, HUGE[0]) for error in (errno.ENOMEM, errno.EAGAIN, errno.EINVAL)),
    *((MLOCK, None, error, HUGE[0]) for error in (errno.ENOMEM, errno.EAGAIN)),
]


@pytest.mark.parametrize(("call", "advice", "error", "huge"), CASES)
def test_a_refused_system_call_costs_memory_or_speed_and_nothing_else(
    call: int, advice: int | None, error: int, huge: str
) -> None:
    decay = "0.05" if JIT else "None"
    work = WORK.replace("DECAY", decay).replace("HUGE", huge)
    after = AFTER.replace("STRICT", str(int(call == MLOCK or advice is not None)))
    child = run_child(f"{REFUSE}\n{work}\nrefuse({call}, {error}, {advice})\n{after}")
    assert child.returncode == 0, child.stderr
    if "no seccomp" in child.stdout:
        pytest.skip("this machine has no seccomp filters")
    assert child.stdout.endswith("whole\n"), child.stderr


SCATTERED = """
import realalloc as ra
arena = ra.Arena('64MiB', max_order=4, decay=None)
budget = arena.budget('b')
before = arena.stats()
def refused(what, *args, **options):
    try: what(*args, **options)
    except ra.OutOfMemory as error: return str(error)
    raise AssertionError('was served')
scattered = [arena.alloc_pages(0) for _ in range(4000)]
for number in range(0, 4000, 2): scattered[number] = None  # no two free pages are adjacent there
while True:
    try: scattered.append(arena.alloc_pages(4))
    except ra.OutOfMemory: break
refuse(25, ERROR)
for verb, size in ((arena.vmalloc, 300_000), (arena.kmalloc, 300_000), (arena.kvmalloc, 300_000), (arena.kzalloc, 80_000)):
    text = refused(verb, size)
    pages = -(-size // 4096) * 4
    assert f'Normal but the system refused to map {pages} KiB of scattered pages side by side (mremap), ' in text, text
    assert text.endswith(
        'raise vm.max_map_count or ulimit -v, let a sandbox allow mremap, or ask for 64 KiB at most, which are in one piece'
    ), text
text = refused(arena.mempool, 2, size=100_000)
assert 'system refused to map 100 KiB' in text, text
with budget: assert 'system refused to map' in refused(arena.vmalloc, 300_000)
assert budget.used == 0
old = arena.kmalloc(5000); old[:] = bytes(range(250)) * 20
assert 'system refused to map' in refused(arena.krealloc, old, 300_000) and bytes(old) == bytes(range(250)) * 20
blocks = arena.alloc_pages, arena.kmalloc, arena.vmalloc, arena.alloc_pages_exact
for verb, argument in zip(blocks, (4, 65536, 1 << 30, 70_000)):
    text = refused(verb, argument)  # there is no such block, or not so much at all
    assert 'mremap' not in text and "raise the arena's size" in text, text
old.release()
scattered.clear()
arena.trim(); arena.validate()
after = arena.stats()
assert (after.allocated, after.leases, after.live_areas) == (before.allocated, 0, 0)
print('said')
"""


def test_an_area_that_the_system_refuses_to_map_says_so_and_nothing_else_does() -> None:
    for error in (errno.ENOMEM, errno.EPERM):
        child = run_child(REFUSE + SCATTERED.replace("ERROR", str(error)))
        assert child.returncode == 0, child.stderr
        if "no seccomp" in child.stdout:
            pytest.skip("this machine has no seccomp filters")
        assert child.stdout == "said\n", child.stderr


def test_after_a_refusal_a_request_that_is_too_large_is_the_arenas_fault_again() -> None:
    with ra.Arena("16MiB", max_order=4) as arena:
        arena.words[layout.H_VM_REFUSED_PAGES] = 77
        with pytest.raises(ra.OutOfMemory, match="free some, or raise the arena's size$"):
            arena.vmalloc(1 << 30)
        assert arena.words[layout.H_VM_REFUSED_PAGES] == 0
