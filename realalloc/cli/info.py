"""``realalloc info``: the machine, the versions, the cache of compiled kernels, the limits; with ``--arena``, a fresh arena.

Contract: reads, and changes nothing; without ``--arena`` no kernel is compiled. Each fact that a system does not tell is
``unknown``, never an error. ``--arena SIZE`` makes an arena and prints its views in the kernel's columns.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
from pathlib import Path

from realalloc.cli.output import print_json
from realalloc.cli.problems import refusing, size_of
from realalloc.facts import UNKNOWN, text_of, thp_mode, version_of
from realalloc.sizes import format_bytes
from realalloc.text import print_table

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MAP_COUNT = Path("/proc/sys/vm/max_map_count")
OVERCOMMIT_MODES = {"0": "0 (heuristic)", "1": "1 (always)", "2": "2 (never beyond the commit limit)"}
VIEWS = ("meminfo", "buddyinfo", "pagetypeinfo", "slabinfo", "vmallocinfo")

Facts = dict[str, str]


def _limit(which: int) -> str:
    soft, hard = (
        "unlimited" if value == resource.RLIM_INFINITY else format_bytes(value) for value in resource.getrlimit(which)
    )
    return soft if soft == hard else f"{soft} (hard {hard})"


def machine_facts() -> Facts:
    """Return what is known without importing numba."""
    from realalloc import __version__

    gil = "with the GIL" if getattr(sys, "_is_gil_enabled", lambda: True)() else "free-threaded: not supported"
    implementation = f"{platform.python_implementation()} {platform.python_version()}, {gil}"
    return {
        "realalloc": __version__,
        "platform": platform.platform(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs usable",
        "python": implementation,
        "executable": sys.executable,
        **{package: version_of(package) for package in ("numba", "llvmlite", "numpy", "psutil", "rich")},
        "page size": format_bytes(resource.getpagesize()),
        "transparent huge pages": thp_mode(),
        "RLIMIT_MEMLOCK": _limit(resource.RLIMIT_MEMLOCK),
        "RLIMIT_AS": _limit(resource.RLIMIT_AS),
        "vm.overcommit_memory": OVERCOMMIT_MODES.get(text_of(OVERCOMMIT), UNKNOWN),
        "vm.max_map_count": text_of(MAP_COUNT),
    }


def cache_facts() -> Facts:
    """Return what only the package itself knows: where compiled kernels are, and its limits."""
    from realalloc import arena
    from realalloc.mm import jit, jitcache, layout

    if jit.JIT:
        there = jitcache.cached_names()
        warm = sum(f"{made.room}.{made.__name__}" in there for made in jit._ENTRIES)
        state = f"{warm} of {len(jit._ENTRIES)} kernels"
        state += " (warm)" if warm == len(jit._ENTRIES) else " (cold: run 'realalloc warmup')"
        where = str(jitcache.CACHE_DIR)
    else:
        state, where = "NUMBA_DISABLE_JIT is set: kernels run as plain Python", "none"
    return {
        "kernel cache": where,
        "cached": state,
        "arena size": f"{format_bytes(arena.MIN_BYTES)} to {format_bytes(arena.MAX_BYTES)}",
        "largest block": f"{format_bytes(layout.PAGE_BYTES << 10)}, with max_order={layout.MAX_MAX_ORDER} "
        f"{format_bytes(layout.PAGE_BYTES << layout.MAX_MAX_ORDER)}",
        "largest slab object of kmalloc": format_bytes(layout.KMALLOC_MAX_CACHE_BYTES),
    }


def arena_views(nbytes: int) -> dict[str, str]:
    """Return the text views of a fresh arena."""
    from realalloc.arena import Arena

    with refusing():
        made = Arena(nbytes)
    with made as arena:
        return {view: getattr(arena, view)() for view in VIEWS}


class InfoCommand:
    """Show the platform, versions, the kernel cache and limits."""

    name = "info"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        parser.add_argument(
            "--arena",
            metavar="SIZE",
            type=size_of("--arena"),
            help="also make an arena of this size and show buddyinfo, slabinfo, ... of it",
        )
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Gather everything, then print: an arena that is refused leaves nothing half-printed."""
        facts = machine_facts() | cache_facts()
        views = {} if args.arena is None else arena_views(args.arena)
        if args.json:
            print_json(facts | ({"views": views} if views else {}))
            return 0
        print_table("realalloc", ("", ""), list(facts.items()))
        for name, text in views.items():
            body = text.rstrip("\n") or "(empty)"
            print(f"\n{name} of a fresh arena of {format_bytes(args.arena)}\n{body}")
        return 0
