"""What a person reads of a measurement: tables on a terminal, files, charts, a page.

Rooms, bottom up: ``grids`` (tables as text), ``panels`` and ``palette`` (charts as numbers, and how a peer looks), ``table``
(terminal), ``files`` (JSON, CSV, and how a file is written), ``charts`` (PNG), ``plots`` and ``page`` (HTML).
Order of use: ``check_destinations`` before a long run, ``print_report`` and ``save`` after it; the first says everything that
can be known beforehand, the last writes each file whole or not at all.
May not: measure. Importing this imports neither numpy nor what the extra ``[plot]`` brings.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from realalloc.lab.report.files import PathLike
    from realalloc.lab.results import Report

NEEDED: Final = ("matplotlib", "plotly", "jinja2")


def print_report(report: Report, width: int | None = None) -> None:
    """Print a report to stdout, as wide as the terminal or as asked."""
    from realalloc.lab.report.table import report_lines
    from realalloc.text import print_lines, terminal_width

    print_lines(report_lines(report, terminal_width() if width is None else width))


def need_plot() -> None:
    """Raise RuntimeError that names the extra if what charts and pages are made with is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"charts need {', '.join(missing)}: pip install 'realalloc[plot]'")


def check_destinations(
    *,
    json: PathLike | None = None,
    csv: PathLike | None = None,
    html: PathLike | None = None,
    png: PathLike | None = None,
) -> None:
    """Raise what :func:`save` would raise for these, before anything is measured; leave nothing behind.

    OSError where a file cannot be written, ValueError for destinations that contradict each other, RuntimeError without the
    extra. ``-`` is stdout, for JSON or CSV.
    """
    from realalloc.lab.report.files import STDOUT, check_writable

    given = {"json": json, "csv": csv, "html": html, "png": png}
    wanted = {what: os.fspath(path) for what, path in given.items() if path is not None}
    for what in ("html", "png"):
        if wanted.get(what) == STDOUT:
            raise ValueError(f"{what} cannot go to stdout, name a file")
    seen: dict[str, str] = {}
    for what, path in wanted.items():
        first = seen.setdefault(path if path == STDOUT else os.path.realpath(path), what)
        if first != what:
            raise ValueError(f"{first} and {what} cannot both go to {'stdout' if path == STDOUT else path}")
    if "html" in wanted or "png" in wanted:
        need_plot()
    for path in wanted.values():
        check_writable(path)


def save(
    report: Report,
    *,
    json: PathLike | None = None,
    csv: PathLike | None = None,
    html: PathLike | None = None,
    png: PathLike | None = None,
) -> None:
    """Write a report as files, those that are named; everything is made before the first is written."""
    from realalloc.lab.report.files import csv_bytes, json_bytes, write_bytes

    check_destinations(json=json, csv=csv, html=html, png=png)
    makers: list[tuple[PathLike | None, Callable[[Report], bytes]]] = [
        (json, json_bytes),
        (csv, csv_bytes),
        (html, _html_bytes),
        (png, _png_bytes),
    ]
    made = [(path, make(report)) for path, make in makers if path is not None]
    for path, data in made:
        write_bytes(path, data)


def _html_bytes(report: Report) -> bytes:
    from realalloc.lab.report.page import html_page

    return html_page(report).encode("utf-8", "backslashreplace")


def _png_bytes(report: Report) -> bytes:
    from realalloc.lab.report.charts import figure, png

    return png(figure(report))
