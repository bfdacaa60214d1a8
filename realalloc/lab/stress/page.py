"""A verdict as files: one HTML page that needs nothing else, one picture; and how a file is written, whole or not at all.

Guarantees: the page loads nothing from anywhere; whatever a text says is text, as the template escapes all but plotly's own
output. ``check_file`` says before a run what ``write`` would only say after it, and leaves nothing behind.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
from pathlib import Path
from typing import Any, Final

from realalloc.lab.results import Series
from realalloc.lab.stress import charts  # which imports what draws when it draws
from realalloc.lab.stress.records import Verdict
from realalloc.lab.stress.reproduce import command

EXTRA: Final = {"--png": ("matplotlib",), "--html": ("plotly", "jinja2")}
TEMPLATE: Final = Path(__file__).with_name("page.html.j2")


def check_file(option: str, path: str) -> None:
    """Raise what would keep a report from being written: ValueError that names the extra, or the OSError of the path."""
    missing = [name for name in EXTRA[option] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{option} needs {' and '.join(missing)}: pip install 'realalloc[plot]'")
    if Path(path).is_dir():
        raise IsADirectoryError(21, os.strerror(21), path)
    if Path(path).exists() and not os.access(path, os.W_OK):
        raise PermissionError(13, os.strerror(13), path)
    beside = _beside(path)
    try:
        beside.touch(exist_ok=False)
    except OSError as error:  # the user knows the path, not the temporary name
        error.filename = path
        raise
    beside.unlink()


def write(path: str, data: bytes) -> None:
    """Write a file under a temporary name, then give it its own."""
    beside = _beside(path)
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: str) -> Path:
    return Path(path).with_name(f".realalloc-{secrets.token_hex(8)}")


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
