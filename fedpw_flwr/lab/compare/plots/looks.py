"""How methods look: each has its colour, marker and line style in every plot of a comparison.

The colours are those of the plots of single runs (Okabe-Ito), and dark grey. From the eighth
method on they repeat with another line style. The numbers of colours and of markers have no common
factor, so that no two of the first 91 methods have both in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from fedpw_flwr.lab.compare.plots.page import shortened
from fedpw_flwr.lab.plots.panels import INK, PALETTE, LineStyle

COLORS = (INK, *PALETTE)
MARKERS = "os^DvPX<p>*hd"
# What a marker's size is multiplied by to look as large as the others.
SIZES = (1.0, 0.9, 1.1, 0.8, 1.1, 1.05, 1.05, 1.1, 1.1, 1.1, 1.45, 1.05, 1.05)
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    label: str  # its name, shortened
    color: str
    marker: str
    style: LineStyle

    def draw_points(
        self, axes: Axes, x: ArrayLike, y: ArrayLike, size: float, edge: float = 0.0, **more: Any
    ) -> None:
        """Draw its marker at points, in white edges; `size` is as large for every marker."""
        (line,) = axes.plot(x, y, self.marker, color=self.color, markeredgewidth=edge, **more)
        line.set_markersize(size * SIZES[MARKERS.index(self.marker)])


def give_looks(labels: Sequence[str]) -> dict[str, Look]:
    """Give each label of a method a look; the same order gives the same looks."""
    return {
        label: Look(
            label=shortened(label),
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            style=LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)],
        )
        for index, label in enumerate(dict.fromkeys(labels))
    }
