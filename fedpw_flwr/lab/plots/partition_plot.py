"""The plot of who holds what."""

from __future__ import annotations

import math
from itertools import groupby

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.plots.labels import LABEL_PITCH, widest
from fedpw_flwr.lab.plots.looks import INK
from fedpw_flwr.lab.plots.panels import STYLE, new_page
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.report.charts import shortened

MOST_WRITTEN = 400  # cells of classes and clients that have their counts written in them


@matplotlib.rc_context(STYLE)
def partition_figure(holdings: Holdings) -> Figure:
    """Draw a cell for each class and each of at least one client, the darker the more examples."""
    counts = np.array([held.train for held in holdings.clients]).T
    classes, clients = counts.shape
    sizes = counts.sum(axis=0)
    tested = sum(sum(held.test) for held in holdings.clients)
    kept = f"in all;\nthey keep {tested} more for testing." if tested else "in all."
    # As large as the cells need, within bounds.
    written = counts.size <= MOST_WRITTEN
    cell = max(4.1 / clients, 0.34 if written else max(0.06, min(0.34, 9.0 / clients)))
    # Domains over their clients, upright where there is no room for their names side by side.
    domains = groupby(held.domain for held in holdings.clients)
    spans = [(shortened(name, 16), len(list(own))) for name, own in domains]
    names, counted = zip(*spans, strict=True)
    crowded = any(widest([name]) > 0.9 * cell * count for name, count in spans)
    figure, (axes,) = new_page(
        "Who holds what",
        f"{clients} clients train on {sizes.min()} to {sizes.max()} examples each, {sizes.sum()} "
        f"{kept}",
        [max(1.6, min(6.0, 0.27 * classes)) + (widest(names) if crowded else 0.0)],
        width=cell * clients + 1.9,
        labels=("client", "class"),
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    # Cells, with their numbers where there are few.
    cells = axes.imshow(
        counts, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest", origin="lower"
    )
    for row, column in np.argwhere(counts) if written else ():
        count = counts[row, column]
        color = "white" if count > 0.55 * counts.max() else INK
        size = 6.5 if count > 999 else 7.5
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
    for axis, most in ((axes.xaxis, 20), (axes.yaxis, 10)):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=most, steps=[1, 2, 5, 10]))
    # The scale.
    bar = figure.colorbar(cells, ax=axes, aspect=20, pad=0.02, label="training examples")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    # The domains' names, as many as there is room for, and lines between neighbours.
    if len(names) > 1:
        every = math.ceil(LABEL_PITCH / (cell * min(counted)))
        ends = np.cumsum([0, *counted]) - 0.5
        above = axes.secondary_xaxis("top")
        above.set_xticks(((ends[:-1] + ends[1:]) / 2)[::every], names[::every])
        above.tick_params(length=0, rotation=90 if crowded else 0)
        above.spines["top"].set_visible(False)
        for end in ends[1:-1]:
            axes.axvline(end, color=INK, linewidth=0.8)
    return figure
