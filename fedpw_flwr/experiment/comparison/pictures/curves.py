"""``curves.png`` shows how fast each method learns, and whether the worst served keep up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedpw_flwr.experiment.comparison.figures import Basis
from fedpw_flwr.experiment.comparison.formats import number
from fedpw_flwr.experiment.comparison.pictures.looks import Look
from fedpw_flwr.experiment.comparison.pictures.page import (
    add_axes,
    fitted,
    new_page,
    text_width,
    widest,
)
from fedpw_flwr.experiment.comparison.settings import Method, Setting
from fedpw_flwr.experiment.panels import (
    INK,
    LABEL_SIZE,
    LEADER,
    LEFT_MARGIN,
    PANEL_WIDTH,
    Line,
    LineStyle,
    label_ends,
    panel_height,
    set_round_axis,
)

__all__ = ["band_over_seeds", "curves_figure"]

FloatArray = NDArray[np.float64]

_MOST_IN_ONE_PANEL = 6
_PANELS_A_ROW = 4
_LEFT, _WIDTH, _HEIGHT, _GAP, _ROW_GAP, _BOTTOM = 0.8, 2.35, 1.6, 0.3, 0.5, 0.62  # inches
_STYLES: tuple[LineStyle, ...] = ("-", (0, (3, 1.2)))
_BLUE, _GREY = "#0072B2", "#8C8C8C"

_WORST = {
    "domains": ("domains.worst", "Worst domain"),
    "clients": ("clients.worst_10", "Worst 10 % of the clients"),
}


def band_over_seeds(method: Method, key: str) -> pd.DataFrame | None:
    """Return ``mean``, ``min`` and ``max`` over seeds, by round; None where a run lacks the figure.

    The rounds are those that all of the method's runs recorded.
    """
    if not method.has(key):
        return None
    seeds = pd.concat([run.history[key] for run in method.runs.values()], axis=1, join="inner")
    over = ("mean", "min", "max")
    band = pd.DataFrame({name: getattr(seeds, name)(axis=1, skipna=False) for name in over})
    return None if seeds.isna().all(axis=None) else band


def curves_figure(setting: Setting, looks: Mapping[str, Look], basis: Basis) -> Figure | None:
    """Draw mean and worst accuracy over rounds; None if no method has them over `basis`.

    One domain has no worst one, and one panel. More than six methods get a panel each, in which
    the one that the others are compared with by default is drawn in grey.
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
    if len(setting.methods) > _MOST_IN_ONE_PANEL:
        return _panel_each(
            setting, looks, dict(zip([title for _, title in panels], bands, strict=True))
        )
    rows = max(len(of_panel) for of_panel in bands)
    height, gap, bottom = panel_height(rows + 1, least=2.6), 0.5, 0.62
    labels = [f"{looks[label].label}: 100.0 %" for of_panel in bands for label in of_panel]
    figure = new_page(
        LEFT_MARGIN + PANEL_WIDTH + LEADER + widest(labels) + 0.15,
        bottom + len(panels) * height + (len(panels) - 1) * gap + 0.35,
        "Accuracy over rounds",
        (
            setting.label,
            _said_of_seeds(setting),
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
        recorded = [band.index for band in of_panel.values()] or [np.zeros(1)]
        every = np.unique(np.concatenate(recorded))
        for label, band in of_panel.items():
            look = looks[label]
            axes.fill_between(
                band.index, band["min"], band["max"], color=look.color, alpha=0.13, linewidth=0
            )
            alone = len(band.index) == 1
            axes.plot(
                band.index,
                band["mean"],
                color=look.color,
                linestyle=look.style,
                linewidth=1.6,
                marker=look.marker if alone else "",
                markeredgewidth=0,
                zorder=3,
            )
            on_all = np.full(len(every), math.nan)
            on_all[np.isin(every, band.index)] = band["mean"]
            lines.append(Line(on_all, look.label, look.color, look.style, 1.6))
        shown = [
            values[np.isfinite(values)]
            for band in of_panel.values()
            for values in (band["min"], band["max"])
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


def _panel_each(
    setting: Setting, looks: Mapping[str, Look], bands: Mapping[str, Mapping[str, pd.DataFrame]]
) -> Figure:
    """Draw a small panel for each method, a line for each figure, and the reference's in grey."""
    labels = [
        method.label
        for method in setting.methods
        if any(method.label in of for of in bands.values())
    ]
    columns = min(_PANELS_A_ROW, len(labels))
    rows = math.ceil(len(labels) / columns)
    default = setting.reference(None)
    reference = "" if default is None else default.label
    drawn = "; ".join(
        f"{said}: {title[0].lower()}{title[1:]}"
        for said, title in zip(("Solid", "dashed"), bands, strict=False)
    )
    figure = new_page(
        _LEFT + columns * _WIDTH + (columns - 1) * _GAP + 0.25,
        _BOTTOM + rows * _HEIGHT + (rows - 1) * _ROW_GAP + 0.35,
        "Accuracy over rounds",
        (
            setting.label,
            f"{drawn}. {_said_of_seeds(setting)} Grey: {reference}. "
            "In titles: after the last round.",
        ),
    )
    every = np.unique(np.concatenate([band.index for of in bands.values() for band in of.values()]))
    values = [band["min"] for of in bands.values() for band in of.values()]
    values += [band["max"] for of in bands.values() for band in of.values()]
    shown = np.concatenate([each[np.isfinite(each)] for each in values])
    for place, label in enumerate(labels):
        row, column = divmod(place, columns)
        axes = add_axes(
            figure,
            left=_LEFT + column * (_WIDTH + _GAP),
            bottom=_BOTTOM + (rows - 1 - row) * (_HEIGHT + _ROW_GAP),
            width=_WIDTH,
            height=_HEIGHT,
        )
        finals = []
        for of_figure, style in zip(bands.values(), _STYLES, strict=False):
            if reference in of_figure and label != reference:
                other = of_figure[reference]
                axes.plot(other.index, other["mean"], color=_GREY, linestyle=style, linewidth=1.2)
            if label in of_figure:
                band = of_figure[label]
                axes.fill_between(
                    band.index, band["min"], band["max"], color=_BLUE, alpha=0.15, linewidth=0
                )
                axes.plot(
                    band.index, band["mean"], color=_BLUE, linestyle=style, linewidth=1.6, zorder=3
                )
                finals.append(number(band["mean"].iloc[-1], 1))
        axes.set_ylim(*_limits(shown))
        set_round_axis(axes, every)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        ending = f": {' / '.join(finals)} %"
        axes.set_title(
            fitted(looks[label].label, _WIDTH - text_width(ending)) + ending,
            loc="left",
            fontsize=LABEL_SIZE,
            color=INK,
            parse_math=False,
        )
        lowest = place + columns >= len(labels)
        axes.tick_params(labelbottom=lowest, labelleft=column == 0)
        if lowest:
            axes.set_xlabel("round")
        if column == 0:
            axes.set_ylabel("accuracy (%)")
    return figure


def _said_of_seeds(setting: Setting) -> str:
    if any(len(method.runs) > 1 for method in setting.methods):
        return "Line: mean over seeds. Band: from the lowest to the highest seed."
    return "One seed."


def _limits(values: FloatArray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    air = max(0.04 * (high - low), 0.5)
    return max(0.0, low - air), min(100.0, high + air) if high < 100 else 101.0
