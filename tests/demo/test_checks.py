"""The checks of the demo, each of which must fail when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import make_tree

from realalloc.demo import Demo, Options, runner
from realalloc.demo.checks import alone_ns, check_end, fresh
from realalloc.mm import layout


def demo_of(path: Path, **options: Any) -> Demo:
    return Demo(Options(path=str(path), **{"threads": 2, "rounds": 1, "arena": 8 << 20, **options}))


def test_a_buffer_that_is_kept_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        kept = demo.pool.alloc()
        report = demo.run()
        assert report.checks is not None
        assert not report.ok and not report.checks.whole and report.checks.digests and report.checks.valid
        assert "elements out" in report.checks.broken[-1]
        del kept
        demo.pool.destroy()


def test_memory_that_is_left_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        kept = demo.arena.kmalloc(100)
        checks = demo.run().checks
        assert checks is not None and not checks.whole and checks.valid
        assert "1 leases left when everything was returned" in checks.broken
        del kept


def test_damage_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        demo.arena.words[layout.H_BAD_FREES] = 1
        checks = check_end(demo.arena, demo.pool, digests=True, aligned=True)
        assert not checks.ok and not checks.valid and not checks.whole
        assert "header is damaged" in checks.broken[0]
        demo.arena.words[layout.H_BAD_FREES] = 0


def test_buffers_off_a_page_fail_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        assert demo._aligned()
        monkeypatch.setattr(runner, "PAGE_BYTES", 1 << 40)
        checks = demo.run().checks
    assert checks is not None and not checks.aligned and not checks.ok and checks.digests


def test_alone_measures_what_it_says() -> None:
    assert 0 < alone_ns(fresh(4096)) < 1e6
    assert alone_ns(fresh(16 << 20)) > alone_ns(fresh(64))
