"""The machine in words, and whether it is quiet: both from files that may say nothing."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from support import JIT

from realalloc import __version__, facts
from realalloc.lab import machine
from realalloc.lab.machine import UNKNOWN, describe, noise


def test_describe_names_what_numbers_depend_on() -> None:
    said = describe()
    assert all(isinstance(value, str) and value for value in said.values())
    assert said["realalloc"] == __version__ or said["realalloc"] == "not installed"
    assert int(said["cpus"]) >= 1
    assert {"cpu", "kernel", "libc", "thp", "python", "numba", "numpy"} <= set(said)


def test_what_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((machine, "CPUINFO"), (facts, "THP"), (machine, "STAT")):
        monkeypatch.setattr(module, name, tmp_path / "nothing")
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    said = describe()
    assert (said["thp"], said["libc"]) == (UNKNOWN, UNKNOWN)
    assert said["cpu"] == machine.platform.machine()
    assert machine._steal_ticks() is None


def test_files_as_kernels_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU: fast\n\nmodel name\t: another\n")
    (tmp_path / "thp").write_text("always [madvise] never\n")
    (tmp_path / "stat").write_text("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3\n")
    for module, name in ((machine, "CPUINFO"), (facts, "THP"), (machine, "STAT")):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
    assert (describe()["cpu"], describe()["thp"]) == ("Some CPU: fast", "madvise")
    assert machine._steal_ticks() == 80


class Clock:
    """A clock that says that slices took as long as it is told."""

    def __init__(self, *slices: int) -> None:
        self.now = 0
        self.slices = itertools.cycle(slices)
        self.odd = False

    def __call__(self) -> int:
        if self.odd:
            self.now += next(self.slices)
        self.odd = not self.odd
        return self.now


def _noise(monkeypatch: pytest.MonkeyPatch, steal: tuple[int | None, int | None], *slices: int) -> str | None:
    stolen = iter(steal)
    monkeypatch.setattr(machine, "_steal_ticks", lambda: next(stolen))
    monkeypatch.setattr(time, "perf_counter_ns", Clock(*slices))
    try:
        return noise(1)
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("steal", [(5, 5), (None, None), (None, 7), (7, None)])
def test_a_quiet_machine(steal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _noise(monkeypatch, steal, 1000, 1010, 990) is None


def test_rare_interruptions_are_in_the_tails_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _noise(monkeypatch, (1, 1), *[1000] * 39, 9000) is None  # 2.5 % of the slices


def test_uneven_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _noise(monkeypatch, (1, 1), *[1000] * 9, 2000)
    assert said is not None and "took 2.00 times its median" in said and "hypervisor" not in said


def test_stolen_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _noise(monkeypatch, (100, 103), 1000)
    assert said is not None and "the hypervisor took 3 ticks away" in said


def test_the_look_itself() -> None:
    said = noise()
    assert said is None or said.startswith("noisy machine")
    assert machine.STEPS == (200_000 if JIT else 1000)  # plain Python would take 10 s for as many


def test_the_arithmetic_is_that_of_drand48() -> None:
    value = 1
    for _ in range(3):
        value = (value * 25214903917 + 11) % 2**48
    assert machine._work(3, 1) == value
