"""Series as figures: PNG by matplotlib, for a page by plotly. Nothing here knows what was measured.

Guarantees: works without a display, and leaves matplotlib's global state as it is. matplotlib and plotly are imported when
they are used; where they are missing, ImportError comes of it.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Mapping
from typing import Any, Final

from realalloc.lab.report.panels import Panel, series_panel
from realalloc.lab.series import Series

PANEL_INCHES: Final = (7.0, 2.6)
DPI: Final = 110
PANEL_PIXELS: Final = 260


def png(columns: Mapping[str, Mapping[str, Series]], heading: str) -> bytes:
    """Draw series under each other, one column a process, and return the picture."""
    from matplotlib.figure import Figure

    down = max((len(found) for found in columns.values()), default=1)
    width, height = PANEL_INCHES[0] * max(1, len(columns)), PANEL_INCHES[1] * down + 0.6
    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    made.suptitle(heading, x=0.01, ha="left", size=11, parse_math=False)
    for across, (process, found) in enumerate(columns.items()):
        for row, (name, series) in enumerate(found.items()):
            axes = made.add_subplot(down, len(columns), row * len(columns) + across + 1)
            _draw(axes, series_panel(series, f"{process}: {name}"))
    out = io.BytesIO()
    made.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    for curve in panel.curves:
        axes.plot(curve.xs, curve.ys, label=curve.peer, linewidth=1.2)
    axes.set_title(panel.title, loc="left", size=10, parse_math=False)
    axes.set_ylabel(panel.y_label)
    axes.set_xlabel(panel.x_label)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def plot(found: Mapping[str, Series]) -> Any:
    """Draw series under each other; a plotly ``Figure``."""
    from plotly import subplots

    scatter: Any = importlib.import_module("plotly.graph_objects").Scatter  # which does not say what it exports

    titles = list(found) or ["nothing was sampled"]
    made: Any = subplots.make_subplots(
        rows=len(titles), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.06
    )
    for row, panel in enumerate((series_panel(series, name) for name, series in found.items()), start=1):
        for curve in panel.curves:
            drawn = [value if math.isfinite(value) else None for value in curve.ys]
            made.add_trace(scatter(x=curve.xs, y=drawn, name=curve.peer, mode="lines"), row=row, col=1)
        made.update_yaxes(title_text=panel.y_label, rangemode="tozero", row=row, col=1)
    made.update_xaxes(title_text="seconds", row=len(titles), col=1)
    made.update_layout(template="plotly_white", height=PANEL_PIXELS * len(titles), margin={"t": 40, "b": 40})
    return made
