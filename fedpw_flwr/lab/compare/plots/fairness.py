"""``fairness.png`` tells methods that serve everyone well from those that serve the average well.

A method's mean accuracy against the standard deviation between those it serves, with its seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import Basis, number, percent
from fedpw_flwr.lab.compare.plots.looks import Look
from fedpw_flwr.lab.compare.plots.page import new_page, widest
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window, near_chance, over_seeds
from fedpw_flwr.lab.plots.panels import LABEL_PITCH, spread_out

WIDTH, LEADER = 5.2, 0.55  # inches


def fairness_figure(
    setting: Setting, looks: Mapping[str, Look], basis: Basis, window: Window
) -> Figure | None:
    """Draw the methods that have figures over `basis`; None if none has."""
    if f"{basis}.mean" not in setting.rounds_of_runs:
        return None
    runs = window.of(setting)[[f"{basis}.mean", f"{basis}.std"]]
    runs.columns = ["mean", "std"]
    points = over_seeds(runs)[0].dropna()
    if points.empty:
        return None
    near = near_chance(setting, window)
    texts = {
        label: f"{looks[label].label}: {percent(mean)}, STD {number(std, 1)}"
        + (" (near chance)" if near[label] else "")
        for label, mean, std in points.itertuples()
    }
    seeds = len(runs.loc[list(points.index)]) > len(points)
    whom = "domains" if basis == "domains" else "clients, each on its own test data"
    figure, (axes,) = new_page(
        "Accuracy against fairness",
        (
            setting.label,
            f"Over {whom}: {window.label}. Better is right and down."
            + (" Small: one seed. Large: mean over seeds." if seeds else ""),
        ),
        width=0.9 + WIDTH + LEADER + widest(texts.values()),
        height=max(3.6, (len(points) + 1) * LABEL_PITCH / 72) + 0.2,
        labels=(f"mean accuracy over {basis} (%)", f"STD over {basis} (points)"),
    )
    axes.grid(axis="x")
    for label, mean, std in points.itertuples():
        own, look = runs.loc[label], looks[label]
        if len(own) > 1:
            look.draw_points(axes, own["mean"], own["std"], 4.5, alpha=0.55, zorder=3)
        look.draw_points(axes, [mean], [std], 10.0, edge=1.0, zorder=4)
    axes.margins(0.08)
    _leave_room(axes)
    # Labels are moved apart by heights that only the layout gives.
    figure.draw_without_rendering()
    _write_labels(axes, looks, points, texts)
    return figure


def _leave_room(axes: Axes) -> None:
    """Widen limits that lie so close together that their ticks would have many digits."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        missing = max(0.0, 1.0 - (high - low))
        axis.set_view_interval(low - missing / 2, high + missing / 2, ignore=True)


def _write_labels(
    axes: Axes, looks: Mapping[str, Look], points: pd.DataFrame, texts: Mapping[str, str]
) -> None:
    """Name the markers right of the axes, each led to by a thin line, so that no name hides any."""
    in_axes = axes.transData + axes.transAxes.inverted()
    starts, heights = in_axes.transform(points.to_numpy()).T
    placed = spread_out(heights, LABEL_PITCH / 72 / (axes.bbox.height / axes.figure.dpi))
    outside: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    for label, start, own, height in zip(points.index, starts, heights, placed, strict=True):
        look = looks[label]
        across = [start, 1.0, 1.0 + 0.15 / WIDTH, 1.0 + 0.25 / WIDTH]
        level = [own, own, height, height]
        axes.plot(across, level, color=look.color, linewidth=0.7, alpha=0.6, zorder=2, **outside)
        look.draw_points(axes, [1.0 + 0.38 / WIDTH], [height], 7.0, **outside)
        axes.text(1.0 + LEADER / WIDTH, height, texts[label], va="center_baseline", **outside)
