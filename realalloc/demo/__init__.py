"""A job on real files, done through a pool's buffers and with fresh bytearrays, measured side by side.

``Demo(options)`` refuses what can be refused, before a file is opened; ``run`` reads every file of a tree in several
threads, hashes it, and compares every digest with plain reading. What comes back is a :class:`Report` of numbers.

Guarantees: nothing is printed. Both ways run the same code; only ``take``, which makes a buffer, differs.
Arrows: runner -> reading -> (nothing), runner -> tree, runner -> report.
"""

from __future__ import annotations

from realalloc.demo.report import Checks, Pass, Report
from realalloc.demo.runner import Demo, Options, Progress
from realalloc.demo.tree import Tree, find_files

__all__ = ["Checks", "Demo", "Options", "Pass", "Progress", "Report", "Tree", "find_files"]
