"""``domains.png`` shows on which domains a method wins and on which it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import accuracy_of
from fedpw_flwr.lab.compare.formats import number
from fedpw_flwr.lab.compare.plots.looks import Look
from fedpw_flwr.lab.compare.plots.page import (
    name_panel,
    name_rows,
    new_page,
    shortened,
    widest,
)
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window, over_seeds
from fedpw_flwr.lab.plots.panels import INK, LABEL_SIZE

__all__ = ["domains_figure"]

WIDTH, ROW = 1.95, 0.24  # inches
PANELS_A_ROW = 4
TEXT_ROOM = 34  # percent of accuracy, right of 100 %, for the figures


def domains_figure(setting: Setting, looks: Mapping[str, Look], window: Window) -> Figure | None:
    """Draw a panel a domain with a bar a method; None where there is one domain."""
    if len(setting.domains) < 2:
        return None
    columns = min(PANELS_A_ROW, len(setting.domains))
    spread = any(len(method.runs) > 1 for method in setting.methods)
    names = [looks[method.label].label for method in setting.methods]
    figure, panels = new_page(
        "Accuracy per domain",
        (
            setting.label,
            f"Global model on each domain's test set: {window.label}."
            + (" Bar: mean over seeds. Line: one standard deviation either way." if spread else ""),
        ),
        width=0.3 + widest(names) + columns * (WIDTH + 0.2),
        height=max(0.7, ROW * len(names) + 0.1) + 0.35,
        panels=len(setting.domains),
        columns=columns,
        labels=("test accuracy (%)", ""),
    )
    mean, std = over_seeds(window.of(setting.rounds_of_runs))
    for axes, domain in zip(panels, setting.domains, strict=True):
        name_panel(axes, shortened(domain, 22), 10)
        name_rows(axes, names)
        key = accuracy_of(domain).key
        _draw_bars(axes, looks, pd.DataFrame({"mean": mean[key], "std": std[key]}))
    return figure


def _draw_bars(axes: Axes, looks: Mapping[str, Look], values: pd.DataFrame) -> None:
    axes.set_xlim(0, 100 + TEXT_ROOM)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.spines["bottom"].set_bounds(0, 100)
    for row, value in enumerate(values.itertuples()):
        if not math.isfinite(value.mean):
            axes.text(1, row, "unknown", va="center", fontsize=LABEL_SIZE - 1, color=INK)
            continue
        axes.barh(
            row, value.mean, height=0.66, color=looks[value.Index].color, linewidth=0, alpha=0.85
        )
        deviation = value.std if math.isfinite(value.std) else 0.0
        if deviation:
            axes.errorbar(
                value.mean,
                row,
                xerr=deviation,
                ecolor="#777777",
                elinewidth=1.2,
                capsize=2.0,
                linestyle="",
            )
        axes.text(
            min(value.mean + deviation, 100.0) + 3,
            row,
            number(value.mean, 1),
            va="center",
            fontsize=LABEL_SIZE - 1,
            color=INK,
        )
