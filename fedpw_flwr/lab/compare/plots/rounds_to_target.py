"""``rounds_to_target.png`` shows how many rounds of communication each method takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import over_seeds, rounds_to_target
from fedpw_flwr.lab.compare.tables import mean_of
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.names import name_rows, widest
from fedpw_flwr.lab.plots.panels import FAINT, new_page
from fedpw_flwr.lab.runs.written import number, percent

WIDTH, ROW = 5.0, 0.3  # inches
NEVER = 0.9  # inches of the column for seeds that did not get there


def rounds_to_target_figure(
    setting: Setting, looks: Mapping[str, Look], target: float
) -> Figure | None:
    """Draw a row a method, in the order of the tables; None where there is no target."""
    if not math.isfinite(target):
        return None
    reached = rounds_to_target(setting, target)
    means, _ = over_seeds(reached)
    found = {label: own.to_numpy() for label, own in reached.groupby("method", sort=False)}
    texts = {
        label: number(means[label], 1)
        if math.isfinite(means[label])
        else f"{np.isfinite(own).sum()} of {len(own)} seeds"
        for label, own in found.items()
    }
    names = [looks[label].label for label in found]
    height = max(0.5, ROW * len(found) + 0.1)
    markers = " Marker: one seed. Bar: the mean, where all seeds got there."
    figure, (axes,) = new_page(
        f"Rounds to a mean accuracy of {percent(target)}",
        f"{setting.label}\nFirst round at or above it: {mean_of(setting)}."
        + (markers if setting.has_seeds else ""),
        [height],
        width=0.6 + widest(names) + WIDTH + NEVER + widest(texts.values()),
    )
    name_rows(axes, names)
    never = _add_column(axes, setting.rounds, height)
    beside = axes.get_yaxis_transform()
    for row, (label, own) in enumerate(found.items()):
        look = looks[label]
        if math.isfinite(means[label]):
            axes.barh(row, means[label], height=0.6, color=look.color, alpha=0.3, linewidth=0)
        # Moved around the row's middle, so that equal seeds do not hide each other.
        reach = min(0.3, 0.14 * (len(own) - 1))
        rows = row + np.linspace(-reach, reach, len(own))
        there = np.isfinite(own)
        axes.plot(own[there], rows[there], clip_on=False, zorder=3, **look.points(5.5, edge=0.5))
        cross: dict[str, Any] = {"markersize": 4.5, "markeredgewidth": 1.4}
        lost = np.full(sum(~there), never)
        axes.plot(lost, rows[~there], "x", markeredgecolor=look.color, **cross)
        axes.text(1.0 + 0.12 / (WIDTH + NEVER), row, texts[label], transform=beside, va="center")
    return figure


def _add_column(axes: Axes, last: int, height: float) -> float:
    """Add a column for seeds that never got there, beside the rounds, and return its middle."""
    end = max(last, 1)
    # In data units, so that the column is as wide in every plot.
    width = end * NEVER / WIDTH
    middle = end + width / 2
    axes.set_xlim(0, end + width)
    axes.axvspan(end, end + width, color="#F1F1F1", linewidth=0, zorder=0)
    axes.axvline(end, color=FAINT, linewidth=0.8)
    ticks = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(0, last)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])
    above = axes.get_xaxis_transform()
    axes.text(middle, 1.0 + 0.06 / height, "not reached", transform=above, ha="center")
    return middle
