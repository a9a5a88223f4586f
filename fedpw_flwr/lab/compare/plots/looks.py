"""How methods look: each has its colour, marker and line style in every plot of a comparison.

The colours are those of the plots of single runs (Okabe-Ito), and dark grey. From the eighth
method on they repeat with another line style. The numbers of colours and of markers have no common
factor, so that no two of the first 91 methods have both in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpw_flwr.lab.compare.plots.page import shortened
from fedpw_flwr.lab.plots.panels import INK, PALETTE, LineStyle

__all__ = ["Look", "give_looks"]

COLORS = (INK, *PALETTE)
MARKERS = {
    **{"o": 1.0, "s": 0.9, "^": 1.1, "D": 0.8, "v": 1.1, "P": 1.05, "X": 1.05, "<": 1.1},
    **{"p": 1.1, ">": 1.1, "*": 1.45, "h": 1.05, "d": 1.05},
}
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How one method is drawn.

    Attributes
    ----------
    label : str
        Its name, shortened.
    color : str
        Hexadecimal.
    marker : str
        As matplotlib names it.
    marker_size : float
        What its size is to be multiplied by to look as large as the others.
    style : LineStyle
        Of its line.
    """

    label: str
    color: str
    marker: str
    marker_size: float
    style: LineStyle


def give_looks(labels: Sequence[str]) -> dict[str, Look]:
    """Give each label of a method a look; the same order gives the same looks."""
    markers = list(MARKERS.items())
    return {
        label: Look(
            label=shortened(label),
            color=COLORS[place % len(COLORS)],
            marker=markers[place % len(markers)][0],
            marker_size=markers[place % len(markers)][1],
            style=LINE_STYLES[place // len(COLORS) % len(LINE_STYLES)],
        )
        for place, label in enumerate(dict.fromkeys(labels))
    }
