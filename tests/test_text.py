"""What is safe to print, and tables that fit."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.text import Column, cell_width, fit_table, plain_table, shortened, shown, wrapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é", "plain é"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2Jred", r"\x1b[2Jred"),
        ("\x9b31m", r"\x9b31m"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("right\u202eleft", r"right\u202eleft"),
    ],
)
def test_shown_escapes_what_a_terminal_would_obey(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_plain_table_is_aligned() -> None:
    lines = plain_table("title", ("", "a", "bb"), [("row", "1", "22"), ("longer row", "333", "4")])
    assert lines == ["title", "                a  bb", "  row           1  22", "  longer row  333   4"]


def test_plain_table_without_header_leaves_values_left() -> None:
    assert plain_table("t", ("", ""), [("k", "v\n"), ("key", "w")]) == ["t", r"  k    v\n", "  key  w"]


COLUMNS = [Column("name", left=True), Column("a", rank=1), Column("b"), Column("c", rank=2)]
ROWS = [("first", "1", "22", ""), ("the second one", "333", "4", "5")]


def test_a_table_drops_the_highest_rank_first_and_shortens_names_last() -> None:
    assert fit_table(COLUMNS, ROWS, 80)[2] == "  the second one  333   4  5"
    assert fit_table(COLUMNS, ROWS, 27)[2] == "  the second one  333   4"
    assert fit_table(COLUMNS, ROWS, 22)[2] == "  the second one   4"
    assert fit_table(COLUMNS, ROWS, 16)[2] == "  the seco..   4"
    assert fit_table(COLUMNS, ROWS, 9)[2] == "  the s.."


def test_a_column_of_a_rank_in_which_nobody_says_anything_is_left_out() -> None:
    assert fit_table(COLUMNS, ROWS[:1], 80) == ["  name   a   b", "  first  1  22"]
    assert fit_table(COLUMNS, [], 80) == ["  name  b"]


@given(
    st.lists(st.tuples(*[st.text(max_size=30)] * 4), max_size=5),
    st.integers(3, 120),
)
def test_every_line_fits_and_is_printable(rows: list[tuple[str, ...]], width: int) -> None:
    for line in fit_table(COLUMNS, rows, width):
        assert cell_width(line) <= width
        assert line.isprintable()


def test_wide_characters_take_two_cells_and_accents_none() -> None:
    assert [cell_width(text) for text in ("abc", "中文", "e\u0301", "é")] == [3, 4, 1, 1]
    assert fit_table([Column("n", left=True), Column("v")], [("中", "1"), ("ab", "2")]) == [
        "  n   v",
        "  中  1",
        "  ab  2",
    ]
    assert shortened("中文中文", 6) == "中文.."


@given(st.text(max_size=300), st.integers(10, 60))
def test_prose_fits(text: str, width: int) -> None:
    assert all(cell_width(line) <= width and line.isprintable() for line in wrapped(text, width, "  "))
