"""The page: one file, no network, nothing of it is obeyed that a name says, and the data are in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import HOSTILE, make_hostile, make_odd, make_report

from realalloc.lab.report import page, plots, save
from realalloc.lab.report.palette import looks
from realalloc.lab.results import Report
from realalloc.lab.series import Series
from realalloc.text import shown


class Parts(HTMLParser):
    """Collects tags, the text that a person sees, and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.text.append(data)

    def data(self, name: str) -> object:
        (text,) = (text for attrs, text in self.scripts if attrs.get("id") == name)
        return json.loads(text)


def parse(report: Report) -> Parts:
    parts = Parts()
    parts.feed(page.html_page(report))
    parts.close()
    return parts


def test_nothing_is_loaded_from_anywhere() -> None:
    parts = parse(make_report(3, 4, 500))
    for tag, attrs in parts.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    (policy,) = (attrs["content"] for _, attrs in parts.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")
    assert not re.search("https?:|connect-src|\\*", policy)
    style = next(text for attrs, text in parts.scripts if not attrs and "--ink" in text)
    assert "url(" not in style and "@import" not in style


def test_the_data_are_in_it() -> None:
    report = make_report(3, 4, 500)
    parts = parse(report)
    assert Report.from_dict(parts.data("report-data")) == report
    figures = parts.data("figure-data")
    assert isinstance(figures, list) and len(figures) == 8
    assert sum("data-figure" in attrs for _, attrs in parts.tags) == 8
    text = " ".join(" ".join(parts.text).split())
    for word in (
        "How to read it",
        "bootstrap",
        "snmalloc: no shared library found",
        "the machine is busy",
        "AMD EPYC",
        "p99.99",
    ):
        assert word in text
    assert len([text for attrs, text in parts.scripts if "Plotly" in text and len(text) > 10**6]) == 1


def test_hostile_names_are_text() -> None:
    report = make_hostile()
    parts, plain = parse(report), parse(make_report(3, 4, 2000))
    assert [tag for tag, _ in parts.tags if tag == "script"] == [tag for tag, _ in plain.tags if tag == "script"]
    assert Report.from_dict(parts.data("report-data")) == report
    seen = "".join(parts.text)
    assert shown(HOSTILE) in seen and "\x1b" not in seen and "\u202e" not in seen
    for figure in parts.data("figure-data"):  # type: ignore[attr-defined]
        assert "<script" not in json.dumps([figure["layout"], [trace["name"] for trace in figure["data"]]])


@pytest.mark.parametrize(("name", "report"), make_odd().items())
def test_odd_reports(name: str, report: Report) -> None:
    parts = parse(report)
    text = " ".join("".join(parts.text).split())
    assert ("No row was measured." in text) == (not report.rows)
    assert ("This run was interrupted." in text) == report.interrupted
    assert not re.search(r"\b(nan|inf)\b", text)
    drawn = sum("data-figure" in attrs for _, attrs in parts.tags)
    assert bool(drawn) == any("Plotly" in text and len(text) > 10**6 for _, text in parts.scripts)


def test_peers_look_as_in_the_pictures() -> None:
    report = make_report(12, 3, 100)
    look = looks(report.peers)
    for _, figure in plots.figures(report):
        for trace in figure["data"]:
            assert trace["line"]["color"] == look[trace["name"]].colour


def test_a_series_alone() -> None:
    figure = plots.as_data(plots.series_figure(Series((0.0, 1.0), {"RSS": (float("nan"), 2.0**20)}), "stress"))
    assert figure["data"][0]["y"] == [None, 1.0]
    assert figure["layout"]["yaxis"]["title"]["text"] == "MiB"


def test_save_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report(2, 3, 50)
    save(report, json=tmp_path / "r.json", csv=tmp_path / "r.csv", html=tmp_path / "r.html", png=tmp_path / "r.png")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".html", ".json", ".png"]
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(page, "html_page", lambda _report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(report, json=tmp_path / "r.json", html=tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
