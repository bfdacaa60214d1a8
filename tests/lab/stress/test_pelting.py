"""Signals that interrupt and raise."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from realalloc.lab.stress.pelting import Pelted, Pelting


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_work_is_interrupted_and_goes_on() -> None:
    with Pelting(1) as pelting:
        hits = [pelting.under_fire(lambda: spin(5.0)) for _ in range(20)]
        assert all(hits) and pelting.raised == 20
        assert not pelting.under_fire(lambda: None) or pelting.raised == 21
        spin(0.005)


def test_outside_of_the_fire_nothing_raises() -> None:
    with Pelting(1) as pelting:
        for _ in range(50):
            pelting.interrupt(threading.get_native_id())
        spin(0.01)
        assert pelting.signals >= 1 and pelting.raised == 0
        pelting.interrupt(1 << 22)  # no such thread


def test_other_errors_pass_and_disarm() -> None:
    with Pelting(1) as pelting:
        with pytest.raises(ZeroDivisionError):
            pelting.under_fire(lambda: 1 // 0)
        spin(0.01)


def test_all_is_put_back() -> None:
    handler, hook = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with pytest.raises(KeyError), Pelting(1):
            assert signal.getsignal(signal.SIGALRM) is not handler
            raise KeyError
        assert signal.getsignal(signal.SIGALRM) is handler and sys.unraisablehook is hook
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


class Unraisable:
    exc_value = Pelted()


def test_a_signal_inside_a_finalizer_is_no_news() -> None:
    told = []
    saved, sys.unraisablehook = sys.unraisablehook, told.append
    try:
        with Pelting(1):
            sys.unraisablehook(Unraisable())
            assert told == []
            other = type("Other", (), {"exc_value": KeyError()})()
            sys.unraisablehook(other)
            assert told == [other]
    finally:
        sys.unraisablehook = saved
