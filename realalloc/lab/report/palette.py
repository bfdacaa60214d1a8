"""How a peer looks in every chart: the same colour, dash and marker everywhere, told apart without colours too.

Colours are those of Okabe and Ito that can be read on white and on black, so that colour-blind readers tell them apart; from
the ninth peer on they come again, dashed, but for the first. Ours comes first (``Report.peers``) and is thicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from realalloc.lab.results import is_ours

COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#9467BD")
DASHES: Final = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))  # matplotlib's, plotly's
MARKERS: Final = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("X", "x"),
    ("P", "cross"),
    ("<", "triangle-left"),
    (">", "triangle-right"),
    ("p", "pentagon"),
    ("*", "star"),
    ("h", "hexagon"),
)


@dataclass(frozen=True, slots=True)
class Look:
    """How the lines of one peer are drawn: pairs are (matplotlib's name, plotly's name)."""

    colour: str
    dash: tuple[str, str]
    marker: tuple[str, str]
    width: float


def looks(peers: Sequence[str]) -> dict[str, Look]:
    """Return the look of each, by its place."""
    others = COLOURS[1:]
    look = {}
    for place, peer in enumerate(peers):
        again, which = divmod(place - 1, len(others)) if place else (0, -1)
        colour = others[which] if place else COLOURS[0]
        width = 2.6 if is_ours(peer) else 1.5
        look[peer] = Look(colour, DASHES[again % len(DASHES)], MARKERS[place % len(MARKERS)], width)
    return look
