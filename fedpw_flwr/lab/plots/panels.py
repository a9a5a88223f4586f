"""Pages of panels with labels of their own on the right, of which every plot of a run is made.

No legend to look up: a line or a layer ends in its name and its figure, moved apart just so far
that none overlap. Matplotlib's constrained layout finds the room for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

FloatArray = NDArray[np.float64]
LineStyle = str | tuple[int, tuple[float, ...]]

# Okabe-Ito without its black, which is the mean's, and its yellow, which is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT = "#9A9A9A"

PANEL_WIDTH = 6.2  # inches, of axes beside labels of the usual length
LEFT_MARGIN = 0.8  # inches, for the numbers and the name of the vertical axis
LEADER = 0.52  # inches from the axes to a label's text
PAGE_WIDTH = LEFT_MARGIN + PANEL_WIDTH + LEADER + 1.7
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


def new_page(title: str, subtitle: str, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels that are so many inches high, one above the other.

    Only the lowest panel has numbers at its horizontal axis.
    """
    heading = 0.46 + 0.155 * len(subtitle.splitlines())
    height = heading + sum(heights) + 0.62 * len(heights)
    room = (0.05 / PAGE_WIDTH, 0.0, 1 - 0.1 / PAGE_WIDTH, 1 - heading / height)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, rect=room)
    figure = Figure((PAGE_WIDTH, height), facecolor="white", layout=layout)
    write_title(figure, title, subtitle)
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0].tolist()
    for axes in panels:
        style_panel(axes)
        axes.tick_params(labelbottom=axes is panels[-1])
    return figure, panels


def style_panel(axes: Axes) -> None:
    """Give axes the grid, spines and colours that all plots have."""
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=LABEL_SIZE)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def write_title(figure: Figure, title: str, subtitle: str) -> None:
    """Write a plot's title, and under it what one has to know to read the plot."""
    width, height = figure.get_size_inches()
    left = 0.15 / width
    figure.text(left, 1 - 0.12 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(left, 1 - 0.38 / height, subtitle, va="top", fontsize=9, color="#555555")


def name_panel(axes: Axes, name: str) -> None:
    """Write what a panel shows above it, at the left."""
    axes.set_title(name, loc="left", fontsize=LABEL_SIZE + 1.5, color=INK)


def set_round_axis(axes: Axes, rounds: FloatArray) -> None:
    """Let the horizontal axis span the rounds, with ticks at whole ones."""
    first, last = float(rounds[0]), float(rounds[-1])
    axes.set_xlim(*((first, last) if last > first else (first - 0.5, last + 0.5)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def panel_height(labels: int, *, least: float) -> float:
    """Height in inches at which that many labels fit beside the axes."""
    return max(least, labels * LABEL_PITCH / 72)


def draw_lines(
    axes: Axes,
    rounds: FloatArray,
    lines: Sequence[Line],
    *,
    unit: str,
    digits: int,
    limits: tuple[float, float],
) -> None:
    """Draw lines between vertical limits, each with its name and last value at its end."""
    for line in lines:
        # A point without a neighbour to draw a line to is shown by a marker alone.
        present = np.concatenate(([False], np.isfinite(line.values), [False]))
        lone = (present[1:-1] & ~present[:-2] & ~present[2:]).any()
        axes.plot(
            rounds,
            line.values,
            color=line.color,
            linestyle=line.style,
            linewidth=line.width,
            marker="o" if lone else "",
            markersize=2.2 * line.width,
            markeredgewidth=0,
            zorder=3,
        )
    axes.set_ylim(*limits)
    set_round_axis(axes, rounds)
    label_ends(axes, rounds, lines, unit, digits)


def label_ends(
    axes: Axes, rounds: FloatArray, lines: Sequence[Line], unit: str, digits: int
) -> None:
    """Write the labels right of the axes, moved apart just so far that none overlap."""
    known = [(line, np.flatnonzero(np.isfinite(line.values))) for line in lines]
    ends = [(line, rounds[at[-1]], line.values[at[-1]]) for line, at in known if at.size]
    if not ends:
        return
    # Only the layout knows how far apart labels are.
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    pitch = LABEL_PITCH / 72 / (axes.bbox.height / axes.figure.dpi)
    levels = [float(axes.transLimits.transform((last, value))[1]) for _, last, value in ends]
    heights = spread_out(levels, pitch)
    for (line, last, value), level, height in zip(ends, levels, heights, strict=True):
        axes.plot([last, axes.get_xlim()[1]], [value, value], color=line.color, linewidth=0.8)
        bend = Line2D([0.0, 0.12, 0.22], [level, height, height], color=line.color, linewidth=0.8)
        bend.set(transform=_beside(axes), clip_on=False)
        axes.add_artist(bend)
        text = f"{line.label}: {value:.{digits}f}{unit}"
        write_label(axes, height, text, line.color, line.style, line.width)


def write_label(
    axes: Axes, height: float, text: str, color: str, style: LineStyle = "-", width: float = 7.0
) -> None:
    """Write one label with a piece of its line or layer, so that the text itself can stay dark."""
    axes.plot(
        [0.22, 0.46],
        [height, height],
        color=color,
        linestyle=style,
        linewidth=width,
        solid_capstyle="butt",
        transform=_beside(axes),
        clip_on=False,
    )
    axes.text(
        LEADER,
        height,
        text,
        transform=_beside(axes),
        va="center_baseline",
        fontsize=LABEL_SIZE,
        color=INK,
        parse_math=False,  # a domain's name may hold a dollar sign
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


def _beside(axes: Axes) -> Transform:
    """Inches right of the axes, and heights in shares of the axes' own."""
    corner = ScaledTranslation(1.0, 0.0, axes.transAxes)  # type: ignore[arg-type]
    return blended_transform_factory(axes.figure.dpi_scale_trans + corner, axes.transAxes)
