"""``curves.png`` of many methods: a small panel for each, beside the reference in grey."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpw_flwr.lab.compare.formats import number
from fedpw_flwr.lab.compare.plots.looks import Look
from fedpw_flwr.lab.compare.plots.over_rounds import accuracy_limits, said_of_seeds
from fedpw_flwr.lab.compare.plots.page import (
    fitted,
    name_panel,
    new_page,
    text_width,
)
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.panels import LineStyle, set_round_axis

__all__ = ["method_panels_figure"]

_PANELS_A_ROW = 4
_WIDTH, _HEIGHT = 2.35, 1.95  # inches
_STYLES: tuple[LineStyle, ...] = ("-", (0, (3, 1.2)))
_BLUE, _GREY = "#0072B2", "#8C8C8C"


def method_panels_figure(
    setting: Setting, looks: Mapping[str, Look], bands: Mapping[str, Mapping[str, pd.DataFrame]]
) -> Figure:
    """Draw a small panel for each method, a line for each figure, and the reference's in grey.

    Parameters
    ----------
    setting : Setting
        The runs.
    looks : Mapping[str, Look]
        By the methods' labels.
    bands : Mapping[str, Mapping[str, pd.DataFrame]]
        One or two figures by name, each as the bands of the methods that have it, at least one.
    """
    everything = [band for of_figure in bands.values() for band in of_figure.values()]
    labels = [m.label for m in setting.methods if any(m.label in of for of in bands.values())]
    default = setting.reference(None)
    reference = "" if default is None else default.label
    drawn = "; ".join(
        f"{said}: {title[0].lower()}{title[1:]}"
        for said, title in zip(("Solid", "dashed"), bands, strict=False)
    )
    columns = min(_PANELS_A_ROW, len(labels))
    figure, panels = new_page(
        "Accuracy over rounds",
        (
            setting.label,
            f"{drawn}. {said_of_seeds(setting)} Grey: {reference}. "
            "In titles: after the last round.",
        ),
        width=0.8 + columns * (_WIDTH + 0.25),
        height=_HEIGHT,
        panels=len(labels),
        columns=columns,
        labels=("round", "accuracy (%)"),
    )
    rounds = np.unique(np.concatenate([band.index for band in everything]))
    limits = accuracy_limits(everything)
    for axes, label in zip(panels, labels, strict=True):
        finals = []
        for of_figure, style in zip(bands.values(), _STYLES, strict=False):
            if reference in of_figure and label != reference:
                other = of_figure[reference]["mean"]
                axes.plot(other.index, other, color=_GREY, linestyle=style, linewidth=1.2)
            if label in of_figure:
                band = of_figure[label]
                axes.fill_between(
                    band.index, band["min"], band["max"], color=_BLUE, alpha=0.15, linewidth=0
                )
                axes.plot(
                    band.index, band["mean"], color=_BLUE, linestyle=style, linewidth=1.6, zorder=3
                )
                finals.append(number(band["mean"].iloc[-1], 1))
        axes.set_ylim(*limits)
        set_round_axis(axes, rounds)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        ending = f": {' / '.join(finals)} %"
        name_panel(axes, fitted(looks[label].label, _WIDTH - text_width(ending)) + ending)
    return figure
