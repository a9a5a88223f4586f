"""Plots that explain a run at a look, made from nothing but its folder.

Use them after a run, or on an old one, to answer these questions:

* ``accuracy.png``: does the model serve every domain, and how far behind is the worst?
* ``weights.png``: whom does the server listen to more than to the others?
* ``signals.png``: why? Direction terms p and loss terms q, and which of the two leads: agreeing
  updates lead early, clients with high losses gain weight later.
* ``partition.png``: who holds what?
* ``profile.png``, of a run that was profiled: where does the time go?

A domain keeps its colour in the first three. Clients' figures are relative to an equal share: 1 is
what each participant would have if all counted the same, so that rounds of any size compare.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.plots.labels import LABEL_PITCH, panel_height, shortened, widest, write_label
from fedpw_flwr.lab.plots.panels import (
    INK,
    STYLE,
    Line,
    Look,
    draw_lines,
    give_looks,
    new_page,
    set_round_axis,
)
from fedpw_flwr.lab.plots.profile_plot import profile_figure
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError, atomic_file
from fedpw_flwr.lab.runs.written import number, percent

TIMES = "\N{MULTIPLICATION SIGN}"
MOST_WRITTEN = 400  # cells of classes and clients that have their counts written in them

logger = logging.getLogger("flwr")


def write_plots(run_folder: RunFolder) -> list[Path]:
    """Draw the plots of a run, finished or not, into its folder, and return the PNG files.

    A plot that no round has figures for is left out; the log says so. RunFolderError if the folder
    holds no run, or no round of it.
    """
    records = run_folder.read_rounds()
    if not records:
        raise RunFolderError(
            f"{run_folder.metrics_file} has no round yet: wait for the run's first one, or read "
            "the run's log for why there is none"
        )
    figures = draw_plots(records)
    holdings = run_folder.read_holdings()
    if holdings is not None and holdings.clients:
        figures["partition.png"] = partition_figure(holdings)
    for name, reason in (
        ("weights.png", "no round recorded its clients"),
        ("signals.png", "the strategy has no p and q"),
    ):
        if name not in figures:
            logger.info("No %s in %s: %s", name, run_folder.path, reason)
    for name, figure in figures.items():
        with atomic_file(run_folder.path / name) as partial:
            figure.savefig(partial, format="png")
    return [run_folder.path / name for name in figures]


@matplotlib.rc_context(STYLE)
def draw_plots(records: Sequence[RoundRecord]) -> dict[str, Figure]:
    """Draw at least one round's plots by file name; those without figures are left out."""
    trained = [record for record in records if record.clients is not None and record.clients.id]
    clients = _client_shares(trained) if trained else None
    domains = [domain for record in records for domain in record.accuracy]
    looks = give_looks([*domains, *(() if clients is None else _homes(clients))])
    figures = {"accuracy.png": _accuracy_figure(records, looks)}
    if clients is not None:
        figures["weights.png"] = _weights_figure(clients, looks)
        if clients["p"].notna().any() and clients["q"].notna().any():
            lead = {record.round: record.loss_term_share for record in trained}
            figures["signals.png"] = _signals_figure(clients, pd.Series(lead, dtype=float), looks)
    profiles = {record.round: record.profile for record in records if record.profile is not None}
    if profiles:
        figures["profile.png"] = profile_figure(profiles)
    return figures


def _accuracy_figure(records: Sequence[RoundRecord], looks: Mapping[str, Look]) -> Figure:
    rounds = np.array([record.round for record in records], dtype=np.float64)
    accuracy = 100 * pd.DataFrame([record.accuracy for record in records])
    spread = 100 * pd.DataFrame([vars(record.spread) for record in records])
    lines = [looks[domain].line(found.to_numpy(), 1.8) for domain, found in accuracy.items()]
    if len(lines) > 1:
        worst, mean = spread["worst"].to_numpy(), spread["mean"].to_numpy()
        lines.append(Line(worst, "worst domain", INK, (0, (1, 1.4)), 1.3))
        lines.append(Line(mean, "mean of domains", INK, "-", 2.6))
    last = spread.iloc[-1]
    said = percent(last["mean"])
    if math.isfinite(last["std"]):
        said = f"mean {said}, STD {number(last['std'], 1)} points, worst {percent(last['worst'])}"
    figure, (axes,) = new_page(
        "Accuracy per domain",
        f"After round {records[-1].round}: {said}",
        [panel_height(len(lines), least=3.3)],
        labels=("round (0 is the initial model)" if rounds[0] == 0 else "round", ""),
    )
    axes.set(ylabel="test accuracy (%)", ylim=(0, 100))
    draw_lines(axes, rounds, lines, unit=" %", digits=1)
    return figure


def _client_shares(trained: Sequence[RoundRecord]) -> pd.DataFrame:
    """Return weight, p and q of clients over their equal share, by round and id, with domains."""
    figures, unknown = ["weight", "p", "q"], [np.inf, -np.inf]
    parts = {record.round: pd.DataFrame(vars(record.clients)) for record in trained}
    rows = pd.concat(parts, names=["round"]).set_index("id", append=True)
    shares = rows[figures].astype(float).replace(unknown, np.nan)
    # A share over the mean share is how many times an equal one it is.
    shares = (shares / shares.groupby("round").transform("mean")).replace(unknown, np.nan)
    return shares.assign(domain=rows["domain"]).groupby(["round", "id"], sort=False).last()


def _homes(clients: pd.DataFrame) -> pd.Series:
    """Return the clients' domains by id."""
    return clients["domain"].groupby("id").last()


def _weights_figure(clients: pd.DataFrame, looks: Mapping[str, Look]) -> Figure:
    """Draw whom the server listens to more than to the others; looks are by domain."""
    height = panel_height(len(looks), least=3.3)
    text = _how_to_read(clients, "weight")
    figure, panels = new_page("Aggregation weight of each client", text, [height])
    panels[0].set_ylabel(f"aggregation weight ({TIMES} equal weight)")
    _draw_clients(panels, clients[["weight"]], _homes(clients), looks)
    return figure


def _signals_figure(clients: pd.DataFrame, lead: pd.Series, looks: Mapping[str, Look]) -> Figure:
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
    _draw_clients([upper, lower], clients[["p", "q"]], _homes(clients), looks)
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
        known = [domain for domain in looks if domain in means]
        lines = [looks[domain].line(means[domain].to_numpy(), 2.4) for domain in known]
        draw_lines(axes, figures.index.to_numpy(dtype=float), lines, unit=f" {TIMES}", digits=2)


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
    set_round_axis(axes, lead.index.to_numpy(dtype=float))


def _how_to_read(clients: pd.DataFrame, what: str) -> str:
    homes, participants = _homes(clients), clients.groupby("round").size()
    least, most = participants.min(), participants.max()
    lines = "Thin: one client, a dot a round. Thick: mean of a domain's clients, each as last seen."
    if homes.is_unique:
        lines = "Each domain has one client."
    elif least == len(homes):
        lines = "Thin: one client. Thick: the mean of a domain's clients."
    several = f"1/N of a round ({least} ≤ N ≤ {most} clients)"
    equal = f"1/{most} of the round" if least == most else several
    return f"{lines}\n1 {TIMES} is an equal {what}, {equal}."


@matplotlib.rc_context(STYLE)
def partition_figure(holdings: Holdings) -> Figure:
    """Draw a cell for each class and each of at least one client, the darker the more images."""
    counts = np.array([held.train for held in holdings.clients]).T
    classes, clients = counts.shape
    sizes = counts.sum(axis=0)
    tested = sum(sum(held.test) for held in holdings.clients)
    kept = f"in all;\nthey keep {tested} more for testing." if tested else "in all."
    # As large as the cells need, within bounds.
    written = counts.size <= MOST_WRITTEN
    cell = max(4.1 / clients, 0.34 if written else max(0.06, min(0.34, 9.0 / clients)))
    # Domains over their clients, upright where there is no room for their names side by side.
    domains = groupby(held.domain for held in holdings.clients)
    spans = [(shortened(name, 16), len(list(own))) for name, own in domains]
    names, counted = zip(*spans, strict=True)
    crowded = any(widest([name]) > 0.9 * cell * count for name, count in spans)
    figure, (axes,) = new_page(
        "Who holds what",
        f"{clients} clients train on {sizes.min()} to {sizes.max()} images each, {sizes.sum()} "
        f"{kept}",
        [max(1.6, min(6.0, 0.27 * classes)) + (widest(names) if crowded else 0.0)],
        width=cell * clients + 1.9,
        labels=("client", "class"),
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    # Cells, with their numbers where there are few.
    cells = axes.imshow(
        counts, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest", origin="lower"
    )
    for row, column in np.argwhere(counts) if written else ():
        count = counts[row, column]
        color = "white" if count > 0.55 * counts.max() else INK
        size = 6.5 if count > 999 else 7.5
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
    for axis, most in ((axes.xaxis, 20), (axes.yaxis, 10)):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=most, steps=[1, 2, 5, 10]))
    # The scale.
    bar = figure.colorbar(cells, ax=axes, aspect=20, pad=0.02, label="training images")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    # The domains' names, as many as there is room for, and lines between neighbours.
    if len(names) > 1:
        every = math.ceil(LABEL_PITCH / (cell * min(counted)))
        ends = np.cumsum([0, *counted]) - 0.5
        above = axes.secondary_xaxis("top")
        above.set_xticks(((ends[:-1] + ends[1:]) / 2)[::every], names[::every])
        above.tick_params(length=0, rotation=90 if crowded else 0)
        above.spines["top"].set_visible(False)
        for end in ends[1:-1]:
            axes.axvline(end, color=INK, linewidth=0.8)
    return figure
