"""What a system says about itself in small files, and what is installed: for ``realalloc info`` and for reports.

Guarantees: reads, and changes nothing. What a system does not tell is ``unknown``, never an error.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def text_of(path: Path) -> str:
    """Return what is in a file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return UNKNOWN


def version_of(package: str) -> str:
    """Return which version is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def thp_mode() -> str:
    """Return the mode of transparent huge pages: always, madvise or never."""
    text = text_of(THP)
    return text.partition("[")[2].partition("]")[0] or text
