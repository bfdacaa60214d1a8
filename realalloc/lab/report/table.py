"""A report on a terminal, or in a pipe: tables of which no line is wider than asked.

Order: how it was measured, a table a row, latencies, the resident set, and at the end, where the eye is, one line a row with
ours against the best other, who was skipped, and warnings. Where a width does not do, columns that explain are dropped before
columns that tell; the table with a column a peer is printed only where all peers fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from realalloc.lab.report import grids
from realalloc.lab.report.grids import BEST, TIED, Grid
from realalloc.lab.results import Report
from realalloc.text import Line, cell_width, fit_table, shown, wrapped

MARKS = {BEST: "* ", TIED: "~ "}
STYLES = {BEST: "bold green", TIED: "green"}
TITLE, HEAD, ASIDE, WARNING = "bold", "dim", "dim", "yellow"
NARROWEST = 40
INTERRUPTED = "interrupted: what was measured until then is shown"


def report_lines(report: Report, width: int) -> list[Line]:
    """Return the whole report in lines of at most ``width`` cells, or of 40 where that is less."""
    width = max(width, NARROWEST)
    lines = [*_about(report, width)]
    for row in report.rows:
        lines += _grid(grids.standings(row), width)
    for row in report.rows:
        lines += _grid(grids.latencies(row), width)
    lines += _grid(grids.footprints(report), width)
    lines += _grid(grids.resident(report), width)
    matrix = grids.matrix(report)
    if matrix is not None and max(map(cell_width, fit_table(matrix.columns, matrix.rows))) <= width - len(MARKS[BEST]):
        lines += _grid(matrix, width)
    lines += _grid(grids.duels(report), width)
    return lines + _remarks(report, width)


def _about(report: Report, width: int) -> Iterator[Line]:
    when = f" ({report.started})" if report.started else ""
    yield from _prose(f"{report.command}{when}", width, TITLE)
    yield from _prose(f"machine: {'; '.join(f'{name} {fact}' for name, fact in report.machine.items())}", width)
    yield from _prose(f"options: {grids.settings(report.options) or 'none'}", width)
    if report.floors:
        spent = "; ".join(f"{what} {grids.duration(ns)}" for what, ns in report.floors.items())
        yield from _prose(f"measuring costs: {spent}", width)
    if not report.rows:
        yield Line("no row was measured", WARNING)
        return
    yield from _prose(grids.KEY, width, ASIDE)
    if any(any(grids.counted(entry)) for row in report.rows for entry in row.entries):
        yield from _prose(grids.COUNTED, width, ASIDE)


def _remarks(report: Report, width: int) -> list[Line]:
    lines: list[Line] = [Line("")] if report.skipped or report.warnings or report.interrupted else []
    for text in report.skipped:
        lines += _prose(f"skipped: {text}", width, ASIDE)
    for text in report.warnings:
        lines += _prose(f"warning: {text}", width, WARNING)
    return lines + (_prose(INTERRUPTED, width, WARNING) if report.interrupted else [])


def _grid(grid: Grid | None, width: int) -> Iterator[Line]:
    if grid is None:
        return
    yield Line("")
    yield from _prose(grid.title, width, TITLE)
    yield from _prose(grid.caption, width, ASIDE)
    first = replace(grid.columns[0], head="  " + grid.columns[0].head)
    rows = [(MARKS.get(mark, "  ") + shown(row[0]), *row[1:]) for row, mark in zip(grid.rows, grid.marks, strict=True)]
    head, *body = fit_table((first, *grid.columns[1:]), rows, width)
    yield Line(head, HEAD)
    for line, mark in zip(body, grid.marks, strict=True):
        yield Line(line, STYLES.get(mark, ""))


def _prose(text: str, width: int, style: str = "") -> list[Line]:
    return [Line(line, style) for line in wrapped(text, width, "  ")]
