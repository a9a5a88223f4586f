"""``weights.png`` shows whom each method listens to, and how that changes over the rounds.

Drawn are shares of a round's weights, so that methods whose weights also say how far the server
steps (FedMGDA+, q-FedAvg) are as legible as the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedpw_flwr.experiment.comparison.history import CLIENT_WEIGHT, DOMAIN_WEIGHT
from fedpw_flwr.experiment.comparison.pictures.page import (
    add_axes,
    fitted,
    new_page,
    shortened,
    widest,
)
from fedpw_flwr.experiment.comparison.settings import Method, Setting
from fedpw_flwr.experiment.panels import INK, LABEL_SIZE, PALETTE, LineStyle, set_round_axis

__all__ = ["weights_figure", "weights_over_seeds"]

FloatArray = NDArray[np.float64]

LEFT, WIDTH, HEIGHT, GAP, ROW_GAP, BOTTOM = 0.8, 2.35, 1.5, 0.3, 0.5, 0.62  # inches
KEY_PITCH = 0.19  # inches from one entry of the key to the next
PANELS_A_ROW = 3
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
TIMES = "\N{MULTIPLICATION SIGN}"

_CLIENT_COLORS = {"largest": "#D55E00", "median": INK, "smallest": "#0072B2"}


def weights_over_seeds(method: Method, *, of_clients: bool) -> pd.DataFrame:
    """Average a method's shares of the weights over its seeds, round by round.

    Parameters
    ----------
    method : Method
        The method.
    of_clients : bool
        The largest, median and smallest share of a client, instead of each domain's mean.

    Returns
    -------
    pd.DataFrame
        By round and name the shares in units of the equal share 1/N, over those seeds in which
        some of the domain's clients took part, NaN where there is none. Rounds without any weight,
        such as the initial model, are left out.
    """
    prefix = CLIENT_WEIGHT if of_clients else DOMAIN_WEIGHT
    seeds = [run.history.filter(regex=f"^{re.escape(prefix)}") for run in method.runs.values()]
    return (
        pd.concat(seeds)
        .groupby("round")
        .mean()
        .dropna(how="all")
        .rename(columns=lambda key: key.removeprefix(prefix))
    )


def weights_figure(setting: Setting) -> Figure | None:
    """Draw a small panel for each method that recorded weights; None if none did.

    With one domain, whose mean share is 1 by definition, its clients' extremes are drawn.
    """
    of_clients = len(setting.domains) == 1
    drawn = {
        method.label: found
        for method in setting.methods
        if len(found := weights_over_seeds(method, of_clients=of_clients))
    }
    if not drawn:
        return None
    missing = [method.label for method in setting.methods if method.label not in drawn]
    names = tuple(dict.fromkeys(name for weights in drawn.values() for name in weights))
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)}
    if of_clients:
        colors = _CLIENT_COLORS
    styles = {
        name: LINE_STYLES[place // len(PALETTE) % len(LINE_STYLES)]
        for place, name in enumerate(names)
    }
    columns = min(PANELS_A_ROW, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    key_texts = {name: shortened(f"{name} client" if of_clients else name, 24) for name in names}
    panels_height = rows * HEIGHT + (rows - 1) * ROW_GAP
    panels_right = LEFT + columns * WIDTH + (columns - 1) * GAP
    height = max(panels_height, KEY_PITCH * len(names))
    heading = [
        setting.label,
        ("Shares of single clients" if of_clients else "Mean share of a domain's clients")
        + f" in each round's weights, mean over seeds. 1 {TIMES} is the equal share 1/N.",
    ]
    if missing:
        heading.append(f"No weights recorded by: {', '.join(missing)}.")
    figure = new_page(
        panels_right + 0.7 + widest(key_texts.values()) + 0.15,
        BOTTOM + height + 0.35,
        "Aggregation weights over rounds",
        heading,
    )
    limits = _limits([weights.to_numpy() for weights in drawn.values()])
    ticks = MaxNLocator(nbins=4).tick_values(*limits)
    for place, (label, weights) in enumerate(drawn.items()):
        row, column = divmod(place, columns)
        axes = add_axes(
            figure,
            left=LEFT + column * (WIDTH + GAP),
            bottom=BOTTOM + height - panels_height + (rows - 1 - row) * (HEIGHT + ROW_GAP),
            width=WIDTH,
            height=HEIGHT,
        )
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        for name, values in weights.items():
            axes.plot(
                values.index,
                values,
                color=colors[name],
                linestyle=styles[name],
                linewidth=1.6,
                marker="o",
                markevery=_lone_points(values.to_numpy()),
                markersize=4,
                clip_on=False,
                zorder=3,
            )
        set_round_axis(axes, weights.index)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axes.set_ylim(*limits)
        axes.set_yticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
        axes.set_title(
            fitted(label, WIDTH), loc="left", fontsize=LABEL_SIZE, color=INK, parse_math=False
        )
        lowest = place + columns >= len(drawn)
        axes.tick_params(labelbottom=lowest, labelleft=column == 0)
        if lowest:
            axes.set_xlabel("round")
        if column == 0:
            axes.set_ylabel(f"weight ({TIMES} 1/N)")
    first = figure.axes[min(columns, len(drawn)) - 1]
    _write_key(first, names, colors, styles, key_texts)
    return figure


def _write_key(
    axes: Axes,
    names: Sequence[str],
    colors: Mapping[str, str],
    styles: Mapping[str, LineStyle],
    texts: Mapping[str, str],
) -> None:
    """Say right of the first row of panels which line is which."""
    for place, name in enumerate(names):
        height = 1.0 - (place + 0.5) * KEY_PITCH / HEIGHT
        axes.plot(
            [1.0 + 0.25 / WIDTH, 1.0 + 0.55 / WIDTH],
            [height, height],
            color=colors[name],
            linestyle=styles[name],
            linewidth=2.2,
            solid_capstyle="butt",
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.text(
            1.0 + 0.65 / WIDTH,
            height,
            texts[name],
            transform=axes.transAxes,
            va="center_baseline",
            fontsize=LABEL_SIZE,
            color=INK,
            parse_math=False,
        )


def _lone_points(values: FloatArray) -> list[int]:
    """Return the places of points without a neighbour, which a line alone would not show.

    Where few clients take part in a round, most domains have only such points.
    """
    known = np.concatenate(([False], np.isfinite(values), [False]))
    return np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()


def _limits(lines: Sequence[FloatArray]) -> tuple[float, float]:
    """Limits that show equal weight and every figure, with some air."""
    shown = np.concatenate([*(values[np.isfinite(values)] for values in lines), np.array([1.0])])
    low, high = float(shown.min()), float(shown.max())
    air = max(0.06 * (high - low), 0.02)
    return (low - air if low < 0 else max(0.0, low - air)), high + air
