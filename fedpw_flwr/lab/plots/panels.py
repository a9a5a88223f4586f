"""What every plot is made of: pages of panels in one style.

Whatever draws does so in `STYLE`, by ``@matplotlib.rc_context(STYLE)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.plots.labels import LABEL_SIZE, LEADER, label_points, wrapped
from fedpw_flwr.lab.plots.looks import FAINT, INK, Look
from fedpw_flwr.lab.runs.written import number

BESIDE_LABELS = 0.8 + 6.2 + LEADER  # inches: a panel with its numbers, as far as to its labels
PAGE_WIDTH = BESIDE_LABELS + 1.7
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": LABEL_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a name with a dollar sign is no formula
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
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
}


@matplotlib.rc_context(STYLE)
def new_page(
    title: str,
    text: str,
    heights: Sequence[float],
    *,
    width: float = PAGE_WIDTH,
    columns: int = 1,
    panels: int | None = None,
    labels: tuple[str, str] = ("round", ""),
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a heading, and below it rows of panels that are so many inches high.

    The text is what one has to know to read the plot; its lines are broken where they are wider
    than the page. `panels` is the number of panels, where they do not fill the last row; those in
    several columns have one vertical scale. `labels` name the lowest panels' horizontal axes and
    the first ones' vertical axes.
    """
    width = max(width, 6.0)  # in which headings are legible
    lines = wrapped(text, width - 0.3)
    heading = 0.46 + 0.155 * len(lines)
    height = heading + sum(heights) + 0.45 * len(heights) + 0.3
    # Panels begin and end where the heading does.
    room = (0.05 / width, 0.0, 1 - 0.1 / width, 1 - heading / height)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, rect=room)
    figure = Figure((width, height), facecolor="white", layout=layout)
    place: dict[str, Any] = {"x": 0.15 / width, "va": "top"}
    figure.text(y=1 - 0.12 / height, s=title, fontsize=13, fontweight="bold", **place)
    figure.text(y=1 - 0.38 / height, s="\n".join(lines), color="#555555", **place)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    count = panels or len(heights) * columns
    for index in range(count):
        beside = figure.axes[0] if index and columns > 1 else None
        axes = figure.add_subplot(grid[divmod(index, columns)], sharey=beside)
        lowest, first = index + columns >= count, index % columns == 0
        axes.tick_params(labelbottom=lowest, labelleft=first)
        axes.set_xlabel(labels[0] if lowest else "")
        axes.set_ylabel(labels[1] if first else "")
    return figure, list(figure.axes)


def set_round_axis(axes: Axes, rounds: pd.Index, **ticks: Any) -> None:
    """Let the horizontal axis span the rounds, with ticks at whole ones."""
    first, last = float(rounds[0]), float(rounds[-1])
    axes.set_xlim(*((first, last) if last > first else (first - 0.5, last + 0.5)))
    steps = {"steps": [1, 2, 5, 10], **ticks}
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, **steps))


def draw_lines(
    axes: Axes, values: pd.DataFrame, looks: Mapping[str, Look], *, unit: str, digits: int
) -> None:
    """Draw a line a column over the rounds, each with its name and last value at its end."""
    ends = []
    for name, column in values.items():
        look = looks[str(name)]
        draw_line(axes, column, markersize=2.2 * look.width, **look.line)
        known = column.dropna()
        if len(known):
            text = f"{look.label}: {number(known.iloc[-1], digits)}{unit}"
            ends.append((known.index[-1], known.iloc[-1], text, look.line))
    set_round_axis(axes, values.index)
    label_points(axes, ends)


def draw_line(axes: Axes, values: pd.Series, **look: Any) -> None:
    """Draw a line over rounds, with a mark at each point that has no neighbour to go on to."""
    known = values.notna().to_numpy()
    beside = np.pad(known, 1)
    lone = np.flatnonzero(known & ~beside[:-2] & ~beside[2:]).tolist()
    axes.plot(values, "o", markevery=lone, markeredgewidth=0, zorder=3, **look)


def save_plots(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write figures as PNG files under their names, each whole or not at all."""
    for name, figure in figures.items():
        with atomic_file(folder / name) as partial:
            figure.savefig(partial, format="png")
    return [folder / name for name in figures]
