"""What the user can put right: one exception, with a text that names it."""

from __future__ import annotations

import argparse
import os

import pytest

from realalloc.cli.problems import BadInput, count_of, refusing, size_of


def test_refusing_names_the_file() -> None:
    with pytest.raises(BadInput, match="^/nowhere at all: No such file or directory$"), refusing():
        os.stat("/nowhere at all")


@pytest.mark.parametrize("error", [ValueError, TypeError, MemoryError, RuntimeError])
def test_refusing_turns_what_constructors_raise(error: type[Exception]) -> None:
    with pytest.raises(BadInput, match="^of no use$") as info, refusing():
        raise error("of no use")
    assert type(info.value.__cause__) is error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, AssertionError, KeyboardInterrupt, BadInput])
def test_refusing_leaves_the_rest(error: type[BaseException]) -> None:
    with pytest.raises(error) as info, refusing():
        raise error
    assert info.type is error


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (OSError(2, "No such thing"), "No such thing"),
        (OSError("just words"), "just words"),
        (OSError(2, "gone", b"/bytes"), "/bytes: gone"),
        (OSError(2, "gone", 7), "gone"),
    ],
)
def test_an_error_of_the_system_is_its_file_and_its_reason(raised: OSError, says: str) -> None:
    with pytest.raises(BadInput, match=f"^{says}$"), refusing():
        raise raised


def test_sizes_and_counts_of_a_command_line() -> None:
    size, count = size_of("--buffer", 16), count_of("--threads", 9)
    assert [size(text) for text in ("16", "1KiB", "1.5 mib")] == [16, 1024, 3 << 19]
    assert [count(text) for text in ("1", " 9 ", "+3")] == [1, 9, 3]
    refused = [(size, text) for text in ("15", "-1", "many", "")] + [(count, text) for text in ("0", "10", "1.5", "")]
    for convert, text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match="--buffer|--threads|is not a size"):
            convert(text)
