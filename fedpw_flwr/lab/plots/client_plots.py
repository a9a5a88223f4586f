"""Plots of a run's clients: whom the server listens to, and why.

Figures are relative to an equal share: 1 is what each participant would have if all counted the
same, so that rounds of any size compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.labels import panel_height, write_label
from fedpw_flwr.lab.plots.looks import INK, Look
from fedpw_flwr.lab.plots.panels import draw_lines, new_page, set_round_axis
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.written import percent

TIMES = "\N{MULTIPLICATION SIGN}"


def client_shares(trained: Sequence[RoundRecord]) -> pd.DataFrame:
    """Return weight, p and q of clients over their equal share, by round and id, with domains."""
    figures, unknown = ["weight", "p", "q"], [np.inf, -np.inf]
    parts = {record.round: pd.DataFrame(vars(record.clients)) for record in trained}
    rows = pd.concat(parts, names=["round"]).set_index("id", append=True)
    shares = rows[figures].astype(float).replace(unknown, np.nan)
    # A share over the mean share is how many times an equal one it is.
    shares = (shares / shares.groupby("round").transform("mean")).replace(unknown, np.nan)
    return shares.assign(domain=rows["domain"]).groupby(["round", "id"], sort=False).last()


def homes_of(clients: pd.DataFrame) -> pd.Series:
    """Return the clients' domains by id."""
    return clients["domain"].groupby("id").last()


def weights_figure(clients: pd.DataFrame, looks: Mapping[str, Look]) -> Figure:
    """Draw whom the server listens to more than to the others; looks are by domain."""
    height = panel_height(len(looks), least=3.3)
    text = _how_to_read(clients, "weight")
    figure, panels = new_page("Aggregation weight of each client", text, [height])
    panels[0].set_ylabel(f"aggregation weight ({TIMES} equal weight)")
    _draw_clients(panels, clients[["weight"]], homes_of(clients), looks)
    return figure


def signals_figure(clients: pd.DataFrame, lead: pd.Series, looks: Mapping[str, Look]) -> Figure:
    """Draw why: both terms of every client, and which of the two leads."""
    height = panel_height(len(looks), least=2.5)
    text = _how_to_read(clients, "share")
    figure, panels = new_page("What decides the weights", text, [height, height, 0.9])
    upper, lower, strip = panels
    own = f"share ({TIMES} equal share)"
    upper.set(title="Direction term p: whose updates agree with the others'", ylabel=own)
    lower.set(title="Loss term q: whose data the model serves badly", ylabel=own)
    # First, so that the other panels' labels know how high they are.
    _draw_lead(strip, lead)
    _draw_clients([upper, lower], clients[["p", "q"]], homes_of(clients), looks)
    return figure


def _draw_clients(
    panels: Sequence[Axes], shares: pd.DataFrame, homes: pd.Series, looks: Mapping[str, Look]
) -> None:
    """Draw a column a panel: a thin line a client, and a thick, labelled one a domain."""
    # Limits that show equal weight and every figure, with some air.
    shown = np.append(shares, 1.0)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    air = max(0.05 * (high - low), 0.02)
    limits = (low - air if low < 0 else max(0.0, low - air), high + air)
    crowd = len(homes)
    everyone = bool((shares.groupby("round").size() == crowd).all())
    alpha = (0.8 if crowd <= 12 else max(0.22, 9 / crowd)) * (1.0 if everyone else 0.7)
    for axes, (_, column) in zip(panels, shares.items(), strict=True):
        figures = column.unstack("id").sort_index(axis=1)
        axes.set_ylim(limits)
        marker = "" if everyone and len(figures) > 1 else "o"
        for client, domain in homes.items():
            # An absent client's terms stand still, so a line may pass over the rounds it missed.
            (line,) = axes.plot(figures[client].dropna(), marker=marker, color=looks[domain].color)
            line.set(linewidth=0.9, alpha=alpha, markersize=2.8, markeredgewidth=0)
        axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
        # By the last figure each client had: a mean over the participants alone would mostly show
        # who happened to be drawn.
        means = figures.ffill().T.groupby(homes).mean().T
        thick = {name: replace(look, width=2.4) for name, look in looks.items() if name in means}
        draw_lines(axes, means[list(thick)], thick, unit=f" {TIMES}", digits=2)


def _draw_lead(axes: Axes, lead: pd.Series) -> None:
    """Fill the strip that says which of the two terms leads, round by round."""
    loss = 100 * lead.dropna()
    last = float(loss.iloc[-1]) if len(loss) else math.nan
    for text, height, top, share, color in (
        ("direction p", 0.75, 100.0, 100 - last, "#D4D4D4"),
        ("loss q", 0.25, loss, last, "#4D4D4D"),
    ):
        # Seams between neighbours would read as a grid.
        axes.bar(loss.index, top, width=1.0, color=color, linewidth=0, antialiased=False)
        write_label(axes, height, f"{text}: {percent(share, 0)}", color=color)
    axes.set(ylim=(0, 100), yticks=[0, 50, 100], ylabel="lead (%)")
    axes.set_title("Which of the two leads the weights")
    set_round_axis(axes, lead.index)


def _how_to_read(clients: pd.DataFrame, what: str) -> str:
    homes, participants = homes_of(clients), clients.groupby("round").size()
    least, most = participants.min(), participants.max()
    lines = "Thin: one client, a dot a round. Thick: mean of a domain's clients, each as last seen."
    if homes.is_unique:
        lines = "Each domain has one client."
    elif least == len(homes):
        lines = "Thin: one client. Thick: the mean of a domain's clients."
    several = f"1/N of a round ({least} ≤ N ≤ {most} clients)"
    equal = f"1/{most} of the round" if least == most else several
    return f"{lines}\n1 {TIMES} is an equal {what}, {equal}."
