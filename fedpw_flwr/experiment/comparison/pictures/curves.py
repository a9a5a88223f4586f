"""``curves.png`` shows how fast each method learns, and whether the worst served keep up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedpw_flwr.experiment.comparison.figures import Basis
from fedpw_flwr.experiment.comparison.pictures.looks import Look
from fedpw_flwr.experiment.comparison.pictures.page import add_axes, new_page, widest
from fedpw_flwr.experiment.comparison.settings import Method, Setting
from fedpw_flwr.experiment.panels import (
    INK,
    LEADER,
    LEFT_MARGIN,
    PANEL_WIDTH,
    Line,
    label_ends,
    panel_height,
    set_round_axis,
)

__all__ = ["Band", "band_over_seeds", "curves_figure"]

FloatArray = NDArray[np.float64]

_WORST = {
    "domains": ("domains.worst", "Worst domain"),
    "clients": ("clients.worst_10", "Worst 10 % of the clients"),
}


@dataclass(frozen=True, eq=False)
class Band:
    """A figure of one method over the rounds that all of its runs recorded.

    Attributes
    ----------
    rounds, mean, lowest, highest : FloatArray
        Round numbers; mean, lowest and highest value over seeds; shape (R,) each.
    """

    rounds: FloatArray
    mean: FloatArray
    lowest: FloatArray
    highest: FloatArray


def band_over_seeds(method: Method, key: str) -> Band | None:
    """Line the seeds of a method up by round; None where a run lacks the figure."""
    if not method.has(key):
        return None
    histories = [run.history for run in method.runs.values()]
    rounds = histories[0].rounds
    for history in histories[1:]:
        rounds = np.intersect1d(rounds, history.rounds)
    table = np.array(
        [history.figures[key][np.isin(history.rounds, rounds)] for history in histories]
    )
    if not len(rounds) or not np.isfinite(table).any():
        return None
    return Band(rounds, table.mean(axis=0), table.min(axis=0), table.max(axis=0))


def curves_figure(setting: Setting, looks: Mapping[str, Look], basis: Basis) -> Figure | None:
    """Draw mean and worst accuracy over rounds; None if no method has them over `basis`.

    One domain has no worst one, and one panel.
    """
    whom = "clients, each on its own test data" if basis == "clients" else "domains"
    panels = [(f"{basis}.mean", f"Mean over {whom}"), _WORST[basis]]
    if basis == "domains" and len(setting.domains) == 1:
        panels = [(f"{basis}.mean", f"Accuracy on the test set of {setting.domains[0]}")]
    bands = [
        {
            method.label: band
            for method in setting.methods
            if (band := band_over_seeds(method, key)) is not None
        }
        for key, _ in panels
    ]
    if not any(bands):
        return None
    rows = max(len(of_panel) for of_panel in bands)
    height, gap, bottom = panel_height(rows + 1, least=2.6), 0.5, 0.62
    labels = [f"{looks[label].label}: 100.0 %" for of_panel in bands for label in of_panel]
    seeds = any(len(method.runs) > 1 for method in setting.methods)
    figure = new_page(
        LEFT_MARGIN + PANEL_WIDTH + LEADER + widest(labels) + 0.15,
        bottom + len(panels) * height + (len(panels) - 1) * gap + 0.35,
        "Accuracy over rounds",
        (
            setting.label,
            "Line: mean over seeds. Band: from the lowest to the highest seed."
            if seeds
            else "One seed.",
        ),
    )
    for place, ((_, title), of_panel) in enumerate(zip(panels, bands, strict=True)):
        lowest = place == len(panels) - 1
        axes = add_axes(
            figure,
            left=LEFT_MARGIN,
            bottom=bottom + (len(panels) - 1 - place) * (height + gap),
            width=PANEL_WIDTH,
            height=height,
        )
        lines = []
        recorded = [band.rounds for band in of_panel.values()] or [np.zeros(1)]
        every = np.unique(np.concatenate(recorded))
        for label, band in of_panel.items():
            look = looks[label]
            axes.fill_between(
                band.rounds, band.lowest, band.highest, color=look.color, alpha=0.13, linewidth=0
            )
            alone = len(band.rounds) == 1
            axes.plot(
                band.rounds,
                band.mean,
                color=look.color,
                linestyle=look.style,
                linewidth=1.6,
                marker=look.marker if alone else "",
                markeredgewidth=0,
                zorder=3,
            )
            on_all = np.full(len(every), math.nan)
            on_all[np.isin(every, band.rounds)] = band.mean
            lines.append(Line(on_all, look.label, look.color, look.style, 1.6))
        shown = [
            values[np.isfinite(values)]
            for band in of_panel.values()
            for values in (band.lowest, band.highest)
        ]
        axes.set_ylim(*_limits(np.concatenate(shown or [np.array([0.0, 100.0])])))
        set_round_axis(axes, every)
        label_ends(axes, every, lines, " %", 1)
        axes.set_ylabel("accuracy (%)")
        axes.set_title(title, loc="left", fontsize=10.5, color=INK, parse_math=False)
        axes.tick_params(labelbottom=lowest)
        if lowest:
            axes.set_xlabel("round (0 is the initial model)" if every[0] == 0 else "round")
    return figure


def _limits(values: FloatArray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    air = max(0.04 * (high - low), 0.5)
    return max(0.0, low - air), min(100.0, high + air) if high < 100 else 101.0
