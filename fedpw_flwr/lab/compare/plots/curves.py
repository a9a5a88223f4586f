"""``curves.png`` shows how fast each method learns, and whether the worst served keep up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import Basis
from fedpw_flwr.lab.compare.plots.bands import (
    band_over_seeds,
    draw_band,
    how_drawn,
    stay_in_percent,
)
from fedpw_flwr.lab.compare.plots.method_panels import method_panels_figure
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots.labels import panel_height
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.names import widest
from fedpw_flwr.lab.plots.panels import BESIDE_LABELS, draw_lines, new_page

MOST_IN_ONE_PANEL = 6

WORST = {
    "domains": ("domains.worst", "Worst domain"),
    "clients": ("clients.worst_10", "Worst 10 % of the clients"),
}


def curves_figure(setting: Setting, looks: Mapping[str, Look], basis: Basis) -> Figure | None:
    """Draw mean and worst accuracy over rounds; None if no method has them over `basis`.

    One domain has no worst one, and one panel. More than six methods get a panel each, in which
    the one that the others are compared with by default is drawn in grey.
    """
    # Over seeds, by panel and method.
    whom = "clients, each on its own test data" if basis == "clients" else "domains"
    shown = [(f"{basis}.mean", f"Mean over {whom}"), WORST[basis]]
    if basis == "domains" and len(setting.domains) == 1:
        shown = [(f"{basis}.mean", f"Accuracy on the test set of {setting.domains[0]}")]
    bands = {
        title: {
            method.label: band
            for method in setting.methods
            if (band := band_over_seeds(method, key)) is not None
        }
        for key, title in shown
    }
    if not any(bands.values()):
        return None
    if len(setting.methods) > MOST_IN_ONE_PANEL:
        return method_panels_figure(setting, looks, bands)

    names = [f"{looks[label].label}: 100.0 %" for of_panel in bands.values() for label in of_panel]
    height = panel_height(max(map(len, bands.values())) + 1, least=2.6)
    first = min(band.index[0] for of_panel in bands.values() for band in of_panel.values())
    figure, panels = new_page(
        "Accuracy over rounds",
        f"{setting.label}\n{how_drawn(setting)}",
        [height] * len(bands),
        width=BESIDE_LABELS + widest(names) + 0.15,
        labels=("round" if first else "round (0 is the initial model)", "accuracy (%)"),
    )
    for axes, title in zip(panels, bands, strict=True):
        axes.set_title(title)
    for axes, of_panel in zip(panels, bands.values(), strict=True):
        for label, band in of_panel.items():
            draw_band(axes, band, looks[label].color)
        stay_in_percent(axes)
        means = pd.DataFrame({label: band["mean"] for label, band in of_panel.items()}).sort_index()
        lines = [looks[label].line(mean.to_numpy(), 1.6) for label, mean in means.items()]
        draw_lines(axes, means.index.to_numpy(dtype=np.float64), lines, unit=" %", digits=1)
    return figure
