"""``realalloc warmup``: compile every kernel now, so that no program pays for it later.

Contract: prints how many kernels were compiled and how many came from the cache, where the cache is, and how long it
took. Harmless to repeat, and to interrupt: what is compiled stays. On a terminal, shows what is being compiled.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass

from realalloc.cli.output import print_json


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a warm-up did."""

    jit: bool
    kernels: int
    compiled: int
    loaded: int
    seconds: float
    cache_dir: str


def warm() -> Warmth:
    """Compile or load every kernel, and the callbacks that hand out memoryviews."""
    begun = time.perf_counter()
    import realalloc.arena
    import realalloc.jit  # noqa: F401  # both make the list of kernels complete
    from realalloc.lease import cfunctions, datamem, factory
    from realalloc.mm import jit, jitcache
    from realalloc.progress import compile_progress

    if not jit.JIT:
        return Warmth(jit=False, kernels=0, compiled=0, loaded=0, seconds=time.perf_counter() - begun, cache_dir="")
    with compile_progress():
        factory()
        cfunctions.compiled()
        datamem.compiled()
        compiled = jit.warm_up()
    kernels = len(jit._ENTRIES)
    seconds = time.perf_counter() - begun
    return Warmth(
        jit=True,
        kernels=kernels,
        compiled=compiled,
        loaded=kernels - compiled,
        seconds=seconds,
        cache_dir=str(jitcache.CACHE_DIR),
    )


class WarmupCommand:
    """Compile every kernel ahead of time."""

    name = "warmup"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Warm up and say what was done."""
        done = warm()
        if args.json:
            print_json(asdict(done))
        elif not done.jit:
            print("nothing to compile: NUMBA_DISABLE_JIT is set, kernels run as plain Python")
        else:
            print(f"{done.kernels} kernels: {done.compiled} compiled, {done.loaded} loaded from the cache, ", end="")
            print(f"in {done.seconds:.1f} s")
            print(f"cache: {done.cache_dir}")
        return 0
