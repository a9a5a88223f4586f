"""Names and texts on a page: how wide they are, how to shorten them, and labels beside a panel.

Labels right of a panel spare a legend to look up. Each stands at the height of what it names, moved
just so far that none overlap. Matplotlib's constrained layout finds the room for them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from fedpw_flwr.report.charts import shortened

LABEL_SIZE = 9.0  # points
LABEL_PITCH = 1.3 * LABEL_SIZE / 72  # inches from one label's middle to the next one's
LEADER = 0.52  # inches from the axes to a label's text


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


def panel_height(labels: int, *, least: float) -> float:
    """Height in inches at which that many labels fit beside the axes."""
    return max(least, labels * LABEL_PITCH)


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, Mapping[str, Any]]]) -> None:
    """Name points beside the axes, each led to its name by a thin line.

    A point is its place, its name and its sample as for `write_label`. What else the figure holds
    must be there already.
    """
    if not points:
        return
    # Only the layout knows how far apart labels are.
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    pitch = LABEL_PITCH / (axes.bbox.height / axes.figure.dpi)
    places = [point[:2] for point in points]
    starts, levels = (axes.transData + axes.transAxes.inverted()).transform(places).T
    heights = spread_out(levels, pitch)
    for start, level, height, (*_, text, sample) in zip(
        starts, levels, heights, points, strict=True
    ):
        thin: dict[str, Any] = {"color": sample["color"], "linewidth": 0.8, "alpha": 0.6}
        axes.plot([start, 1.0], [level, level], transform=axes.transAxes, zorder=2, **thin)
        bend = {"transform": _beside(axes), "clip_on": False, **thin}
        axes.plot([0.0, 0.12, 0.22], [level, height, height], **bend)
        write_label(axes, height, text, **sample)


def write_label(axes: Axes, height: float, text: str, **sample: Any) -> None:
    """Write one label with a sample of what it names, so that the text itself can stay dark.

    The height is a share of the axes' own; the sample is a line's or a marker's properties.
    """
    place = {"transform": _beside(axes), "clip_on": False, "solid_capstyle": "butt"}
    look = {"linewidth": 7.0, **sample}
    axes.plot([0.22, 0.34, 0.46], [height] * 3, markevery=[1], **place, **look)
    text_place = {"transform": _beside(axes), "va": "center_baseline"}
    axes.text(LEADER, height, text, fontsize=LABEL_SIZE, **text_place)


def spread_out(heights: Sequence[float], pitch: float) -> NDArray[np.float64]:
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


def _beside(axes: Axes) -> Any:
    """Inches right of the axes, and heights in shares of the axes' own."""
    corner = ScaledTranslation(1.0, 0.0, axes.transAxes)  # type: ignore[arg-type]
    return blended_transform_factory(axes.figure.dpi_scale_trans + corner, axes.transAxes)
