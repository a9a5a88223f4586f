"""The plot ``weights.png``: whom each method listens to.

It shows shares of a round's weights, so that methods whose weights also say how far the server
steps (FedMGDA+, q-FedAvg) are as legible as the others.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.figures import CLIENT_WEIGHT, DOMAIN_WEIGHT
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.labels import LABEL_SIZE, fitted, widest
from fedpw_flwr.lab.plots.looks import INK, PALETTE, give_looks
from fedpw_flwr.lab.plots.panels import draw_line, new_page, set_round_axis

# Of one method's panel, in inches.
WIDTH, HEIGHT = 2.35, 1.4
PANELS_A_ROW = 3
KEY_PITCH = 0.19  # inches from one entry of the key to the next
TIMES = "\N{MULTIPLICATION SIGN}"
CLIENT_COLORS = ("#D55E00", INK, "#0072B2")  # of the largest, the median and the smallest share


def weights_figure(setting: Setting) -> Figure | None:
    """Draw a small panel for each method that recorded weights; None if none did.

    With one domain, whose mean share is 1 by definition, its clients' extremes are drawn.
    """
    drawn = weights_over_seeds(setting)
    if not drawn:
        return None
    of_clients = len(setting.domains) == 1
    names = (name for weights in drawn.values() for name in weights)
    looks = give_looks(names, CLIENT_COLORS if of_clients else PALETTE)
    missing = [method.label for method in setting.methods if method.label not in drawn]
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
    )
    for axes, (label, weights) in zip(panels, drawn.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
        for name, values in weights.items():
            # Where few clients take part in a round, most domains have only points of their own.
            draw_line(axes, values, clip_on=False, markersize=5, **looks[name].line)
        set_round_axis(axes, weights.index, nbins=4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_title(fitted(label, WIDTH), fontsize=LABEL_SIZE)
    lowest = min(weights.min(axis=None) for weights in drawn.values())
    axes.set_ylim(bottom=max(min(0.0, lowest), axes.get_ylim()[0]))
    bold = (replace(look, width=2.2) for look in looks.values())
    handles = [Line2D([], [], label=look.label, **look.line) for look in bold]
    bare = {"frameon": False, "borderaxespad": 0.0}
    beside = (1.03, 1.0)
    panels[columns - 1].legend(handles=handles, loc="upper left", bbox_to_anchor=beside, **bare)
    return figure


def weights_over_seeds(setting: Setting) -> dict[str, pd.DataFrame]:
    """Average shares of the weights over seeds, by method: a row a round, a column a domain.

    They are in units of the equal share 1/N, over those seeds in which some of the domain's clients
    took part, NaN where there is none. Rounds without any weight, such as the initial model, are
    left out, and so are methods without. Of one domain, the columns are its clients' extremes.
    """
    one = len(setting.domains) == 1
    prefix, suffix = (CLIENT_WEIGHT, " client") if one else (DOMAIN_WEIGHT, "")
    shares = setting.rounds_of_runs.filter(regex=f"^{re.escape(prefix)}")
    shares = shares.rename(columns=lambda key: key.removeprefix(prefix) + suffix)
    means = shares.groupby(["method", "round"], sort=False).mean().dropna(how="all")
    by_method = means.groupby("method", sort=False)
    return {str(label): own.droplevel("method") for label, own in by_method}
