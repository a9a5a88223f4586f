"""``curves.png`` of many methods: a small panel for each, beside the reference in grey."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.plots.bands import draw_band, how_drawn, stay_in_percent
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.names import LABEL_SIZE, fitted, widest
from fedpw_flwr.lab.plots.panels import LineStyle, new_page, set_round_axis
from fedpw_flwr.lab.runs.written import number

PANELS_A_ROW = 4
WIDTH, HEIGHT = 2.35, 1.5  # inches
STYLES: tuple[LineStyle, ...] = ("-", (0, (3, 1.2)))
BLUE, GREY = "#0072B2", "#8C8C8C"


def method_panels_figure(
    setting: Setting, looks: Mapping[str, Look], bands: Mapping[str, Mapping[str, pd.DataFrame]]
) -> Figure:
    """Draw a small panel for each method, a line for each figure, and the reference's in grey.

    `bands` holds one or two figures by name, each as the bands of the methods that have it.
    """
    labels = [m.label for m in setting.methods if any(m.label in of for of in bands.values())]
    default = setting.reference(None)
    reference = "" if default is None else default.label
    lines = "; ".join(
        f"{style}: {title[0].lower()}{title[1:]}"
        for style, title in zip(("Solid", "dashed"), bands, strict=False)
    )
    columns = min(PANELS_A_ROW, len(labels))
    figure, panels = new_page(
        "Accuracy over rounds",
        f"{setting.label}\n{lines}. {how_drawn(setting)} Grey: {reference}. In titles: after the "
        "last round.",
        [HEIGHT] * math.ceil(len(labels) / columns),
        width=0.8 + columns * (WIDTH + 0.25),
        columns=columns,
        panels=len(labels),
        labels=("round", "accuracy (%)"),
        same_scale=True,
    )
    drawn = [band for of_figure in bands.values() for band in of_figure.values()]
    rounds = pd.concat(drawn).index.unique().sort_values()
    for axes, label in zip(panels, labels, strict=True):
        finals = []
        for of_figure, style in zip(bands.values(), STYLES, strict=False):
            if reference in of_figure and label != reference:
                axes.plot(of_figure[reference]["mean"], color=GREY, linestyle=style, linewidth=1.2)
            if label in of_figure:
                draw_band(axes, of_figure[label], BLUE)
                mean = of_figure[label]["mean"]
                axes.plot(mean, color=BLUE, linestyle=style, linewidth=1.6, zorder=3)
                finals.append(number(mean.iloc[-1], 1))
        set_round_axis(axes, rounds, nbins=4)
        ending = f": {' / '.join(finals)} %"
        name = fitted(looks[label].label, WIDTH - widest([ending]))
        axes.set_title(name + ending, fontsize=LABEL_SIZE)
    stay_in_percent(axes)
    return figure
