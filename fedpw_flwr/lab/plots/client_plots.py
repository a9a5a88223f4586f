"""Plots of what each client contributes: its aggregation weight, and the terms p and q behind it.

All figures are relative to an equal share: 1 is what every participant would have if all counted
the same, so rounds with different numbers of participants can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.panels import (
    INK,
    Line,
    draw_lines,
    name_panel,
    new_page,
    panel_height,
    set_round_axis,
    write_label,
)
from fedpw_flwr.lab.runs.records import RoundRecord

__all__ = ["ClientTables", "client_tables", "signals_figure", "weights_figure"]

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
    trained = {one.round: one.clients for one in records if one.clients is not None}
    homes: dict[int, str] = {}
    for clients in trained.values():
        homes.update(zip(clients.id, clients.domain, strict=True))
    if not homes:
        return None
    domains = pd.Series(homes).sort_index()

    def table(name: str) -> pd.DataFrame:
        rows = {
            number: dict(zip(clients.id, values, strict=True))
            for number, clients in trained.items()
            if (values := _relative_to_equal(getattr(clients, name)))
        }
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).reindex(
            index=list(trained), columns=domains.index
        )

    lead = {one.round: one.loss_term_share for one in records if one.clients is not None}
    return ClientTables(
        domains=domains,
        participants=pd.Series({number: len(one.id) for number, one in trained.items()}),
        loss_term_share=pd.Series(lead, dtype=float),
        **{name: table(name) for name in ("weight", "p", "q")},
    )


def weights_figure(clients: ClientTables, looks: Mapping[str, Line]) -> Figure:
    """Draw whom the server listens to more than to the others; looks are by domain."""
    height = panel_height(len(looks), least=3.3)
    figure, (axes,) = new_page(
        "Aggregation weight of each client", _how_to_read(clients, "weight"), [height]
    )
    axes.set_ylabel(f"aggregation weight ({TIMES} equal weight)")
    axes.set_xlabel("round")
    _draw_clients(axes, clients, clients.weight, looks, _limits(clients.weight))
    return figure


def signals_figure(clients: ClientTables, looks: Mapping[str, Line]) -> Figure:
    """Draw why: both terms of every client, and which of the two leads."""
    height = panel_height(len(looks), least=2.5)
    figure, (upper, lower, strip) = new_page(
        "What decides the weights", _how_to_read(clients, "share"), [height, height, 0.9]
    )
    name_panel(upper, "Direction term p: whose updates agree with the others'")
    name_panel(lower, "Loss term q: whose data the model serves badly")
    # First, so that the other panels' labels know how high they are.
    _draw_lead(strip, clients.loss_term_share)
    limits = _limits(pd.concat([clients.p, clients.q]))
    for axes, figures in ((upper, clients.p), (lower, clients.q)):
        axes.set_ylabel(f"share ({TIMES} equal share)")
        _draw_clients(axes, clients, figures, looks, limits)
    return figure


def _draw_clients(
    axes: Axes,
    clients: ClientTables,
    figures: pd.DataFrame,
    looks: Mapping[str, Line],
    limits: tuple[float, float],
) -> None:
    """Draw a thin line a client, and a thick, labelled one a domain."""
    crowd = len(clients.domains)
    everyone = bool((clients.participants == crowd).all())
    for client, domain in clients.domains.items():
        # An absent client's terms stand still, so a line may pass over the rounds it missed.
        present = figures[client].dropna()
        axes.plot(
            present.index,
            present,
            color=looks[domain].color,
            linewidth=0.9,
            alpha=(0.8 if crowd <= 12 else max(0.22, 9 / crowd)) * (1.0 if everyone else 0.7),
            marker="" if everyone and len(figures) > 1 else "o",
            markersize=2.8,
            markeredgewidth=0,
        )
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    # By the last figure each client had: a mean over the participants alone would mostly show who
    # happened to be drawn.
    means = figures.ffill().T.groupby(clients.domains).mean().T
    lines = [
        replace(look, values=means[domain].to_numpy(), width=2.4)
        for domain, look in looks.items()
        if domain in means
    ]
    rounds = figures.index.to_numpy(dtype=np.float64)
    draw_lines(axes, rounds, lines, unit=f" {TIMES}", digits=2, limits=limits)


def _draw_lead(axes: Axes, loss_term_share: pd.Series[float]) -> None:
    """Fill the strip that says which of the two terms leads, round by round."""
    rounds = loss_term_share.index.to_numpy(dtype=np.float64)
    loss = 100 * loss_term_share.to_numpy()
    known = loss[np.isfinite(loss)]
    last = float(known[-1]) if known.size else math.nan
    for text, bottom, size, share, color in (
        ("loss q", np.zeros_like(loss), loss, last, "#4D4D4D"),
        ("direction p", loss, 100 - loss, 100 - last, "#D4D4D4"),
    ):
        axes.bar(
            rounds,
            np.nan_to_num(size),
            bottom=np.nan_to_num(bottom),
            width=1.0,
            color=color,
            linewidth=0,
            antialiased=False,  # seams between neighbours would read as a grid
        )
        said = f"{text}: {share:.0f} %" if known.size else text
        write_label(axes, 0.25 if text == "loss q" else 0.75, said, color)
    axes.set_ylim(0, 100)
    set_round_axis(axes, rounds)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("lead (%)")
    axes.set_xlabel("round")
    name_panel(axes, "Which of the two leads the weights")


def _relative_to_equal(values: Sequence[float] | None) -> list[float]:
    shares = np.asarray(values or (), dtype=np.float64)
    shares[~np.isfinite(shares)] = math.nan
    total = np.nansum(shares)
    relative = shares * np.isfinite(shares).sum() / (total if total != 0 else math.nan)
    return list(relative.tolist())


def _limits(figures: pd.DataFrame) -> tuple[float, float]:
    """Limits that show equal weight and every figure, with some air."""
    shown = np.append(figures.to_numpy()[figures.notna()], 1.0)
    low, high = float(shown.min()), float(shown.max())
    air = max(0.05 * (high - low), 0.02)
    return (low - air if low < 0 else max(0.0, low - air)), high + air


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
