"""A plot's page: its size, its heading, its panels, and names short enough to stand on it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path

from fedpw_flwr.lab.plots.panels import INK, LABEL_SIZE, style_panel, write_title

__all__ = [
    "fitted",
    "name_panel",
    "name_rows",
    "new_page",
    "shortened",
    "text_width",
    "widest",
]

LONGEST_NAME = 46  # characters
TITLE_HEIGHT = 0.46  # inches that the title takes from the top
SUBTITLE_PITCH = 0.155  # inches from one line below it to the next
AXIS_HEIGHT = 0.42  # inches that the lowest panels' horizontal axes take
LEAST_WIDTH = 6.0  # inches


def new_page(
    title: str,
    texts: Iterable[str],
    *,
    width: float,
    height: float,
    panels: int = 1,
    columns: int = 1,
    labels: tuple[str, str] = ("", ""),
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a heading and panels, which matplotlib's constrained layout places.

    Parameters
    ----------
    title : str
        The first line.
    texts : Iterable[str]
        What one has to know to read the plot; broken to the width.
    width : float
        In inches; at least 6, in which headings are legible.
    height : float
        Of one row of panels with their names, in inches.
    panels, columns : int (default: 1)
        How many panels there are, and how many of them stand in a row.
    labels : tuple[str, str] (default: none)
        What the lowest panels' horizontal axes show, and the first ones' vertical axes.
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
    for text in figure.texts:
        # A name with a dollar sign is no formula.
        text.set_parse_math(False)
    grid = figure.add_gridspec(rows, columns)
    for index in range(panels):
        axes = figure.add_subplot(grid[divmod(index, columns)])
        style_panel(axes)
        lowest, first = index + columns >= panels, index % columns == 0
        axes.tick_params(labelbottom=lowest, labelleft=first)
        axes.set_xlabel(labels[0] if lowest else "")
        axes.set_ylabel(labels[1] if first else "")
    return figure, list(figure.axes)


def name_panel(axes: Axes, name: str, size: float = LABEL_SIZE) -> None:
    """Write what a panel shows above it, at the left."""
    axes.set_title(name, loc="left", fontsize=size, color=INK, parse_math=False)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Let the vertical axis name rows from top to bottom, and the horizontal one have the grid."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)


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


def text_width(text: str, size: float = LABEL_SIZE) -> float:
    """Return the width in inches of a text of that many points."""
    font = FontProperties(size=size)
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    # On the screen, letters are fitted to pixels and become somewhat wider.
    return 1.04 * float(points) / 72


def widest(texts: Iterable[str], size: float = LABEL_SIZE) -> float:
    """Return the width in inches of the widest of these texts."""
    return max((text_width(text, size) for text in texts), default=0.0)


def _wrapped(text: str, width: float) -> list[str]:
    """Break a text into lines that are not wider than `width` inches."""
    characters = max(16, int(len(text) * width / max(text_width(text), 1e-9)))
    while True:
        lines = textwrap.wrap(text, characters) or [""]
        if characters <= 16 or widest(lines) <= width:
            return lines
        characters -= 2
