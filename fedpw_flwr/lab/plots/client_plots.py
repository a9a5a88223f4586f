"""Plots of what each client contributes: its aggregation weight, and the terms p and q behind it.

All figures are relative to an equal share: 1 is what every participant would have if all counted
the same, so rounds with different numbers of participants can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.labels import panel_height, write_label
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.panels import INK, draw_lines, new_page, set_round_axis
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.written import percent

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class ClientTables:
    """Figures of the trained rounds (rows) by client id (columns); NaN where a client was absent.

    ``domains`` is by client id, ``participants`` and ``loss_term_share`` by round.
    """

    domains: pd.Series[str]
    participants: pd.Series[int]
    loss_term_share: pd.Series[float]
    weight: pd.DataFrame
    p: pd.DataFrame
    q: pd.DataFrame


def client_tables(records: Sequence[RoundRecord]) -> ClientTables | None:
    """Line the clients of all rounds up in columns; None where no round recorded any."""
    trained = [record for record in records if record.clients is not None and record.clients.id]
    if not trained:
        return None
    figures, unknown = ["weight", "p", "q"], [np.inf, -np.inf]
    parts = {record.round: pd.DataFrame(vars(record.clients)) for record in trained}
    rows = pd.concat(parts, names=["round"]).set_index("id", append=True)
    shares = rows[figures].astype(float).replace(unknown, np.nan)
    # A share over the mean share is how many times an equal one it is.
    shares = (shares / shares.groupby("round").transform("mean")).replace(unknown, np.nan)
    by_client = shares.groupby(["round", "id"], sort=False).last().unstack("id")
    lead = {record.round: record.loss_term_share for record in trained}
    return ClientTables(
        domains=rows["domain"].groupby("id").last(),
        participants=rows.groupby("round", sort=False).size(),
        loss_term_share=pd.Series(lead, dtype=float),
        **{name: by_client[name].sort_index(axis=1) for name in figures},
    )


def weights_figure(clients: ClientTables, looks: Mapping[str, Look]) -> Figure:
    """Draw whom the server listens to more than to the others; looks are by domain."""
    height = panel_height(len(looks), least=3.3)
    text = _how_to_read(clients, "weight")
    figure, (axes,) = new_page("Aggregation weight of each client", text, [height])
    axes.set_ylabel(f"aggregation weight ({TIMES} equal weight)")
    _draw_clients([axes], [clients.weight], clients, looks)
    return figure


def signals_figure(clients: ClientTables, looks: Mapping[str, Look]) -> Figure:
    """Draw why: both terms of every client, and which of the two leads."""
    height = panel_height(len(looks), least=2.5)
    text = _how_to_read(clients, "share")
    figure, panels = new_page("What decides the weights", text, [height, height, 0.9])
    upper, lower, strip = panels
    own = f"share ({TIMES} equal share)"
    upper.set(title="Direction term p: whose updates agree with the others'", ylabel=own)
    lower.set(title="Loss term q: whose data the model serves badly", ylabel=own)
    # First, so that the other panels' labels know how high they are.
    _draw_lead(strip, clients.loss_term_share)
    _draw_clients([upper, lower], [clients.p, clients.q], clients, looks)
    return figure


def _draw_clients(
    panels: Sequence[Axes],
    tables: Sequence[pd.DataFrame],
    clients: ClientTables,
    looks: Mapping[str, Look],
) -> None:
    """Draw a table a panel: a thin line a client, and a thick, labelled one a domain."""
    # Limits that show equal weight and every figure, with some air.
    shown = np.append(pd.concat(tables), 1.0)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    air = max(0.05 * (high - low), 0.02)
    limits = (low - air if low < 0 else max(0.0, low - air), high + air)
    crowd = len(clients.domains)
    everyone = bool((clients.participants == crowd).all())
    alpha = (0.8 if crowd <= 12 else max(0.22, 9 / crowd)) * (1.0 if everyone else 0.7)
    for axes, figures in zip(panels, tables, strict=True):
        axes.set_ylim(limits)
        marker = "" if everyone and len(figures) > 1 else "o"
        for client, domain in clients.domains.items():
            # An absent client's terms stand still, so a line may pass over the rounds it missed.
            (line,) = axes.plot(figures[client].dropna(), marker=marker, color=looks[domain].color)
            line.set(linewidth=0.9, alpha=alpha, markersize=2.8, markeredgewidth=0)
        axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
        # By the last figure each client had: a mean over the participants alone would mostly show
        # who happened to be drawn.
        means = figures.ffill().T.groupby(clients.domains).mean().T
        known = [domain for domain in looks if domain in means]
        lines = [looks[domain].line(means[domain].to_numpy(), 2.4) for domain in known]
        draw_lines(axes, figures.index.to_numpy(dtype=float), lines, unit=f" {TIMES}", digits=2)


def _draw_lead(axes: Axes, loss_term_share: pd.Series[float]) -> None:
    """Fill the strip that says which of the two terms leads, round by round."""
    loss = 100 * loss_term_share.dropna()
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
    set_round_axis(axes, loss_term_share.index.to_numpy(dtype=float))


def _how_to_read(clients: ClientTables, what: str) -> str:
    least, most = clients.participants.min(), clients.participants.max()
    lines = "Thin: one client, a dot a round. Thick: mean of a domain's clients, each as last seen."
    if clients.domains.is_unique:
        lines = "Each domain has one client."
    elif least == len(clients.domains):
        lines = "Thin: one client. Thick: the mean of a domain's clients."
    several = f"1/N of a round ({least} ≤ N ≤ {most} clients)"
    equal = f"1/{most} of the round" if least == most else several
    return f"{lines}\n1 {TIMES} is an equal {what}, {equal}."
