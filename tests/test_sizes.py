"""Arguments are checked once: what comes out is an int in range, or a clear error names the argument."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc import gfp as gfp_module
from realalloc.sizes import LIMIT, as_alignment, as_bytes, as_gfp, as_int, as_timeout, format_bytes


class Index:
    def __index__(self) -> int:
        return 42


@pytest.mark.parametrize("value", [True, False, np.True_, 1.0, np.float32(1), "1", b"1", None, [1], 1j, Fraction(4, 2)])
def test_what_is_no_integer_is_a_type_error_that_names_argument_and_type(value: Any) -> None:
    with pytest.raises(TypeError, match=f"^order must be an integer, not {type(value).__name__}"):
        as_int(value, "order")


@pytest.mark.parametrize("value", [42, np.int8(42), np.uint64(42), Index(), np.array(42)])
def test_everything_with_an_index_comes_out_as_a_plain_int(value: Any) -> None:
    assert type(as_int(value, "n")) is int and as_int(value, "n") == 42


@given(st.integers(), st.integers(-5, 5), st.integers(5, 2**70))
def test_a_range_is_inclusive_and_the_message_says_which_end_was_passed(value: int, low: int, high: int) -> None:
    if low <= value <= high:
        assert as_int(value, "n", low, high) == value
    else:
        bound = f"at least {low}" if value < low else f"at most {high}"
        with pytest.raises(ValueError, match=f"^n must be {bound}, not {value}$"):
            as_int(value, "n", low, high)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("4096", 4096), (" 7 ", 7), ("1B", 1), ("1k", 1024), ("1K", 1024), ("1kB", 1000), ("1KiB", 1024),
        ("1.5k", 1536), ("1.5kB", 1500), ("64 MiB", 64 << 20), ("64mib", 64 << 20), ("2M", 2 << 20), ("1GiB", 1 << 30),
        ("1GB", 10**9), ("0.5g", 1 << 29), ("4TiB", 4 << 40), ("1TB", 10**12), ("0.001kB", 1), ("  3  KiB ", 3072),
    ],
)  # fmt: skip
def test_text_sizes_use_binary_units_unless_they_say_si(text: str, nbytes: int) -> None:
    assert as_bytes(text, "size") == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "k",
        "1 XiB",
        "1 PiB",
        "one",
        "-1",
        "-1k",
        "+1",
        "1e3",
        "1,5k",
        "1.k",
        ".5k",
        "0x10",
        "1kk",
        "1 k b",
        "½",
        "1_0",
    ],
)
def test_text_that_is_no_size_is_a_value_error_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="limit: .* is not a size; write for example '64MiB'"):
        as_bytes(text, "limit")


@pytest.mark.parametrize("text", ["1.5", "0.3B", "1.0001k", "0.0001kB"])
def test_a_fraction_of_a_byte_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        as_bytes(text, "size")


def test_text_sizes_have_the_range_of_integers() -> None:
    with pytest.raises(ValueError, match="size must be at least 4096, not 4095"):
        as_bytes("4095", "size", 4096)
    with pytest.raises(ValueError, match="size must be at most"):
        as_bytes("8388608TiB", "size")
    assert as_bytes("8388607TiB", "size") == LIMIT - (1 << 40)


@given(st.integers(0, 10**6), st.sampled_from(["KiB", "MiB", "GiB", "B", ""]), st.sampled_from(["", " "]))
def test_integers_with_units_are_exact(count: int, unit: str, space: str) -> None:
    factor = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    assert as_bytes(f"{count}{space}{unit}", "size") == count * factor


@given(st.integers(-10, 2**64))
def test_alignments_are_powers_of_two(value: int) -> None:
    if 0 < value < 2**63 and value.bit_count() == 1:
        assert as_alignment(value, "align") == value
    else:
        with pytest.raises(ValueError, match="^align must be"):
            as_alignment(value, "align")


@given(st.integers(-5, 2**20) | st.integers(2**62, 2**65))
def test_flags_are_known_bits(value: int) -> None:
    if value >= 0 and not value & ~gfp_module.ALL_FLAGS:
        assert as_gfp(value) == value
    else:
        with pytest.raises(ValueError, match="gfp"):
            as_gfp(value)


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.5, 10**6, math.inf, np.float64(0.25)])
def test_timeouts_are_seconds(value: Any) -> None:
    assert as_timeout(value) == float(value)
    assert as_timeout(None) is None


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf])
def test_a_negative_timeout_is_a_value_error(value: float) -> None:
    with pytest.raises(ValueError, match="timeout must be >= 0"):
        as_timeout(value)


@pytest.mark.parametrize("value", ["1", True, [], 1j, b"1"])
def test_a_timeout_that_is_no_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"timeout must be a number of seconds or None, not {type(value).__name__}"):
        as_timeout(value)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"),
        (5 << 30, "5 GiB"), (3 << 40, "3.0 TiB"), (-2048, "-2 KiB"),
    ],
)  # fmt: skip
def test_sizes_are_spelled_with_binary_units(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text
