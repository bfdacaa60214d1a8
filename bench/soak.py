"""Soak: the lab's stress of raw blocks alone. Threads are born, exchange blocks and end, while the process trims, validates
and forks all the time; once in an arena with room, once in one that is too small, so that memory runs out.

What is checked is what ``realalloc stress`` checks: every word of every block, neighbours, walkers, forked children, that
nothing is left at the end. An operation is a block that was filled, and read in full before it was freed.
"""

from __future__ import annotations

from realalloc.lab.stress import Options, run

OPERATIONS = 10**8
SMOKE_OPERATIONS = 10**6
SIZES = "log:8..70000"
ABUSE = "trim=100,validate=100,fork=100,rebirth=40"
ARENAS = (64 << 20, 5 << 20)  # with room, and too small


def soak(seconds: float | None, threads: int, *, smoke: bool) -> bool:
    """Run for some seconds, or until there were enough operations, in each arena; report, and tell whether all was right."""
    right = True
    enough = SMOKE_OPERATIONS if smoke else OPERATIONS
    for arena in ARENAS:
        options = Options(threads=threads, sizes=SIZES, mix="kmalloc", abuse=ABUSE, faults=0.0, arena=arena, seed=21)
        share = len(ARENAS)
        timed = options.but(operations=enough // share) if seconds is None else options.but(seconds=seconds / share)
        verdict = run(timed)
        (found,) = verdict.processes
        full, births = sum(found.full.values()), found.abuses.get("rebirth", 0) + threads
        print(
            f"soak: arena of {arena >> 20} MiB: {verdict.verified / 1e6:.1f} million operations, {full} times no memory, "
            f"{found.abuses.get('fork', 0)} forks, {births} threads, {found.seconds:.1f} s, "
            f"{found.seconds / max(verdict.verified, 1) * 1e9:.0f} ns each, {'right' if verdict.ok else 'WRONG'}",
            flush=True,
        )
        for _, check in verdict.failed():
            print(f"soak: {check.name}: {check.detail}", flush=True)
        right = right and verdict.ok
    return right
