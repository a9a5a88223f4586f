"""Names and texts on a page: how wide they are, how to make them shorter, and names of rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

LABEL_SIZE = 9.0  # points


def shortened(name: str, longest: int) -> str:
    """Shorten a name to `longest` characters in its middle: names often differ in their ends."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def fitted(label: str, width: float) -> str:
    """Shorten a label until it is no wider than `width` inches."""
    longest = len(label)
    while longest > 8 and widest([shortened(label, longest)]) > width:
        longest -= 1
    return shortened(label, longest)


def wrapped(text: str, width: float) -> list[str]:
    """Break a text's lines into such as are not wider than `width` inches."""
    found: list[str] = []
    for line in text.splitlines():
        parts, characters = [line], len(line)
        while characters > 16 and widest(parts) > width:
            characters -= 2
            parts = textwrap.wrap(line, characters)
        found += parts
    return found


def widest(texts: Iterable[str]) -> float:
    """Return the width in inches of the widest of some labels."""
    font = FontProperties(size=LABEL_SIZE)
    measure = text_to_path.get_text_width_height_descent
    points = max((measure(text, font, ismath=False)[0] for text in texts), default=0.0)
    # On the screen, letters are fitted to pixels and become somewhat wider.
    return 1.04 * float(points) / 72


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Let the vertical axis name rows from top to bottom, and the horizontal one have the grid."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.grid(axis="x")
