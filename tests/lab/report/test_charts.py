"""Charts as PNG: what is drawn, how peers look there, and that names are no markup."""

from __future__ import annotations

import pytest
from reports import PEERS, make_hostile, make_odd, make_report
from support import run_child

from realalloc.lab.report import charts
from realalloc.lab.report.palette import looks
from realalloc.lab.results import Report
from realalloc.lab.series import Series

REPORT = make_report(12, 5, 2000)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_every_line_looks_as_its_peer_does() -> None:
    look = looks(PEERS)
    made = charts.figure(REPORT)
    for axes in made.axes:
        drawn = [line.get_color() for line in axes.get_lines()]
        assert drawn == [look[peer].colour for peer in PEERS]
    assert [text.get_text() for text in made.legends[0].get_texts()] == list(PEERS)


def test_axes() -> None:
    latency, throughput, time = (charts.figure(REPORT).axes[k] for k in (0, 6, 7))
    assert [text.get_text() for text in latency.get_xticklabels()] == ["0", "50", "90", "99", "99.9"]
    assert latency.get_yscale() == "log" and throughput.get_xscale() == "log" and time.get_yscale() == "linear"
    assert [text.get_text() for text in throughput.get_xticklabels()] == ["64 B", "512 B", "4 KiB", "64 KiB", "1 MiB"]


@pytest.mark.parametrize(("name", "report"), make_odd().items())
def test_odd_reports(name: str, report: Report) -> None:
    assert charts.png(charts.figure(report)).startswith(SIGNATURE)


def test_hostile_names_are_drawn_as_they_are() -> None:
    made = charts.figure(make_hostile())
    assert charts.png(made).startswith(SIGNATURE)
    text = made.legends[0].get_texts()[1]
    assert text.get_text().startswith("glibc<script>") and not text.get_parse_math()
    assert (
        r"latency of _<script>" in made.axes[0].get_title(loc="left") and not made.axes[0]._left_title.get_parse_math()
    )


def test_more_charts_than_a_picture_takes() -> None:
    report = make_report(1, 2, 20)
    report.rows = [report.rows[2]] * 30
    made = charts.figure(report)
    assert len(made.axes) == charts.MOST_PANELS
    assert any("21 more charts" in text.get_text() for text in made.texts)


def test_a_series_alone() -> None:
    series = Series((0.0, 1.0), {"RSS": (2.0**20, 2.0**21), "_committed": (float("nan"), 2.0**20)})
    made = charts.series_figure(series, "stress: $x$")
    assert charts.png(made).startswith(SIGNATURE)
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["RSS", "_committed"]
    assert made.axes[0].get_ylabel() == "MiB"


def test_the_global_state_of_matplotlib_stays() -> None:
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from realalloc.lab.report import charts; from realalloc.lab.series import Series\n"
        "charts.png(charts.series_figure(Series((0.0, 1.0), {'a': (1.0, 2.0)}), 't'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(matplotlib.rcParams) == before"
    )
    done = run_child(code, env={"MPLBACKEND": "agg"})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
