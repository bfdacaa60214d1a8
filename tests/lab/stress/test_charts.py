"""Series as figures."""

from __future__ import annotations

import math

import pytest
from stressed import rows

from realalloc.lab.series import Series
from realalloc.lab.stress import charts
from realalloc.lab.stress.sampling import as_series

SERIES = as_series(rows(4.0))


def test_bytes_are_drawn_as_mib() -> None:
    pytest.importorskip("plotly")
    series = {"memory": Series((0.0,), {"rss": (3.0 * (1 << 20),)}), "how many": Series((0.0,), {"n": (3.0,)}, "count")}
    made = charts.plot(series)
    assert [(line.name, line.y) for line in made.data] == [("rss", (3.0,)), ("n", (3.0,))]
    assert (made.layout.yaxis.title.text, made.layout.yaxis2.title.text) == ("MiB", "count")


@pytest.mark.parametrize("columns", [{"main": SERIES}, {"main": SERIES, "process $1$": SERIES}, {}])
def test_a_picture(columns: dict[str, dict[str, Series]]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    names = [name for name in matplotlib.rcParams if name != "backend"]  # to ask for that one chooses one

    def state() -> tuple[object, ...]:
        return matplotlib.get_backend(auto_select=False), [matplotlib.rcParams[name] for name in names]

    before = state()
    made = charts.png(columns, "realalloc stress $x_1$")
    assert made.startswith(b"\x89PNG\r\n") and made.endswith(b"IEND\xaeB`\x82")
    assert state() == before


def test_a_plot_has_every_column_and_no_gap_that_json_cannot_say() -> None:
    pytest.importorskip("plotly")
    made = charts.plot(SERIES)
    assert len(made.data) == sum(len(series.columns) for series in SERIES.values())
    verified = next(line for line in made.data if line.name == "verified")
    assert verified.y[0] is None and math.isfinite(verified.y[1])
    assert made.data[0].y[0] < 1000  # MiB
