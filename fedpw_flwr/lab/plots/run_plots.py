"""Plots that explain a run at a look, made from nothing but its folder.

Use them after a run, or on an old one, to answer these questions:

* ``accuracy.png``: does the model serve every domain, and how far behind is the worst?
* ``weights.png``: whom does the server listen to more than to the others?
* ``signals.png``: why? Direction terms p and loss terms q, and which of the two leads: agreeing
  updates lead early, clients with high losses gain weight later.
* ``partition.png``: who holds what?
* ``profile.png``, of a run that was profiled: where does the time go?

A domain keeps its colour in the first three.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.client_plots import (
    client_shares,
    homes_of,
    signals_figure,
    weights_figure,
)
from fedpw_flwr.lab.plots.labels import panel_height
from fedpw_flwr.lab.plots.looks import INK, Look, give_looks
from fedpw_flwr.lab.plots.panels import STYLE, draw_lines, new_page, save_plots
from fedpw_flwr.lab.plots.partition_plot import partition_figure
from fedpw_flwr.lab.plots.profile_plot import profile_figure
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError
from fedpw_flwr.lab.runs.written import number, percent

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
    return save_plots(run_folder.path, figures)


@matplotlib.rc_context(STYLE)
def draw_plots(records: Sequence[RoundRecord]) -> dict[str, Figure]:
    """Draw at least one round's plots by file name; those without figures are left out."""
    trained = [record for record in records if record.clients is not None and record.clients.id]
    clients = client_shares(trained) if trained else None
    domains = [domain for record in records for domain in record.accuracy]
    looks = give_looks([*domains, *(() if clients is None else homes_of(clients))])
    figures = {"accuracy.png": _accuracy_figure(records, looks)}
    if clients is not None:
        figures["weights.png"] = weights_figure(clients, looks)
        if clients["p"].notna().any() and clients["q"].notna().any():
            lead = {record.round: record.loss_term_share for record in trained}
            figures["signals.png"] = signals_figure(clients, pd.Series(lead, dtype=float), looks)
    profiles = {record.round: record.profile for record in records if record.profile is not None}
    if profiles:
        figures["profile.png"] = profile_figure(profiles)
    return figures


def _accuracy_figure(records: Sequence[RoundRecord], looks: Mapping[str, Look]) -> Figure:
    tested = [record for record in records if record.accuracy] or records
    rounds = [record.round for record in tested]
    accuracy = 100 * pd.DataFrame([record.accuracy for record in tested], rounds)
    spread = 100 * pd.DataFrame([vars(record.spread) for record in tested], rounds)
    if accuracy.shape[1] > 1:
        summaries = {
            "worst domain": Look("worst domain", INK, (0, (1, 1.4)), width=1.3),
            "mean of domains": Look("mean of domains", INK, "-", width=2.6),
        }
        looks = {**looks, **summaries}
        accuracy[list(summaries)] = spread[["worst", "mean"]]
    last = spread.iloc[-1]
    said = percent(last["mean"])
    if math.isfinite(last["std"]):
        said = f"mean {said}, STD {number(last['std'], 1)} points, worst {percent(last['worst'])}"
    figure, (axes,) = new_page(
        "Accuracy per domain",
        f"After round {rounds[-1]}: {said}",
        [panel_height(accuracy.shape[1], least=3.3)],
        labels=("round (0 is the initial model)" if rounds[0] == 0 else "round", ""),
    )
    axes.set(ylabel="test accuracy (%)", ylim=(0, 100))
    draw_lines(axes, accuracy, looks, unit=" %", digits=1)
    return figure
