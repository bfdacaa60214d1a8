"""Any shape and format is bytes; what does not lie in one piece is refused; nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from realalloc.adapters.octets import as_octets


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        bytearray(5),
        np.arange(6.0).reshape(2, 3),
        np.int32(7),
        np.empty(0),
        np.empty((0, 3)),
        memoryview(b"x"),
    ],
)
def test_everything_that_has_bytes_has_octets(data: Any) -> None:
    with as_octets(data) as octets:
        assert (octets.ndim, octets.format, bytes(octets)) == (1, "B", bytes(memoryview(data)))


def test_nothing_is_copied() -> None:
    data = np.zeros((2, 2), np.int16)
    with as_octets(data) as octets:
        octets[2] = 9
    assert data[0, 1] == 9


@pytest.mark.parametrize("data", ["text", 7, None, np.zeros((4, 4))[:, ::2]])
def test_what_has_none_is_refused(data: Any) -> None:
    with pytest.raises(TypeError):
        as_octets(data)
