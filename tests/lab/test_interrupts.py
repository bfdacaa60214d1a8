"""Ctrl-C is held back and delivered once, where it can do no harm; whoever handled it before handles it again."""

from __future__ import annotations

import signal

import pytest
from checks import Worker

from realalloc.lab.interrupts import deferred


def test_an_interrupt_waits_for_a_checkpoint() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred() as checkpoint:
        checkpoint()
        signal.raise_signal(signal.SIGINT)
        reached.append("held back")
        checkpoint()
        reached.append("never")
    assert reached == ["held back"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_checkpoint_it_comes_at_the_end() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
    assert reached == [1]


def test_an_error_does_not_swallow_it() -> None:
    with pytest.raises(KeyboardInterrupt) as info, deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("meanwhile")
    assert isinstance(info.value.__context__, ValueError)


def test_the_second_one_is_delivered_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second was held back")


def test_nothing_comes_where_nothing_came() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred() as checkpoint:
        assert signal.getsignal(signal.SIGINT) is not before
        checkpoint()
    with pytest.raises(ValueError, match="plain"), deferred():
        raise ValueError("plain")
    assert signal.getsignal(signal.SIGINT) is before


def test_whoever_handled_it_before_gets_it_once() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _frame: seen.append(signum))
    try:
        with deferred() as checkpoint:
            signal.raise_signal(signal.SIGINT)
            assert seen == []
            checkpoint()
            checkpoint()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred() as checkpoint:
            signal.raise_signal(signal.SIGINT)
            checkpoint()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals_to_hold_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work() -> object:
        with deferred() as checkpoint:
            checkpoint()
            return signal.getsignal(signal.SIGINT)

    assert Worker(work).result() is before
