"""``domains.png`` shows on which domains a method wins and on which it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.experiment.comparison.figures import accuracy_of
from fedpw_flwr.experiment.comparison.formats import number
from fedpw_flwr.experiment.comparison.pictures.looks import Look
from fedpw_flwr.experiment.comparison.pictures.page import add_axes, new_page, shortened, widest
from fedpw_flwr.experiment.comparison.settings import Setting
from fedpw_flwr.experiment.comparison.statistics import Window, over_seeds
from fedpw_flwr.experiment.panels import INK, LABEL_SIZE

__all__ = ["domains_figure"]

WIDTH, GAP, BOTTOM, ROW = 1.95, 0.25, 0.62, 0.24  # inches
ROW_GAP = 0.5  # inches between one row of panels and the next
PANELS_A_ROW = 4
TEXT_ROOM = 34  # percent of accuracy, right of 100 %, for the figures


def domains_figure(setting: Setting, looks: Mapping[str, Look], window: Window) -> Figure | None:
    """Draw a panel a domain with a bar a method; None where there is one domain."""
    if len(setting.domains) < 2:
        return None
    methods = [method.label for method in setting.methods]
    columns = min(PANELS_A_ROW, len(setting.domains))
    rows = math.ceil(len(setting.domains) / columns)
    left = 0.15 + widest(looks[label].label for label in methods) + 0.12
    height = max(0.7, ROW * len(methods) + 0.1)
    spread = any(len(method.runs) > 1 for method in setting.methods)
    figure = new_page(
        left + columns * WIDTH + (columns - 1) * GAP + 0.15,
        BOTTOM + rows * height + (rows - 1) * ROW_GAP + 0.35,
        "Accuracy per domain",
        (
            setting.label,
            f"Global model on each domain's test set: {window.label}."
            + (" Bar: mean over seeds. Line: one standard deviation either way." if spread else ""),
        ),
    )
    mean, std = over_seeds(window.of(setting.rounds_of_runs))
    for place, domain in enumerate(setting.domains):
        row, column = divmod(place, columns)
        lowest = place + columns >= len(setting.domains)
        axes = add_axes(
            figure,
            left=left + column * (WIDTH + GAP),
            bottom=BOTTOM + (rows - 1 - row) * (height + ROW_GAP),
            width=WIDTH,
            height=height,
        )
        axes.set_title(shortened(domain, 22), loc="left", fontsize=10, color=INK, parse_math=False)
        key = accuracy_of(domain).key
        _draw_bars(axes, looks, pd.DataFrame({"mean": mean[key], "std": std[key]}))
        axes.set_yticks(
            range(len(methods)),
            [looks[label].label for label in methods] if column == 0 else [""] * len(methods),
        )
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelbottom=lowest)
        if lowest:
            axes.set_xlabel("test accuracy (%)")
    return figure


def _draw_bars(axes: Axes, looks: Mapping[str, Look], values: pd.DataFrame) -> None:
    axes.set_xlim(0, 100 + TEXT_ROOM)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(visible=False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
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
