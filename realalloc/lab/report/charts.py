"""Charts as PNG, by matplotlib.

Guarantees: works without a display and leaves matplotlib's global state (backend, pyplot, rcParams) as it is.
May not: let names be markup: matplotlib's mathtext is off, and what its font cannot draw is escaped.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from realalloc.lab.report.palette import Look, looks
from realalloc.lab.report.panels import LATENCY, THROUGHPUT, TIME, Panel, panels, series_panel
from realalloc.lab.results import Report
from realalloc.lab.series import Series
from realalloc.text import shortened, shown

COLUMNS: Final = 2
PANEL_INCHES: Final = (7.6, 4.7)
DPI: Final = 110
MOST_PANELS: Final = 40  # of one picture; the page has all
LEGEND_INCHES: Final = 0.24  # a line of names
TITLE_INCHES: Final = 0.75
LONGEST: Final = 70  # characters of a title
INK, GRID = "#222222", "#DDDDDD"


def figure(report: Report) -> Any:
    """Draw all panels of a report, under one legend; a matplotlib ``Figure``."""
    found = panels(report)
    left_out = max(0, len(found) - MOST_PANELS)
    note = f"{left_out} more charts are in the HTML report" if left_out else "" if found else "nothing to draw"
    heading = f"{report.command}   {report.started}".strip()
    return _draw(found[:MOST_PANELS], looks(report.peers), heading, note)


def series_figure(series: Series, title: str) -> Any:
    """Draw numbers over time; a matplotlib ``Figure``."""
    return _draw([series_panel(series, title)], looks(list(series.columns)), "", "")


def png(made: Any) -> bytes:
    """Return a figure as PNG."""
    out = io.BytesIO()
    made.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def _draw(found: Sequence[Panel], look: dict[str, Look], heading: str, note: str) -> Any:
    from matplotlib.figure import Figure

    across = min(COLUMNS, max(1, len(found)))
    down = max(1, -(-len(found) // across))
    used = [peer for peer in look if any(curve.peer == peer for panel in found for curve in panel.curves)]
    columns = max(1, min(len(used), 4 * across))
    legend_inches = LEGEND_INCHES * (-(-len(used) // columns) + 0.7) if used else 0.0
    title_inches = TITLE_INCHES if heading or note else 0.1
    width, height = across * PANEL_INCHES[0], down * PANEL_INCHES[1] + legend_inches + title_inches
    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    engine: Any = made.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - (legend_inches + title_inches) / height), w_pad=0.12, h_pad=0.14)
    if heading or note:
        made.text(
            0.012, 1 - 0.2 / height, drawn(heading), size=14, weight="bold", va="top", color=INK, parse_math=False
        )
        made.text(0.988, 1 - 0.24 / height, note, size=10, ha="right", va="top", color=INK)
    for place, panel in enumerate(found, start=1):
        _panel(made.add_subplot(down, across, place), panel, look)
    if used:
        _legend(made, [(peer, look[peer]) for peer in used], columns, 1 - title_inches / height)
    return made


def drawn(text: str) -> str:
    """Return text that the font of matplotlib has: escaped beyond Latin-1."""
    return shown(text).encode("latin-1", "backslashreplace").decode("latin-1")


def _legend(made: Any, used: Sequence[tuple[str, Look]], columns: int, top: float) -> None:
    from matplotlib import lines as drawing

    line_of: Any = drawing.Line2D
    lines = [
        line_of([], [], color=look.colour, linestyle=look.dash[0], marker=look.marker[0], lw=look.width, ms=5)
        for _, look in used
    ]
    numbers = [str(k) for k in range(len(used))]  # a label that begins with "_" would be left out
    legend = made.legend(lines, numbers, loc="upper center", bbox_to_anchor=(0.5, top), ncols=columns, frameon=False)
    for text, (peer, _) in zip(legend.get_texts(), used, strict=True):
        text.set(text=shortened(drawn(peer), 28), parse_math=False, color=INK)


def _panel(axes: Any, panel: Panel, look: dict[str, Look]) -> None:
    for curve in panel.curves:
        style = look[curve.peer]
        over = 3 if style.width > 2 else 2
        common = {"color": style.colour, "linestyle": style.dash[0], "linewidth": style.width, "zorder": over}
        if panel.kind != TIME:
            common |= {"marker": style.marker[0], "markersize": 4.5, "markevery": _every(panel, len(curve.xs))}
        axes.plot(curve.xs, curve.ys, drawstyle="steps-pre" if panel.kind == LATENCY else "default", **common)
        if curve.low:
            axes.fill_between(curve.xs, curve.low, curve.high, color=style.colour, alpha=0.18, lw=0, zorder=1)
    axes.set_title(shortened(drawn(panel.title), LONGEST), loc="left", size=11, color=INK, parse_math=False)
    axes.set_xlabel(panel.x_label, color=INK)
    axes.set_ylabel(drawn(panel.y_label), color=INK, parse_math=False)
    if panel.log_x:
        axes.set_xscale("log", base=2)
    if panel.log_y and any(value > 0 for curve in panel.curves for value in curve.ys):
        axes.set_yscale("log")
    if panel.ticks is not None:
        axes.set_xticks([place for place, _ in panel.ticks], [text for _, text in panel.ticks])
        axes.set_xticks([], minor=True)
    if panel.y_ticks is not None:
        axes.set_yticks([place for place, _ in panel.y_ticks], [text for _, text in panel.y_ticks])
        axes.set_yticks([], minor=True)
    if panel.kind == TIME and not any(value < 0 for curve in panel.curves for value in curve.ys):
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    if panel.kind == THROUGHPUT and len(panel.ticks or ()) > 6:
        axes.tick_params(axis="x", rotation=30)


def _every(panel: Panel, points: int) -> int:
    """Return the distance of markers: every point of a few, every nine of a percentile curve's tail."""
    return max(1, points // 6) if panel.kind == LATENCY else 1
