"""What a system says about itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realalloc import facts


def test_files_that_are_there_and_those_that_are_not(tmp_path: Path) -> None:
    (tmp_path / "there").write_text(" 17\n")
    assert facts.text_of(tmp_path / "there") == "17"
    assert facts.text_of(tmp_path / "not there") == facts.text_of(tmp_path) == facts.UNKNOWN


def test_versions() -> None:
    assert facts.version_of("numpy") == np.__version__
    assert facts.version_of("no-such-package-at-all") == "not installed"


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("[always] never", "always"), ("strange", "strange")]
)
def test_the_mode_is_in_brackets(text: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "THP", tmp_path / "thp")
    assert facts.thp_mode() == facts.UNKNOWN
    (tmp_path / "thp").write_text(text)
    assert facts.thp_mode() == mode
