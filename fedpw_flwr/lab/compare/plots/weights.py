"""``weights.png`` shows whom each method listens to, and how that changes over the rounds.

Drawn are shares of a round's weights, so that methods whose weights also say how far the server
steps (FedMGDA+, q-FedAvg) are as legible as the others.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.figures import CLIENT_WEIGHT, DOMAIN_WEIGHT
from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.plots.looks import give_looks
from fedpw_flwr.lab.plots.names import LABEL_SIZE, fitted, widest
from fedpw_flwr.lab.plots.panels import INK, draw_line, new_page, set_round_axis

WIDTH, HEIGHT = 2.35, 1.4  # inches
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
    if of_clients:
        looks = give_looks(CLIENT_COLORS, list(CLIENT_COLORS.values()))
        looks = {name: replace(look, label=f"{name} client") for name, look in looks.items()}
    else:
        looks = give_looks(name for weights in drawn.values() for name in weights)
    shares = "Shares of single clients" if of_clients else "Mean share of a domain's clients"
    columns = min(PANELS_A_ROW, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure, panels = new_page(
        "Aggregation weights over rounds",
        f"{setting.label}\n{shares} in each round's weights, mean over seeds. 1 {TIMES} is the "
        "equal share 1/N."
        + (f"\nNo weights recorded by: {', '.join(missing)}." if missing else ""),
        [max(HEIGHT, KEY_PITCH * len(looks) if rows == 1 else 0.0)] * rows,
        width=1.3 + columns * (WIDTH + 0.25) + widest(look.label for look in looks.values()),
        columns=columns,
        panels=len(drawn),
        labels=("round", f"weight ({TIMES} 1/N)"),
        same_scale=True,
    )
    for axes, (label, weights) in zip(panels, drawn.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        rounds = weights.index.to_numpy(dtype=np.float64)
        for name, values in weights.items():
            # Where few clients take part in a round, most domains have only points of their own.
            line = looks[name].line(values.to_numpy(), 1.6)
            draw_line(axes, rounds, line.values, clip_on=False, markersize=5, **line.look)
        set_round_axis(axes, rounds, nbins=4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_title(fitted(label, WIDTH), fontsize=LABEL_SIZE)
    lowest = min(weights.min(axis=None) for weights in drawn.values())
    axes.set_ylim(bottom=max(min(0.0, lowest), axes.get_ylim()[0]))
    lines = [look.line(np.empty(0), 2.2) for look in looks.values()]
    handles = [Line2D([], [], label=line.label, **line.look) for line in lines]
    bare = {"frameon": False, "borderaxespad": 0.0}
    beside = (1.03, 1.0)
    panels[columns - 1].legend(handles=handles, loc="upper left", bbox_to_anchor=beside, **bare)
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
