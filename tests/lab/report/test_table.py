"""The tables of a report on a terminal: they fit, they say what they must, and nothing in them is obeyed."""

from __future__ import annotations

import pytest
from reports import make_hostile, make_odd, make_report

from realalloc.lab.report import print_report
from realalloc.lab.report.table import report_lines
from realalloc.lab.results import Report
from realalloc.text import cell_width

REPORT = make_report(12, 15, 3000)


def text_of(report: Report, width: int) -> str:
    return "\n".join(line.text for line in report_lines(report, width))


@pytest.mark.parametrize("width", [*range(40, 101, 5), 120, 160, 200, 300])
def test_every_line_fits(width: int) -> None:
    assert max(cell_width(line.text) for line in report_lines(REPORT, width)) <= width


def test_narrower_than_forty_is_forty() -> None:
    assert text_of(REPORT, 1) == text_of(REPORT, 40)


def test_eighty_columns_have_all_that_matters() -> None:
    text = text_of(REPORT, 80)
    for peer in REPORT.peers:
        assert text.count(f"{peer} ") >= len(REPORT.rows)
    for word in ("p50", "p90", "p99", "p99.9", "p99.99", "max", "x best", "95 %", "faults", "switches", "moves"):
        assert f" {word}" in text
    assert "the loop alone 0.9ns" in text and "the clock adds 8.2ns to each, not" in text
    for remark in (
        "skipped: snmalloc: no shared library found",
        "skipped: pyarrow: not installed",
        "warning: the machine",
    ):
        assert text.count(f"\n{remark}") == 1
    assert "AMD EPYC 7B13" in text and "reading the clock 8.2ns" in text


def test_a_column_a_peer_only_where_all_fit() -> None:
    assert "ns per operation, everyone" not in text_of(REPORT, 200)
    wide = text_of(REPORT, 220)
    assert "ns per operation, everyone" in wide
    head = next(line for line in wide.splitlines() if line.startswith("    row") and "glibc" in line)
    assert all(peer in head for peer in REPORT.peers)


def test_the_best_is_marked_and_those_that_cannot_be_told_apart() -> None:
    lines = text_of(make_report(2, 15, 0), 100).splitlines()
    start = lines.index("pair 64 B: ns per alloc + free")
    best, other = lines[start + 3 : start + 5]
    assert best.startswith("  * realalloc ") and best.split()[-1] == "1.00"
    assert other.startswith("    glibc ")
    styles = {line.style for line in report_lines(REPORT, 100) if line.text.startswith("  * ")}
    assert styles == {"bold green"}


def test_counters_that_are_zero_have_no_column() -> None:
    report = make_report(3, 4, 0)
    report.rows = report.rows[:1]
    text = text_of(report, 200)
    assert "faults" not in text and "switches" not in text


@pytest.mark.parametrize(("name", "report"), make_odd().items())
@pytest.mark.parametrize("width", [40, 80, 200])
def test_odd_reports(name: str, report: Report, width: int) -> None:
    text = text_of(report, width)
    assert "nan" not in text and "inf" not in text
    assert ("no row was measured" in text) == (not report.rows)
    assert ("interrupted: what was" in text) == report.interrupted
    assert all(cell_width(line) <= width for line in text.splitlines())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_hostile_names_are_escaped(width: int) -> None:
    lines = [line.text for line in report_lines(make_hostile(), width)]
    assert all(line.isprintable() and cell_width(line) <= width for line in lines)


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    print_report(REPORT)
    out, err = capsys.readouterr()
    assert (out, err) == (text_of(REPORT, 90) + "\n", "")
    print_report(REPORT, 70)
    assert capsys.readouterr().out == text_of(REPORT, 70) + "\n"
