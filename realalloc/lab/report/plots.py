"""The same charts for a page, by plotly: figures as what JSON can say, drawn by the script of the page.

Guarantees: colours of text and grid are left to the page, which knows whether it is dark; names are never markup.
"""

from __future__ import annotations

import html
import importlib
import json
from collections.abc import Sequence
from typing import Any, Final

from realalloc.lab.report.palette import Look, looks
from realalloc.lab.report.panels import LATENCY, TIME, Panel, panels, series_panel
from realalloc.lab.results import Report
from realalloc.lab.series import Series
from realalloc.text import shown

HEIGHT: Final = 430
LEGEND: Final = {"orientation": "h", "y": -0.17, "yanchor": "top", "x": 0, "font": {"size": 12}}


def figures(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """Return (title, figure) of all panels of a report."""
    look = looks(report.peers)
    return [(panel.title, as_data(_draw(panel, look))) for panel in panels(report)]


def series_figure(series: Series, title: str) -> Any:
    """Draw numbers over time; a plotly ``Figure``."""
    return _draw(series_panel(series, title), looks(list(series.columns)))


def as_data(made: Any) -> dict[str, Any]:
    """Return a figure as dictionaries and lists; NaN is null."""
    data: dict[str, Any] = json.loads(made.to_json(engine="json"))
    return data


def named(text: str) -> str:
    """Return text that plotly shows as it is: it would obey some tags, and control characters are escaped."""
    return html.escape(shown(text), quote=False)


def _draw(panel: Panel, look: dict[str, Look]) -> Any:
    go: Any = importlib.import_module("plotly.graph_objects")
    made = go.Figure(layout={"template": "none"})
    for curve in panel.curves:
        made.add_trace(go.Scatter(**_trace(panel, look[curve.peer], curve.xs, curve.ys), name=named(curve.peer)))
        if curve.low:
            up = [high - middle for high, middle in zip(curve.high, curve.ys, strict=True)]
            down = [middle - low for low, middle in zip(curve.low, curve.ys, strict=True)]
            made.data[-1].error_y = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3}
    made.update_layout(
        height=HEIGHT,
        margin={"l": 70, "r": 20, "t": 28, "b": 40},
        hovermode="x unified" if panel.kind == TIME else "closest",
        legend=LEGEND,
        showlegend=True,
        xaxis=_axis(panel.x_label, panel.ticks, log=panel.log_x),
        yaxis=_axis(panel.y_label, panel.y_ticks, log=panel.log_y and panel.y_ticks is not None),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    if panel.kind == LATENCY:
        _name_percentiles(made, panel)
        made.update_xaxes(range=[-0.04, max(curve.xs[-1] for curve in panel.curves) + 0.06])
    if panel.kind == TIME and not any(value < 0 for curve in panel.curves for value in curve.ys):
        made.update_yaxes(rangemode="tozero")
    return made


def _trace(panel: Panel, look: Look, xs: list[float], ys: list[float]) -> dict[str, Any]:
    line = {"color": look.colour, "width": look.width, "dash": look.dash[1]}
    trace: dict[str, Any] = {"x": xs, "y": ys, "line": line, "mode": "lines", "zorder": int(look.width > 2)}
    if panel.kind == LATENCY:
        line["shape"] = "vh"  # an operation at a percentile took no longer than the next point
    elif panel.kind != TIME:
        trace |= {"mode": "lines+markers", "marker": {"symbol": look.marker[1], "size": 8}}
    return trace


def _name_percentiles(made: Any, panel: Panel) -> None:
    """Say percentiles, not tails, where the pointer is."""
    for trace, curve in zip(made.data, panel.curves, strict=True):
        trace.text = [f"{100 - 10 ** (2 - tail):.6g} %" for tail in curve.xs]
        trace.hovertemplate = "%{text}: %{y:.4s} ns<extra>%{fullData.name}</extra>"


def _axis(label: str, ticks: Sequence[tuple[float, str]] | None, *, log: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": {"text": named(label), "standoff": 10},
        "type": "log" if log else "linear",
        "zeroline": False,
    }
    if ticks is not None:
        axis |= {"tickvals": [place for place, _ in ticks], "ticktext": [text for _, text in ticks]}
    return axis
