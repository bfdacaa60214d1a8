"""fragments: what its steps hold: everything, a tenth, nothing; and a life of pairs after it."""

from __future__ import annotations

import time

import pytest
from cheats import OUT, failing, how
from checks import some

from realalloc.lab.peers import Peer
from realalloc.lab.workloads import fragments
from realalloc.lab.workloads.scope import Scope


@pytest.mark.parametrize("case", list(fragments.SETS) if some(1, 0) else ["400k x 16..4096"])
def test_steps(case: str) -> None:
    books = how()
    peer = Peer("counted", failing, lambda _thread: books)
    scale = 0.001
    steps = fragments.steps(peer, case, Scope(scale))
    count = max(64, int(fragments.SETS[case] * scale))
    assert books[OUT] == 0  # loops were compiled, and nothing is held
    held = []
    for step in steps:
        begun = time.monotonic()
        step.run()
        held.append(int(books[OUT]))
        if step.name.endswith("later"):
            assert time.monotonic() - begun >= fragments.SECONDS * 5 * scale
    assert held == [count, count // fragments.SURVIVORS, 0, 0]
    assert [step.name for step in steps] == ["filled", "a tenth left", "freed", "5 s later"]


def test_a_case_that_there_is_not() -> None:
    with pytest.raises(KeyError):
        fragments.steps(Peer("p", failing, lambda _thread: how()), "nothing", Scope(0.001))
