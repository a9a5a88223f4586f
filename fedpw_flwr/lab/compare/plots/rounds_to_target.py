"""``rounds_to_target.png`` shows how many rounds of communication each method takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.formats import number, percent
from fedpw_flwr.lab.compare.plots.looks import Look
from fedpw_flwr.lab.compare.plots.page import name_rows, new_page, widest
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import over_seeds, rounds_to_target
from fedpw_flwr.lab.compare.tables import mean_of
from fedpw_flwr.lab.plots.panels import FAINT, INK, LABEL_SIZE

__all__ = ["rounds_to_target_figure"]

WIDTH, ROW = 5.0, 0.3  # inches
NEVER = 0.9  # inches of the column for seeds that did not get there


def rounds_to_target_figure(
    setting: Setting, looks: Mapping[str, Look], target: float
) -> Figure | None:
    """Draw a row a method, in the order of the tables; None where there is no target."""
    if not math.isfinite(target):
        return None
    reached = rounds_to_target(setting, target)
    mean, _ = over_seeds(reached)
    found = dict(iter(reached.groupby("method", sort=False)))
    texts = {
        label: number(mean[label], 1)
        if math.isfinite(mean[label])
        else f"{rounds.count()} of {len(rounds)} seeds"
        for label, rounds in found.items()
    }
    names = [looks[label].label for label in found]
    height = max(0.5, ROW * len(found) + 0.1)
    many = len(reached) > len(found)
    figure, (axes,) = new_page(
        f"Rounds to a mean accuracy of {percent(target)}",
        (
            setting.label,
            f"First round at or above it: {mean_of(setting)}."
            + (" Marker: one seed. Bar: the mean, where all seeds got there." if many else ""),
        ),
        width=0.6 + widest(names) + WIDTH + NEVER + widest(texts.values()),
        height=height + 0.4,
        labels=("round", ""),
    )
    name_rows(axes, names)
    last = setting.rounds
    # In data units, so that the seeds that never got there stand in a column of their own.
    column = max(last, 1) * NEVER / WIDTH
    axes.set_xlim(0, max(last, 1) + column)
    axes.axvspan(max(last, 1), max(last, 1) + column, color="#F1F1F1", linewidth=0, zorder=0)
    for row, (label, rounds) in enumerate(found.items()):
        look = looks[label]
        if math.isfinite(mean[label]):
            axes.barh(row, mean[label], height=0.6, color=look.color, alpha=0.3, linewidth=0)
        for place, offset in zip(rounds, _offsets(len(rounds)), strict=True):
            there = math.isfinite(place)
            axes.plot(
                [place if there else max(last, 1) + column / 2],
                [row + offset],
                linestyle="",
                marker=look.marker if there else "x",
                markersize=5.5 * look.marker_size if there else 4.5,
                markerfacecolor=look.color,
                markeredgecolor="white" if there else look.color,
                markeredgewidth=0.5 if there else 1.4,
                clip_on=False,
                zorder=3,
            )
        axes.text(
            1.0 + 0.12 / (WIDTH + NEVER),
            row,
            texts[label],
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=LABEL_SIZE,
            color=INK,
        )
    ticks = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(0, last)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])
    axes.text(
        max(last, 1) + column / 2,
        1.0 + 0.06 / height,
        "not reached",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=LABEL_SIZE,
        color=INK,
    )
    axes.axvline(max(last, 1), color=FAINT, linewidth=0.8)
    return figure


def _offsets(count: int) -> list[float]:
    """Move a row's seeds around its middle, in rows, so that equal ones do not hide each other."""
    reach = min(0.3, 0.14 * (count - 1))
    return [float(offset) for offset in np.linspace(-reach, reach, count)]
