"""How domains and methods look: each has its colour, marker and line style in every plot.

Colours repeat with another line style; the numbers of colours and of markers have no common factor,
so that no two of the first 78 names have both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedpw_flwr.report.charts import shortened

LineStyle = str | tuple[int, tuple[float, ...]]

# Okabe-Ito, for colour-blind people too, without black (the mean's) and yellow (lost on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#9A9A9A"

# By marker, what its size is multiplied by to look as large as the others.
MARKERS = {
    **{"o": 1.0, "s": 0.9, "^": 1.1, "D": 0.8, "v": 1.1, "P": 1.05, "X": 1.05},
    **{"<": 1.1, "p": 1.1, ">": 1.1, "*": 1.45, "h": 1.05, "d": 1.05},
}
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How one domain or method is drawn."""

    label: str  # its name, shortened
    color: str
    style: LineStyle
    marker: str = ""
    width: float = 1.6

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's properties of its line."""
        return {"color": self.color, "linestyle": self.style, "linewidth": self.width}

    def points(self, size: float, edge: float = 0.0) -> dict[str, Any]:
        """Return matplotlib's properties of its points; `size` is as large for every marker."""
        size = size * MARKERS[self.marker]
        own = {"color": self.color, "marker": self.marker, "linestyle": ""}
        return {**own, "markersize": size, "markeredgewidth": edge}


def give_looks(
    names: Iterable[str], colors: Sequence[str] = PALETTE, longest: int = 24
) -> dict[str, Look]:
    """Give each name a look, and a label of so many characters; the same order gives the same."""
    looks = {}
    for index, name in enumerate(dict.fromkeys(names)):
        repeat, color = divmod(index, len(colors))
        style = LINE_STYLES[repeat % len(LINE_STYLES)]
        marker = list(MARKERS)[index % len(MARKERS)]
        looks[name] = Look(shortened(name, longest), colors[color], style, marker)
    return looks


def method_looks(labels: Iterable[str]) -> dict[str, Look]:
    """Give methods looks; in their plots dark grey, which is the mean's elsewhere, is free."""
    return give_looks(labels, (INK, *PALETTE), longest=46)
