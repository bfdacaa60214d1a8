"""The page and the picture."""

from __future__ import annotations

import re

import pytest
from stressed import result, verdict

from realalloc.lab.stress.page import html_bytes, png_bytes


def test_a_page_says_everything_and_loads_nothing() -> None:
    pytest.importorskip("plotly")
    bad = result("process 1", wrong=["<b>word 3</b> & more"], seed=99)
    found = verdict(result(), bad)
    found.reproduce = "realalloc stress --seed 99"
    found.lost = ["process 2: exit -11; <script>"]
    page = html_bytes(found).decode()
    body = page[page.index("</head>") :]
    for text in (
        "FAILED",
        "process 1, seed 99",
        "realalloc stress --seed 99",
        "no growth",
        "&lt;b&gt;word 3",
        "&lt;script&gt;",
    ):
        assert text in body
    assert "<b>word" not in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)


def test_a_picture_of_all_processes() -> None:
    pytest.importorskip("matplotlib")
    assert len(png_bytes(verdict(result(), result("process 1")))) > 10_000
