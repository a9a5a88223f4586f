"""``weights.png`` shows whom each method listens to, and how that changes over the rounds.

Drawn are shares of a round's weights, so that methods whose weights also say how far the server
steps (FedMGDA+, q-FedAvg) are as legible as the others.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.figures import CLIENT_WEIGHT, DOMAIN_WEIGHT
from fedpw_flwr.lab.compare.plots.looks import LINE_STYLES
from fedpw_flwr.lab.compare.plots.page import fitted, new_page, shortened, widest
from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.plots.panels import INK, PALETTE, set_round_axis

WIDTH, HEIGHT = 2.35, 1.85  # inches
KEY_PITCH = 0.19  # inches from one entry of the key to the next
PANELS_A_ROW = 3
TIMES = "\N{MULTIPLICATION SIGN}"

CLIENT_COLORS = {"largest": "#D55E00", "median": INK, "smallest": "#0072B2"}


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
    names = list(dict.fromkeys(name for weights in drawn.values() for name in weights))
    looks: dict[str, dict[str, Any]] = {
        name: {
            "color": CLIENT_COLORS[name] if of_clients else PALETTE[index % len(PALETTE)],
            "linestyle": LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)],
            "label": shortened(f"{name} client" if of_clients else name, 24),
        }
        for index, name in enumerate(names)
    }
    shares = "Shares of single clients" if of_clients else "Mean share of a domain's clients"
    columns = min(PANELS_A_ROW, len(drawn))
    figure, panels = new_page(
        "Aggregation weights over rounds",
        (
            setting.label,
            f"{shares} in each round's weights, mean over seeds. 1 {TIMES} is the equal share 1/N.",
            *([f"No weights recorded by: {', '.join(missing)}."] if missing else []),
        ),
        width=1.3 + columns * (WIDTH + 0.25) + widest(look["label"] for look in looks.values()),
        height=max(HEIGHT, KEY_PITCH * len(names) if len(drawn) <= columns else 0.0),
        panels=len(drawn),
        columns=columns,
        labels=("round", f"weight ({TIMES} 1/N)"),
    )
    for axes, (label, weights) in zip(panels, drawn.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        for name, values in weights.items():
            # Where few clients take part in a round, most domains have only points of their own.
            known = values.notna()
            line = known.shift(1, fill_value=False) | known.shift(-1, fill_value=False)
            dots = np.flatnonzero(known & ~line).tolist()
            (drawn_line,) = axes.plot(values, **looks[name], linewidth=1.6, clip_on=False, zorder=3)
            drawn_line.set(marker="o", markevery=dots, markersize=5, markeredgewidth=0)
        set_round_axis(axes, weights.index)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_title(fitted(label, WIDTH))
    lowest = min(weights.min(axis=None) for weights in drawn.values())
    axes.set_ylim(bottom=max(min(0.0, lowest), axes.get_ylim()[0]))
    handles = [Line2D([], [], **look, linewidth=2.2) for look in looks.values()]
    panels[columns - 1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.03, 1.0))
    return figure


def weights_over_seeds(method: Method, *, of_clients: bool) -> pd.DataFrame:
    """Average a method's shares of the weights over its seeds, by round and name.

    They are in units of the equal share 1/N, over those seeds in which some of the domain's clients
    took part, NaN where there is none. Rounds without any weight, such as the initial model, are
    left out.
    """
    prefix = CLIENT_WEIGHT if of_clients else DOMAIN_WEIGHT
    seeds = [run.history.filter(regex=f"^{re.escape(prefix)}") for run in method.runs.values()]
    weights = pd.concat(seeds).groupby("round").mean().dropna(how="all")
    return weights.rename(columns=lambda key: key.removeprefix(prefix))
