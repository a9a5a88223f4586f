"""Panels with labels of their own on the right, of which every picture of a run is made.

No legend to look up: a line or a layer ends in its name and its figure, moved apart just so far
that none overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

__all__ = [
    "FAINT",
    "INK",
    "LABEL_SIZE",
    "PALETTE",
    "FloatArray",
    "Line",
    "LineStyle",
    "add_panel",
    "label_ends",
    "new_figure",
    "panel_height",
    "set_round_axis",
    "spread_out",
    "write_label",
    "write_title",
]

FloatArray = NDArray[np.float64]
LineStyle = str | tuple[int, tuple[float, ...]]

# Okabe-Ito without its black, which is the mean's, and its yellow, which is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#9A9A9A"

PANEL_WIDTH = 6.2  # inches, of the axes
LEFT_MARGIN = 0.8  # inches, for the numbers and the name of the vertical axis
LEADER = 0.52  # inches from the axes to a label's text
LABEL_SIZE = 9.0  # points
LABEL_PITCH = 1.3 * LABEL_SIZE  # points from one label's middle to the next one's


@dataclass(frozen=True)
class Line:
    """A line that ends in a label of its own."""

    values: FloatArray
    label: str
    color: str
    style: LineStyle = "-"
    width: float = 1.8


def label_ends(
    axes: Axes, rounds: FloatArray, lines: Sequence[Line], unit: str, digits: int
) -> None:
    """Write the labels right of the axes, moved apart just so far that none overlap."""
    ended = [line for line in lines if np.isfinite(line.values).any()]
    if not ended:
        return
    last = [int(np.flatnonzero(np.isfinite(line.values))[-1]) for line in ended]
    ends = [
        axes.transAxes.inverted().transform(
            axes.transData.transform((rounds[index], line.values[index]))
        )
        for line, index in zip(ended, last, strict=True)
    ]
    heights = spread_out([float(end[1]) for end in ends], _label_pitch(axes))
    for line, index, end, height in zip(ended, last, ends, heights, strict=True):
        axes.plot(
            [end[0], 1.0, 1.0 + 0.12 / PANEL_WIDTH, 1.0 + 0.22 / PANEL_WIDTH],
            [end[1], end[1], height, height],
            color=line.color,
            linewidth=0.8,
            transform=axes.transAxes,
            clip_on=False,
            zorder=2,
        )
        write_label(axes, line, height, f"{line.label}: {line.values[index]:.{digits}f}{unit}")


def write_label(axes: Axes, line: Line, height: float, text: str) -> None:
    """Write one label with a piece of its line, so that the text itself can stay dark."""
    axes.plot(
        [1.0 + 0.22 / PANEL_WIDTH, 1.0 + 0.46 / PANEL_WIDTH],
        [height, height],
        color=line.color,
        linestyle=line.style,
        linewidth=line.width,
        solid_capstyle="butt",
        transform=axes.transAxes,
        clip_on=False,
    )
    # A domain's name may hold a dollar sign, which is no formula here.
    axes.text(
        1.0 + LEADER / PANEL_WIDTH,
        height,
        text,
        transform=axes.transAxes,
        va="center_baseline",
        fontsize=LABEL_SIZE,
        color=INK,
        parse_math=False,
    )


def spread_out(heights: Sequence[float], pitch: float) -> FloatArray:
    """Move label heights at least `pitch` apart, each as little as possible, inside 0 to 1.

    With the labels in order, the smallest moves (in squares) are an isotonic regression of the
    heights less the room that the labels below need.
    """
    order = np.argsort(heights, kind="stable")
    room = pitch * np.arange(len(order))
    moved = isotonic_regression(np.asarray(heights)[order] - room).x
    placed = np.empty(len(order))
    placed[order] = np.clip(moved, 0.0, max(1.0 - room[-1], 0.0)) + room
    return placed


def new_figure(height: float, labels: Sequence[str]) -> Figure:
    """Make a figure that is as wide as its axes and its longest label need; height in inches."""
    font = FontProperties(size=LABEL_SIZE)
    widest = max(
        TextPath((0, 0), f"{label}: 100.0 %", prop=font).get_extents().width / 72
        for label in labels
    )
    width = LEFT_MARGIN + PANEL_WIDTH + LEADER + widest + 0.15
    return Figure(figsize=(width, height), facecolor="white")


def add_panel(figure: Figure, *, bottom: float, height: float) -> Axes:
    """Add axes that leave room on the right for labels; inches."""
    width, total = figure.get_size_inches()
    axes = figure.add_axes(
        (LEFT_MARGIN / width, bottom / total, PANEL_WIDTH / width, height / total)
    )
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=LABEL_SIZE)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes


def set_round_axis(axes: Axes, rounds: FloatArray) -> None:
    """Let the horizontal axis span the rounds, with ticks at whole ones."""
    first, last = float(rounds[0]), float(rounds[-1])
    axes.set_xlim(*((first, last) if last > first else (first - 0.5, last + 0.5)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def write_title(figure: Figure, title: str, subtitle: str) -> None:
    """Write the picture's title, and under it what one has to know to read it."""
    width, height = figure.get_size_inches()
    left = 0.15 / width
    figure.text(left, 1 - 0.12 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(left, 1 - 0.38 / height, subtitle, va="top", fontsize=9, color="#555555")


def panel_height(labels: int, *, least: float) -> float:
    """Height in inches at which that many labels fit beside the axes."""
    return max(least, labels * LABEL_PITCH / 72)


def _label_pitch(axes: Axes) -> float:
    """Distance between labels in heights of the axes."""
    return LABEL_PITCH / 72 / (axes.bbox.height / axes.figure.dpi)
