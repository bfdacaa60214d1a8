"""Finding files: no link is followed, no pipe opened, and what cannot be listed is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from commands import SIZES, make_tree

from realalloc.demo import find_files


def test_find_files_follows_no_link_and_opens_no_pipe(tmp_path: Path) -> None:
    tree = find_files(make_tree(tmp_path))
    assert len(tree.files) == len(SIZES) and tree.files == sorted(tree.files)
    assert (tree.links, tree.special, tree.directories, tree.unlisted) == (2, 1, 4, [])


def test_find_files_through_a_link_as_root(tmp_path: Path) -> None:
    make_tree(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    tree = find_files(tmp_path / "link")
    assert tree.root == str(tmp_path / "real") and len(tree.files) == len(SIZES)


def test_find_files_prunes_by_name(tmp_path: Path) -> None:
    tree = find_files(make_tree(tmp_path), prune=["a"])
    assert tree.pruned == 1
    assert {Path(path).parent for path in tree.files} == {tmp_path}


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tree = find_files(tmp_path)
    assert tree.unlisted == [(f"{tmp_path}/a/b", "Permission denied")]
    monkeypatch.setattr(os, "scandir", lambda path: refuse(f"{path}/b"))
    with pytest.raises(PermissionError):
        find_files(tmp_path)
