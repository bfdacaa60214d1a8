"""A report as one HTML file that needs nothing else: tables, charts, how to read them, and the raw data.

Guarantees: nothing is loaded from anywhere when it is opened; its own policy (Content-Security-Policy) forbids the browser to.
Whatever a name says is text: the template escapes all of it, and data in scripts has no ``<``.
"""

from __future__ import annotations

import importlib
from importlib import resources
from typing import Any, Final

from realalloc.lab.report import grids, plots
from realalloc.lab.report.grids import Grid
from realalloc.lab.results import Report
from realalloc.text import shown

TEMPLATE: Final = "template.html.j2"


def html_page(report: Report) -> str:
    """Return the page."""
    import jinja2
    from markupsafe import Markup

    offline: Any = importlib.import_module("plotly.offline")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = shown
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    found = plots.figures(report)
    return environment.from_string(source).render(
        report=report,
        overview=_present(grids.duels(report), grids.matrix(report)),
        standings=_present(*(grids.standings(row) for row in report.rows)),
        latencies=_present(*(grids.latencies(row) for row in report.rows)),
        resident=_present(grids.footprints(report), grids.resident(report)),
        charts=[title for title, _ in found],
        figures=[figure for _, figure in found],
        facts=_facts(report),
        notes=(grids.KEY, grids.COUNTED),
        data=report.as_dict(),
        plotlyjs=Markup(offline.get_plotlyjs()),  # noqa: S704  # a library's file, not what a user wrote
    )


def _present(*tables: Grid | None) -> list[Grid]:
    return [table.told() for table in tables if table is not None]


def _facts(report: Report) -> list[tuple[str, list[tuple[str, Any]]]]:
    floors = [(what, grids.duration(ns)) for what, ns in report.floors.items()]
    groups = [("Machine", list(report.machine.items())), ("Options", list(report.options.items()))]
    return [(name, facts) for name, facts in [*groups, ("What measuring costs", floors)] if facts]
