"""A picture's page: its size, its heading, its axes, and names short enough to stand on it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from fedpw_flwr.experiment.panels import LABEL_SIZE, add_panel, write_title

__all__ = ["add_axes", "fitted", "new_page", "shortened", "text_width", "widest"]

LONGEST_NAME = 46  # characters
TITLE_HEIGHT = 0.46  # inches that the title takes from the top
SUBTITLE_PITCH = 0.155  # inches from one line below it to the next
LEAST_WIDTH = 6.0  # inches


def new_page(width: float, height: float, title: str, texts: Iterable[str]) -> Figure:
    """Make a figure with a heading.

    Parameters
    ----------
    width : float
        In inches; at least 6, in which headings are legible.
    height : float
        Of what is below the heading, in inches.
    title : str
        The first line.
    texts : Iterable[str]
        What one has to know to read the picture; broken to the width.
    """
    width = max(width, LEAST_WIDTH)
    lines = [line for text in texts for line in _wrapped(text, width - 0.3)]
    heading = TITLE_HEIGHT + SUBTITLE_PITCH * len(lines)
    figure = Figure(figsize=(width, height + heading), facecolor="white")
    write_title(figure, title, "\n".join(lines))
    for text in figure.texts:
        # A name with a dollar sign is no formula.
        text.set_parse_math(False)
    return figure


def add_axes(figure: Figure, *, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches from the figure's lower left corner."""
    axes = add_panel(figure, bottom=bottom, height=height)
    total_width, total_height = figure.get_size_inches()
    axes.set_position(
        (left / total_width, bottom / total_height, width / total_width, height / total_height)
    )
    return axes


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
