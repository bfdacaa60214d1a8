"""Whatever happens in the block, it is closed once."""

from __future__ import annotations

import pytest

from realalloc.closing import Closing


class Counts(Closing):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_block_closes_with_and_without_an_error() -> None:
    with Counts() as made:
        assert made.closed == 0
    assert made.closed == 1
    with pytest.raises(KeyError), Counts() as made:
        raise KeyError
    assert made.closed == 1


def test_who_forgets_to_say_how_is_told() -> None:
    with pytest.raises(NotImplementedError), Closing():
        pass
