"""The picture of who holds what: how many pictures of each class a client trains on."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.plots.panels import FAINT, INK, LABEL_SIZE, write_title
from fedpw_flwr.lab.runs.holdings import Holdings

__all__ = ["partition_figure"]

_WRITTEN = 400
"""Up to so many cells have their count written in them."""
_LONGEST_NAME = 16  # characters


def partition_figure(holdings: Holdings) -> Figure:
    """Draw a cell for each client and class, the darker the more pictures.

    Parameters
    ----------
    holdings : Holdings
        At least one client.
    """
    counts = np.array([held.train for held in holdings.clients]).T
    classes, clients = counts.shape
    cell = 0.34 if counts.size <= _WRITTEN else max(0.06, min(0.34, 9.0 / clients))
    width, height = max(3.2, cell * clients), max(1.6, min(6.0, 0.27 * classes))
    left, right, bottom, top = 0.8, 1.15, 0.62, 1.05
    figure = Figure(figsize=(left + width + right, bottom + height + top), facecolor="white")
    total = (left + width + right, bottom + height + top)
    axes = figure.add_axes(
        (left / total[0], bottom / total[1], width / total[0], height / total[1])
    )
    image = axes.imshow(
        counts, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest", origin="lower"
    )
    if counts.size <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = count > 0.55 * counts.max()
                axes.text(
                    *(column, row, str(count)),
                    ha="center",
                    va="center",
                    fontsize=6.5 if count > 999 else 7.5,
                    color="white" if dark else INK,
                )
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=LABEL_SIZE)
    axes.spines[:].set_color(FAINT)
    bar = figure.add_axes(
        ((left + width + 0.15) / total[0], bottom / total[1], 0.14 / total[0], height / total[1])
    )
    colors = figure.colorbar(image, cax=bar)
    colors.outline.set_visible(False)
    bar.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    bar.tick_params(color=FAINT, labelcolor=INK, labelsize=LABEL_SIZE)
    bar.set_ylabel("training pictures", color=INK)
    _name_domains(figure, holdings, (left, width, bottom + height), total)
    sizes = counts.sum(axis=0)
    tested = sum(sum(held.test) for held in holdings.clients)
    write_title(
        figure,
        "Who holds what",
        f"{clients} clients train on {sizes.min()} to {sizes.max()} pictures each, {sizes.sum()} "
        + (f"in all;\nthey keep {tested} more for testing." if tested else "in all."),
    )
    return figure


def _name_domains(
    figure: Figure,
    holdings: Holdings,
    place: tuple[float, float, float],
    total: tuple[float, float],
) -> None:
    """Write the domains over their clients, with a line between neighbours."""
    names = [held.domain for held in holdings.clients]
    starts = [k for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
    if len(starts) < 2:
        return
    left, width, height = place
    cell = width / len(names)
    axes = figure.axes[0]
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        if start:
            axes.axvline(start - 0.5, color=INK, linewidth=0.8)
        name = names[start]
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        figure.text(
            (left + cell * (start + stop) / 2) / total[0],
            (height + 0.06) / total[1],
            shown.replace("$", r"\$"),
            ha="center",
            va="bottom",
            fontsize=LABEL_SIZE if cell * (stop - start) > 0.1 * len(shown) else 6.5,
            color=INK,
        )
