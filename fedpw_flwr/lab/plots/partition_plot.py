"""The plot of who holds what: how many images of each class a client trains on."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.plots.panels import FAINT, INK, LABEL_SIZE, write_title
from fedpw_flwr.lab.runs.holdings import Holdings

__all__ = ["partition_figure"]

_WRITTEN = 400
"""Up to so many cells have their count written in them."""
_LONGEST_NAME = 16  # characters
_HEADING, _AROUND = 0.75, (1.9, 0.95)  # inches; beside and below the cells stand axes and names


def partition_figure(holdings: Holdings) -> Figure:
    """Draw a cell for each class and each of at least one client, the darker the more images."""
    # As large as the cells need, within bounds.
    counts = np.array([held.train for held in holdings.clients]).T
    classes, clients = counts.shape
    cell = 0.34 if counts.size <= _WRITTEN else max(0.06, min(0.34, 9.0 / clients))
    cell = max(3.2 / clients, cell)
    width = cell * clients + _AROUND[0]
    height = max(1.6, min(6.0, 0.27 * classes)) + _AROUND[1] + _HEADING
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, rect=(0, 0, 1, 1 - _HEADING / height))
    figure = Figure((width, height), facecolor="white", layout=layout)
    axes = figure.add_subplot()
    # Cells, with their numbers where there are few.
    cells = axes.imshow(
        counts, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest", origin="lower"
    )
    if counts.size <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    *(column, row, str(count)),
                    ha="center",
                    va="center",
                    fontsize=6.5 if count > 999 else 7.5,
                    color="white" if count > 0.55 * counts.max() else INK,
                )
    # Axes, scale and title.
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
    axes.spines[:].set_color(FAINT)
    bar = figure.colorbar(cells, ax=axes, aspect=20, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    bar.set_label("training images", color=INK)
    for one in (axes, bar.ax):
        one.tick_params(color=FAINT, labelcolor=INK, labelsize=LABEL_SIZE)
    _name_domains(figure, [held.domain for held in holdings.clients], cell)
    sizes = counts.sum(axis=0)
    tested = sum(sum(held.test) for held in holdings.clients)
    write_title(
        figure,
        "Who holds what",
        f"{clients} clients train on {sizes.min()} to {sizes.max()} images each, {sizes.sum()} "
        + (f"in all;\nthey keep {tested} more for testing." if tested else "in all."),
    )
    return figure


def _name_domains(figure: Figure, names: list[str], cell: float) -> None:
    """Write the domains over their clients, with a line between neighbours."""
    starts = [k for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
    if len(starts) < 2:
        return
    axes = figure.axes[0]
    above = axes.secondary_xaxis("top")
    stops = [*starts[1:], len(names)]
    above.set_xticks([(start + stop - 1) / 2 for start, stop in zip(starts, stops, strict=True)])
    above.set_xticklabels(
        [
            name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
            for name in (names[start] for start in starts)
        ]
    )
    above.tick_params(length=0, labelcolor=INK, labelsize=LABEL_SIZE)
    above.spines["top"].set_visible(False)
    for text, start, stop in zip(above.get_xticklabels(), starts, stops, strict=True):
        text.set_parse_math(False)
        if cell * (stop - start) <= 0.1 * len(text.get_text()):
            text.set_fontsize(6.5)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=INK, linewidth=0.8)
