"""Plots ``curves*.png``: how fast each method learns, and whether the worst served keep up.

Lines are means over seeds, bands reach from the lowest to the highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import Basis
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.labels import LABEL_SIZE, fitted, panel_height, widest
from fedpw_flwr.lab.plots.looks import LineStyle, Look
from fedpw_flwr.lab.plots.panels import BESIDE_LABELS, draw_lines, new_page, set_round_axis
from fedpw_flwr.lab.runs.written import number

MOST_IN_ONE_PANEL = 6

# Of one method's panel, in inches.
WIDTH, HEIGHT = 2.35, 1.5
PANELS_A_ROW = 4
STYLES: tuple[LineStyle, ...] = ("-", (0, (3, 1.2)))
BLUE, GREY = "#0072B2", "#8C8C8C"
SHOWN: dict[Basis, dict[str, str]] = {
    "domains": {"Mean over domains": "domains.mean", "Worst domain": "domains.worst"},
    "clients": {
        "Mean over clients, each on its own test data": "clients.mean",
        "Worst 10 % of the clients": "clients.worst_10",
    },
}
Bands = Mapping[str, Mapping[str, pd.DataFrame]]
"""By figure and method, as from `bands_over_seeds`."""


def curves_figure(setting: Setting, looks: Mapping[str, Look], basis: Basis) -> Figure | None:
    """Draw mean and worst accuracy over rounds; None if no method has them over `basis`.

    One domain has no worst one. More than six methods get a panel each, in which the one that the
    others are compared with by default is drawn in grey.
    """
    shown = SHOWN[basis]
    if basis == "domains" and len(setting.domains) == 1:
        shown = {f"Accuracy on the test set of {setting.domains[0]}": "domains.mean"}
    bands = {title: bands_over_seeds(setting, key) for title, key in shown.items()}
    if not any(bands.values()):
        return None
    drawn = "One seed."
    if setting.has_seeds:
        drawn = "Line: mean over seeds. Band: from the lowest to the highest seed."
    draw = _by_method if len(setting.methods) > MOST_IN_ONE_PANEL else _by_figure
    return draw(setting, looks, bands, drawn)


def bands_over_seeds(setting: Setting, key: str) -> dict[str, pd.DataFrame]:
    """Return ``mean``, ``min`` and ``max`` over seeds by round, of the methods with the figure."""
    if key not in setting.rounds_of_runs:
        return {}
    bands = {}
    for label, rounds in setting.tested_rounds[key].groupby("method", sort=False):
        seeds = rounds.droplevel("method").unstack("seed")
        over = ("mean", "min", "max")
        band = pd.DataFrame({name: getattr(seeds, name)(axis=1, skipna=False) for name in over})
        if not band.isna().all(axis=None):
            bands[str(label)] = band
    return bands


def _by_figure(setting: Setting, looks: Mapping[str, Look], bands: Bands, drawn: str) -> Figure:
    names = [f"{looks[label].label}: 100.0 %" for of_panel in bands.values() for label in of_panel]
    height = panel_height(max(map(len, bands.values())) + 1, least=2.6)
    first = min(band.index[0] for of_panel in bands.values() for band in of_panel.values())
    figure, panels = new_page(
        "Accuracy over rounds",
        f"{setting.label}\n{drawn}",
        [height] * len(bands),
        width=BESIDE_LABELS + widest(names) + 0.15,
        labels=("round" if first else "round (0 is the initial model)", "accuracy (%)"),
    )
    for axes, title in zip(panels, bands, strict=True):
        axes.set_title(title)
    for axes, of_panel in zip(panels, bands.values(), strict=True):
        for label, band in of_panel.items():
            _draw_band(axes, band, looks[label].color)
        _stay_in_percent(axes)
        means = pd.DataFrame({label: band["mean"] for label, band in of_panel.items()}).sort_index()
        draw_lines(axes, means, looks, unit=" %", digits=1)
    return figure


def _by_method(setting: Setting, looks: Mapping[str, Look], bands: Bands, drawn: str) -> Figure:
    labels = [m.label for m in setting.methods if any(m.label in of for of in bands.values())]
    default = setting.reference(None)
    reference = "" if default is None else default.label
    named = zip(("Solid", "dashed"), bands, strict=False)
    lines = "; ".join(f"{style}: {title[0].lower()}{title[1:]}" for style, title in named)
    columns = min(PANELS_A_ROW, len(labels))
    figure, panels = new_page(
        "Accuracy over rounds",
        f"{setting.label}\n{lines}. {drawn} Grey: {reference}. In titles: after the last round.",
        [HEIGHT] * math.ceil(len(labels) / columns),
        width=0.8 + columns * (WIDTH + 0.25),
        columns=columns,
        panels=len(labels),
        labels=("round", "accuracy (%)"),
    )
    every = [band for of_figure in bands.values() for band in of_figure.values()]
    rounds = pd.concat(every).index.unique().sort_values()
    for axes, label in zip(panels, labels, strict=True):
        finals = []
        for of_figure, style in zip(bands.values(), STYLES, strict=False):
            if reference in of_figure and label != reference:
                axes.plot(of_figure[reference]["mean"], color=GREY, linestyle=style, linewidth=1.2)
            if label in of_figure:
                _draw_band(axes, of_figure[label], BLUE)
                mean = of_figure[label]["mean"]
                axes.plot(mean, color=BLUE, linestyle=style, linewidth=1.6, zorder=3)
                finals.append(number(mean.iloc[-1], 1))
        set_round_axis(axes, rounds, nbins=4)
        ending = f": {' / '.join(finals)} %"
        name = fitted(looks[label].label, WIDTH - widest([ending]))
        axes.set_title(name + ending, fontsize=LABEL_SIZE)
    _stay_in_percent(axes)
    return figure


def _draw_band(axes: Axes, band: pd.DataFrame, color: str) -> None:
    axes.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.14, linewidth=0)


def _stay_in_percent(axes: Axes) -> None:
    """Keep the vertical limits that matplotlib chose within 0 to 100 %."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(max(high, low + 1.0), 101.0))
