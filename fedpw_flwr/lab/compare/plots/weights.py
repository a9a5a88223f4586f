"""``weights.png`` shows whom each method listens to, and how that changes over the rounds.

Drawn are shares of a round's weights, so that methods whose weights also say how far the server
steps (FedMGDA+, q-FedAvg) are as legible as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedpw_flwr.lab.compare.plots.over_rounds import weights_over_seeds
from fedpw_flwr.lab.compare.plots.page import (
    fitted,
    name_panel,
    new_page,
    shortened,
    widest,
)
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.panels import INK, LABEL_SIZE, PALETTE, LineStyle, set_round_axis

__all__ = ["weights_figure"]

FloatArray = NDArray[np.float64]

WIDTH, HEIGHT = 2.35, 1.85  # inches
KEY_PITCH = 0.19  # inches from one entry of the key to the next
PANELS_A_ROW = 3
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
TIMES = "\N{MULTIPLICATION SIGN}"

_CLIENT_COLORS = {"largest": "#D55E00", "median": INK, "smallest": "#0072B2"}


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
    looks: dict[str, dict[str, Any]] = {
        name: {
            "color": _CLIENT_COLORS[name] if of_clients else PALETTE[index % len(PALETTE)],
            "linestyle": LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)],
            "label": shortened(f"{name} client" if of_clients else name, 24),
        }
        for index, name in enumerate(names)
    }
    columns = min(PANELS_A_ROW, len(drawn))
    heading = [
        setting.label,
        ("Shares of single clients" if of_clients else "Mean share of a domain's clients")
        + f" in each round's weights, mean over seeds. 1 {TIMES} is the equal share 1/N.",
    ]
    if missing:
        heading.append(f"No weights recorded by: {', '.join(missing)}.")
    key_width = widest(look["label"] for look in looks.values())
    figure, panels = new_page(
        "Aggregation weights over rounds",
        heading,
        width=0.8 + columns * (WIDTH + 0.25) + 0.5 + key_width,
        height=max(HEIGHT, KEY_PITCH * len(names) if len(drawn) <= columns else 0.0),
        panels=len(drawn),
        columns=columns,
        labels=("round", f"weight ({TIMES} 1/N)"),
    )
    limits = _limits([weights.to_numpy() for weights in drawn.values()])
    for axes, (label, weights) in zip(panels, drawn.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        for name, values in weights.items():
            axes.plot(
                values.index,
                values,
                **looks[name],
                linewidth=1.6,
                marker="o",
                markevery=_lone_points(values.to_numpy()),
                markersize=4,
                clip_on=False,
                zorder=3,
            )
        set_round_axis(axes, weights.index)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_ylim(*limits)
        name_panel(axes, fitted(label, WIDTH))
    key = panels[columns - 1].legend(
        handles=[Line2D([], [], **look, linewidth=2.2) for look in looks.values()],
        loc="upper left",
        bbox_to_anchor=(1.03, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=LABEL_SIZE,
        labelcolor=INK,
    )
    for text in key.get_texts():
        text.set_parse_math(False)
    return figure


def _lone_points(values: FloatArray) -> list[int]:
    """Return the places of points without a neighbour, which a line alone would not show.

    Where few clients take part in a round, most domains have only such points.
    """
    known = np.concatenate(([False], np.isfinite(values), [False]))
    return np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()


def _limits(lines: Sequence[FloatArray]) -> tuple[float, float]:
    """Limits that show equal weight and every figure, with some air."""
    shown = np.concatenate([[1.0], *map(np.ravel, lines)])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    air = max(0.06 * (high - low), 0.02)
    return (low - air if low < 0 else max(0.0, low - air)), high + air
