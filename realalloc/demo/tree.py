"""Find the regular files below a path.

Guarantees: symbolic links below the path are never followed, so there are no loops and no file outside it; sockets,
pipes and devices are never opened. What was passed over is counted, directories that cannot be listed are named.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Tree:
    """The files of a tree, sorted, and what was passed over."""

    root: str
    files: list[str] = field(default_factory=list)
    directories: int = 0
    links: int = 0
    special: int = 0
    pruned: int = 0  # directories left out by name
    unlisted: list[tuple[str, str]] = field(default_factory=list)  # path and reason


def find_files(path: str | os.PathLike[str], prune: Collection[str] = ()) -> Tree:
    """Return the regular files below ``path``, or the one file that it names; directories named in ``prune`` are left out.

    OSError if ``path`` does not exist or cannot be listed, ValueError if it is neither a directory nor a regular file.
    """
    root = os.path.realpath(path, strict=True)
    tree = Tree(root)
    if Path(root).is_file():
        tree.files.append(root)
    elif Path(root).is_dir():
        with os.scandir(root):
            pass  # an unreadable root is the caller's mistake, an unreadable directory below it is not
        _walk(tree, prune)
        tree.files.sort()
    else:
        raise ValueError(f"{root} is neither a directory nor a regular file")
    return tree


def _walk(tree: Tree, prune: Collection[str]) -> None:
    pending = [tree.root]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    _sort_in(tree, entry, pending, prune)
            tree.directories += 1
        except OSError as error:
            tree.unlisted.append((directory, error.strerror or str(error)))


def _sort_in(tree: Tree, entry: os.DirEntry[str], pending: list[str], prune: Collection[str]) -> None:
    if entry.is_symlink():
        tree.links += 1
    elif entry.is_dir(follow_symlinks=False):
        if entry.name in prune:
            tree.pruned += 1
        else:
            pending.append(entry.path)
    elif entry.is_file(follow_symlinks=False):
        tree.files.append(entry.path)
    else:
        tree.special += 1
