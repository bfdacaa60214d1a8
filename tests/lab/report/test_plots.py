"""The charts of a page: the numbers of their panels, looks as in the pictures, and names that are text."""

from __future__ import annotations

import json

import pytest
from reports import PEERS, make_hostile, make_report

from realalloc.lab.report import plots
from realalloc.lab.report.palette import looks
from realalloc.lab.report.panels import LATENCY, THROUGHPUT, TIME, panels
from realalloc.lab.series import Series

pytest.importorskip("plotly")
REPORT = make_report(12, 5, 2000)


def test_figures_are_the_panels_and_their_numbers() -> None:
    look = looks(PEERS)
    drawn, wanted = plots.figures(REPORT), panels(REPORT)
    assert [title for title, _ in drawn] == [panel.title for panel in wanted]
    for (_, figure), panel in zip(drawn, wanted, strict=True):
        for line, curve in zip(figure["data"], panel.curves, strict=True):
            assert (line["name"], line["x"], line["y"]) == (curve.peer, curve.xs, curve.ys)
            assert line["line"]["color"] == look[curve.peer].colour
            assert line["line"]["dash"] == look[curve.peer].dash[1]
            assert ("error_y" in line) == (panel.kind == THROUGHPUT)
            assert line["mode"] == ("lines+markers" if panel.kind == THROUGHPUT else "lines")
        assert json.loads(json.dumps(figure)) == figure


def test_intervals_are_distances_from_the_middle() -> None:
    (panel,) = (panel for panel in panels(REPORT) if panel.kind == THROUGHPUT)
    figure = dict(plots.figures(REPORT))[panel.title]
    for line, curve in zip(figure["data"], panel.curves, strict=True):
        up, down = line["error_y"]["array"], line["error_y"]["arrayminus"]
        assert [middle + more for middle, more in zip(curve.ys, up, strict=True)] == pytest.approx(curve.high)
        assert [middle - less for middle, less in zip(curve.ys, down, strict=True)] == pytest.approx(curve.low)


def test_axes_are_the_panels() -> None:
    for (_, figure), panel in zip(plots.figures(REPORT), panels(REPORT), strict=True):
        across, up = figure["layout"]["xaxis"], figure["layout"]["yaxis"]
        assert (across["title"]["text"], up["title"]["text"]) == (panel.x_label, panel.y_label)
        assert across["type"] == ("log" if panel.log_x else "linear")
        assert across.get("ticktext") == (None if panel.ticks is None else [text for _, text in panel.ticks])
        assert (up.get("rangemode") == "tozero") == (panel.kind == TIME)


def test_the_pointer_says_percentiles_not_tails() -> None:
    (panel, *_), ((_, figure), *_) = panels(REPORT), plots.figures(REPORT)
    assert panel.kind == LATENCY
    for line, curve in zip(figure["data"], panel.curves, strict=True):
        said = [float(text.removesuffix(" %")) for text in line["text"]]
        assert said == pytest.approx([100 - 10 ** (2 - tail) for tail in curve.xs], rel=1e-5)


def test_names_are_text_and_grid_and_text_have_no_colour_of_their_own() -> None:
    assert plots.named("<b>a</b>\x1b[1m") == "&lt;b&gt;a&lt;/b&gt;\\x1b[1m"
    text = json.dumps([figure for _, figure in plots.figures(make_hostile())])
    assert "<script>" not in text
    for _, figure in plots.figures(REPORT):
        assert "font" not in figure["layout"] or "color" not in figure["layout"]["font"]
        assert figure["layout"]["paper_bgcolor"] == figure["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_a_gap_is_null_and_a_negative_number_is_in_sight() -> None:
    figure = plots.as_data(plots.series_figure(Series((0.0, 1.0), {"a": (float("nan"), -3.0)}, "count"), "t"))
    assert figure["data"][0]["y"] == [None, -3.0] and figure["layout"]["yaxis"].get("rangemode") != "tozero"
