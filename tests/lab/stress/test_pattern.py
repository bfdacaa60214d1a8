"""What a block is filled with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.lab.stress.pattern import as_words, base_of, fill, first_wrong, is_whole, tail_of, word_of

offsets, sizes, numbers = st.integers(0, (1 << 42) - 1), st.integers(1, 1 << 31), st.integers(0, (1 << 47) - 1)


@given(offsets, sizes, numbers, st.integers(0, (1 << 28) - 1))
def test_no_word_overflows_or_is_negative(offset: int, nbytes: int, number: int, k: int) -> None:
    base = base_of(offset, nbytes, number)
    assert 0 <= base < 1 << 62
    assert base <= word_of(base, k) < 1 << 63


def test_machine_code_and_python_agree() -> None:
    for given_ in [(0, 1, 1), (1 << 41, 77, (1 << 46) + 3), (4096, 1 << 30, 12345)]:
        plain = getattr(base_of, "py_func", base_of)(*given_)
        assert base_of(*given_) == plain


def test_neighbours_in_identity_have_different_patterns() -> None:
    seen = {base_of(8 * o, n, s) for o, n, s in itertools.product(range(20), range(1, 20), range(20))}
    assert len(seen) == 20 * 19 * 20


@pytest.mark.parametrize("words", [1, 2, 63, 100])
def test_every_single_bit_is_noticed(words: int) -> None:
    block = np.zeros(words, np.int64)
    base = base_of(4096, 8 * words, 3)
    fill(block, base)
    assert is_whole(block, base, words) and first_wrong(block, base, words) == -1
    for k in {0, words // 2, words - 1}:
        for bit in (0, 31, 62):
            block[k] ^= 1 << bit
            assert not is_whole(block, base, words) and first_wrong(block, base, words) == k
            block[k] ^= 1 << bit
    other = base_of(4096, 8 * words, 4)
    assert first_wrong(block, other, words) == 0


def test_a_moved_block_is_noticed() -> None:
    block = np.zeros(50, np.int64)
    base = base_of(0, 400, 1)
    fill(block, base)
    block[:-1] = block[1:].copy()
    assert first_wrong(block, base, 50) == 0


def test_the_tail_goes_on_with_the_pattern() -> None:
    base = base_of(8, 21, 2)
    view = memoryview(bytearray(21))
    assert len(as_words(view)) == 2
    assert tail_of(base, 2, 21) == word_of(base, 2).to_bytes(8, "little")[:5]
    assert tail_of(base, 2, 16) == b""
