"""A verdict as files: one HTML page that needs nothing else, one picture.

Guarantees: the page loads nothing from anywhere; whatever a text says is text, as the template escapes all but plotly's own
output. May not: write files (:mod:`realalloc.lab.report.files` does).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from realalloc.lab.series import Series
from realalloc.lab.stress import charts  # which imports what draws when it draws
from realalloc.lab.stress.records import Verdict
from realalloc.lab.stress.reproduce import command

TEMPLATE: Final = Path(__file__).with_name("page.html.j2")


def word(verdict: Verdict) -> str:
    """Say how it ended, in one word."""
    return "passed" if verdict.ok else "FAILED"


def series_of(verdict: Verdict) -> dict[str, dict[str, Series]]:
    """Return what is drawn, by process."""
    return {process.name: process.series for process in verdict.processes}


def png_bytes(verdict: Verdict) -> bytes:
    """Draw all processes side by side."""
    return charts.png(series_of(verdict), f"{command(verdict.options)}   {word(verdict)}")


def html_bytes(verdict: Verdict) -> bytes:
    """Make the page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    library: Any = importlib.import_module("plotly.offline").get_plotlyjs  # which does not say what it exports

    def figure(found: dict[str, Series]) -> Any:
        text = charts.plot(found).to_html(full_html=False, include_plotlyjs=False)
        return Markup(text)  # noqa: S704  # plotly's own, which escapes what it is given

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=verdict,
        verdict_word=word(verdict),
        command=command(verdict.options),
        script=Markup(f"<script>{library()}</script>"),  # noqa: S704  # the library itself
        figures={name: figure(found) for name, found in series_of(verdict).items()},
    )
    return page.encode("utf-8", "backslashreplace")
