"""A plot's page: its style, its heading, its panels, and names short enough to stand on it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path

from fedpw_flwr.lab.plots.panels import FAINT, INK, LABEL_SIZE, write_title

LONGEST_NAME = 46  # characters
TITLE_HEIGHT = 0.46  # inches that the title takes from the top
SUBTITLE_PITCH = 0.155  # inches from one line below it to the next
AXIS_HEIGHT = 0.42  # inches that the lowest panels' horizontal axes take
LEAST_WIDTH = 6.0  # inches, in which headings are legible

STYLE: dict[Any, Any] = {
    "font.size": LABEL_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a name with a dollar sign is no formula
    "axes.titlelocation": "left",
    "axes.titlesize": LABEL_SIZE,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "lines.markeredgecolor": "white",
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.borderaxespad": 0.0,
}
"""Matplotlib's settings in which all plots of a comparison are drawn."""


def new_page(
    title: str,
    texts: Iterable[str],
    *,
    width: float,
    height: float,
    panels: int = 1,
    columns: int = 1,
    labels: tuple[str, str] = ("", ""),
    same_heights: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a heading and panels, which matplotlib's constrained layout places.

    `texts` is what one has to know to read the plot; `width` is the figure's in inches, `height`
    that of one row of panels. `labels` name the lowest panels' horizontal axes, and the first ones'
    vertical axes, which all panels share if they have the `same_heights`.
    """
    width = max(width, LEAST_WIDTH)
    lines = [line for text in texts for line in _wrapped(text, width - 0.3)]
    heading = TITLE_HEIGHT + SUBTITLE_PITCH * len(lines)
    rows = math.ceil(panels / columns)
    total = heading + rows * height + AXIS_HEIGHT
    # Panels begin and end where the heading does.
    room = (0.05 / width, 0.0, 1 - 0.1 / width, 1 - heading / total)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, rect=room)
    figure = Figure((width, total), facecolor="white", layout=layout)
    write_title(figure, title, "\n".join(lines))
    for index in range(panels):
        beside = figure.axes[0] if index and same_heights else None
        axes = figure.add_subplot(rows, columns, index + 1, sharey=beside)
        lowest, first = index + columns >= panels, index % columns == 0
        axes.tick_params(labelbottom=lowest, labelleft=first)
        axes.set_xlabel(labels[0] if lowest else "")
        axes.set_ylabel(labels[1] if first else "")
    return figure, list(figure.axes)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Let the vertical axis name rows from top to bottom, and the horizontal one have the grid."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.grid(axis="x")


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Shorten a long name in its middle: what tells names apart is often the end."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def fitted(label: str, width: float) -> str:
    """Shorten a label until it is no wider than `width` inches."""
    longest = len(label)
    while longest > 8 and text_width(shortened(label, longest)) > width:
        longest -= 1
    return shortened(label, longest)


def text_width(text: str) -> float:
    """Return the width of a label in inches."""
    font = FontProperties(size=LABEL_SIZE)
    points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    # On the screen, letters are fitted to pixels and become somewhat wider.
    return 1.04 * float(points) / 72


def widest(texts: Iterable[str]) -> float:
    """Return the width in inches of the widest of these labels."""
    return max(map(text_width, texts), default=0.0)


def _wrapped(text: str, width: float) -> list[str]:
    """Break a text into lines that are not wider than `width` inches."""
    lines, characters = [text], len(text)
    while characters > 16 and widest(lines) > width:
        characters -= 2
        lines = textwrap.wrap(text, characters)
    return lines
