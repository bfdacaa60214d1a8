"""The page, the picture, and files that are whole or not there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from stressed import result, verdict

from realalloc.lab.stress.page import check_file, html_bytes, png_bytes, write


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


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    check_file("--png", str(path))
    assert os.listdir(tmp_path) == []
    write(str(path), b"one")
    write(str(path), b"two")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["out.png"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    with pytest.raises(IsADirectoryError):
        check_file("--html", str(tmp_path))
    with pytest.raises(FileNotFoundError) as info:
        check_file("--html", str(tmp_path / "no" / "x.html"))
    assert info.value.filename == str(tmp_path / "no" / "x.html")
    with pytest.raises(NotADirectoryError):
        check_file("--png", str(Path(__file__) / "x.png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_file("--png", str(tmp_path / "x.png"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "plotly" else sys)
    with pytest.raises(ValueError, match=r"--html needs plotly: pip install 'realalloc\[plot\]'"):
        check_file("--html", str(tmp_path / "x.html"))
