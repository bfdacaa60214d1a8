"""The first Ctrl-C asks, the second insists."""

from __future__ import annotations

import signal
import threading

import pytest

from realalloc.lab.stress.interrupts import Interrupts


def test_the_first_asks_and_the_second_raises() -> None:
    told: list[int] = []
    with Interrupts(lambda: told.append(1)) as interrupts:
        assert not interrupts.seen
        signal.raise_signal(signal.SIGINT)
        assert interrupts.seen and told == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and told == [1]


def test_a_handler_of_the_programs_own_stays() -> None:
    mine = []
    before = signal.signal(signal.SIGINT, lambda *_: mine.append(1))
    try:
        with Interrupts(lambda: None) as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert mine == [1] and not interrupts.seen
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_installed() -> None:
    def use() -> None:
        with Interrupts(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
