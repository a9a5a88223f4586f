"""Plots of how far methods get: ``domains.png`` and ``rounds_to_target.png``.

The first shows on which domains a method wins and on which it loses, the second how many rounds of
communication it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.figures import accuracy_of
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window, over_seeds, rounds_to_target
from fedpw_flwr.lab.compare.tables import mean_of
from fedpw_flwr.lab.plots.labels import fitted, widest
from fedpw_flwr.lab.plots.looks import FAINT, Look
from fedpw_flwr.lab.plots.panels import new_page
from fedpw_flwr.lab.runs.written import number, percent

DOMAIN_WIDTH, DOMAIN_ROW = 1.95, 0.24
ROUNDS_WIDTH, ROUNDS_ROW = 5.0, 0.3
NEVER = 0.9  # the column for seeds that did not get there
PANELS_A_ROW = 4
TEXT_ROOM = 34  # percent of accuracy, right of 100 %, for the figures


def domains_figure(setting: Setting, looks: Mapping[str, Look], window: Window) -> Figure | None:
    """Draw a panel a domain with a bar a method; None where there is one domain."""
    domains = setting.domains
    if len(domains) < 2:
        return None
    columns = min(PANELS_A_ROW, len(domains))
    names = [looks[method.label].label for method in setting.methods]
    drawn = " Bar: mean over seeds. Line: one standard deviation either way."
    figure, panels = new_page(
        "Accuracy per domain",
        f"{setting.label}\nGlobal model on each domain's test set: {window.label}."
        + (drawn if setting.has_seeds else ""),
        [max(0.7, DOMAIN_ROW * len(names) + 0.1)] * math.ceil(len(domains) / columns),
        width=0.3 + widest(names) + columns * (DOMAIN_WIDTH + 0.2),
        columns=columns,
        panels=len(domains),
        labels=("test accuracy (%)", ""),
    )
    # Bars, with their figures beside them.
    means, stds = over_seeds(window.of(setting))
    for axes, domain in zip(panels, domains, strict=True):
        axes.set_title(fitted(domain, 0.9 * DOMAIN_WIDTH))
        _name_rows(axes, names)
        axes.set(xlim=(0, 100 + TEXT_ROOM), xticks=[0, 25, 50, 75, 100])
        axes.spines["bottom"].set_bounds(0, 100)
        mean, std = (values[accuracy_of(domain).key] for values in (means, stds))
        error = {"ecolor": "#777777", "capsize": 2.0, "elinewidth": 1.2, "alpha": 1.0}
        look: dict[str, Any] = {"height": 0.66, "alpha": 0.85, "linewidth": 0}
        look["color"] = [looks[label].color for label in mean.index]
        spread = std.where(std > 0)
        bars = axes.barh(range(len(names)), mean, xerr=spread, error_kw=error, **look)
        axes.bar_label(bars, [number(value, 1) for value in mean], padding=3, fontsize=8)
        for row in mean.isna().to_numpy().nonzero()[0]:
            axes.text(1, row, "unknown", va="center", fontsize=8)
    return figure


def rounds_to_target_figure(
    setting: Setting, looks: Mapping[str, Look], target: float
) -> Figure | None:
    """Draw a row a method, in the order of the tables; None where there is no target."""
    if not math.isfinite(target):
        return None
    reached = rounds_to_target(setting, target)
    means, _ = over_seeds(reached)
    found = {label: own.to_numpy() for label, own in reached.groupby("method", sort=False)}
    texts = {
        label: number(means[label], 1)
        if math.isfinite(means[label])
        else f"{np.isfinite(own).sum()} of {len(own)} seeds"
        for label, own in found.items()
    }
    names = [looks[label].label for label in found]
    height = max(0.5, ROUNDS_ROW * len(found) + 0.1)
    markers = " Marker: one seed. Bar: the mean, where all seeds got there."
    figure, (axes,) = new_page(
        f"Rounds to a mean accuracy of {percent(target)}",
        f"{setting.label}\nFirst round at or above it: {mean_of(setting)}."
        + (markers if setting.has_seeds else ""),
        [height],
        width=0.6 + widest(names) + ROUNDS_WIDTH + NEVER + widest(texts.values()),
    )
    _name_rows(axes, names)
    # A column for seeds that never got there; in data units, so that it is as wide in every plot.
    end = max(setting.rounds, 1)
    width = end * NEVER / ROUNDS_WIDTH
    axes.set_xlim(0, end + width)
    axes.axvspan(end, end + width, color="#F1F1F1", linewidth=0, zorder=0)
    axes.axvline(end, color=FAINT, linewidth=0.8)
    ticks = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(0, setting.rounds)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= setting.rounds])
    never, above = end + width / 2, axes.get_xaxis_transform()
    axes.text(never, 1.0 + 0.06 / height, "not reached", transform=above, ha="center")
    # The seeds, beside each other around the row's middle, so that equal ones do not hide.
    right, beside = 1.0 + 0.12 / (ROUNDS_WIDTH + NEVER), axes.get_yaxis_transform()
    for row, (label, own) in enumerate(found.items()):
        look = looks[label]
        if math.isfinite(means[label]):
            axes.barh(row, means[label], height=0.6, color=look.color, alpha=0.3, linewidth=0)
        reach = min(0.3, 0.14 * (len(own) - 1))
        rows = row + np.linspace(-reach, reach, len(own))
        there = np.isfinite(own)
        axes.plot(own[there], rows[there], clip_on=False, zorder=3, **look.points(5.5, edge=0.5))
        crosses = axes.plot(np.full(sum(~there), never), rows[~there], "x", markersize=4.5)
        crosses[0].set(markeredgecolor=look.color, markeredgewidth=1.4)
        axes.text(right, row, texts[label], transform=beside, va="center")
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Let the vertical axis name rows from top to bottom, and the horizontal one have the grid."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.grid(axis="x")
