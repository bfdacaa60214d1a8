"""What the system counts: every thread's, never below 0, and None, not 0, for what it does not tell."""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest

from realalloc.lab import counters
from realalloc.lab.counters import now, since, total
from realalloc.lab.results import Counters
from realalloc.memory import anonymous


def test_page_faults_of_all_threads_are_counted() -> None:
    before = now()

    def touch() -> None:
        with anonymous(64 * 4096) as pages:
            for at in range(0, len(pages), 4096):
                pages[at] = 1

    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()
    assert since(before).minor_faults >= 4  # 64, or fewer of huge pages
    assert since(before).major_faults >= 0


def test_waiting_is_a_voluntary_switch() -> None:
    before = now()
    for _ in range(5):
        time.sleep(0.001)
    assert since(before).voluntary_switches >= 5


def test_since_subtracts_and_is_not_below_zero() -> None:
    assert since(Counters(10, 1, 5, 9, 100), Counters(12, 1, 9, 9, 40)) == Counters(2, 0, 4, 0, 0)


@pytest.mark.parametrize(
    ("before", "after"), [(Counters(), Counters(migrations=3)), (Counters(migrations=3), Counters()), (Counters(),) * 2]
)
def test_what_was_not_told_once_is_not_known(before: Counters, after: Counters) -> None:
    assert since(before, after).migrations is None
    assert total([before, after]).migrations is None


def test_total_adds_up() -> None:
    assert total([Counters(1, 2, 3, 4, 5), Counters(10, 20, 30, 40, 50)]) == Counters(11, 22, 33, 44, 55)
    assert total([]) == Counters(migrations=0)


def _tasks(root: Path, *texts: str | None) -> Path:
    for number, text in enumerate(texts):
        task = root / str(number)
        task.mkdir()
        if text is not None:
            (task / "sched").write_text(text)
    return root


def test_migrations_are_the_sum_of_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "python (7, #threads: 2)\n----\nse.exec_start   :  12.5\nse.nr_migrations        :      {}\nnr_switches : 9\n"
    )
    monkeypatch.setattr(counters, "TASKS", _tasks(tmp_path, text.format(3), text.format(40), None))
    assert now().migrations == 43


@pytest.mark.parametrize("texts", [(), (None,), ("nr_switches : 9\n",)])
def test_a_kernel_that_does_not_tell_migrations(texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "TASKS", _tasks(tmp_path, *texts))
    assert now().migrations is None
    assert since(now()).migrations is None


def test_a_thread_that_ends_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = _tasks(tmp_path, "se.nr_migrations : 5\n", None)
    (tasks / "1" / "sched").symlink_to(tmp_path / "gone")
    (tasks / "2").mkdir()
    (tasks / "2" / "sched").mkdir()  # reading it fails
    monkeypatch.setattr(counters, "TASKS", tasks)
    assert now().migrations == 5


def test_every_count_is_combined() -> None:
    parts = {field.name: 3 for field in fields(Counters)}
    assert total([Counters(**parts), Counters(**parts)]) == Counters(**{name: 6 for name in parts})
