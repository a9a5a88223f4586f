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
from fedpw_flwr.lab.compare.plots.looks import Look
from fedpw_flwr.lab.compare.plots.method_panels import method_panels_figure
from fedpw_flwr.lab.compare.plots.page import new_page, widest
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.plots import panels

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

    # The lines.
    names = [f"{looks[label].label}: 100.0 %" for of_panel in bands.values() for label in of_panel]
    figure, axes = new_page(
        "Accuracy over rounds",
        (setting.label, how_drawn(setting)),
        width=panels.LEFT_MARGIN + panels.PANEL_WIDTH + panels.LEADER + widest(names) + 0.15,
        height=panels.panel_height(max(map(len, bands.values())) + 1, least=2.6) + 0.35,
        panels=len(bands),
        same_heights=False,
        labels=("round", "accuracy (%)"),
    )
    for own, (title, of_panel) in zip(axes, bands.items(), strict=True):
        own.set_title(title, fontsize=10.5)
        for label, band in of_panel.items():
            look = looks[label]
            marker = look.marker if len(band) == 1 else ""
            draw_band(own, band, look.color, look.style, marker=marker, markeredgewidth=0)
        stay_in_percent(own)

    # The names at their ends, which are moved apart by heights that only the layout gives.
    figure.draw_without_rendering()
    for own, of_panel in zip(axes, bands.values(), strict=True):
        means = pd.DataFrame({label: band["mean"] for label, band in of_panel.items()}).sort_index()
        rounds = means.index.to_numpy(dtype=np.float64) if len(means) else np.zeros(1)
        panels.set_round_axis(own, rounds)
        lines = []
        for label, mean in means.items():
            look = looks[label]
            lines.append(panels.Line(mean.to_numpy(), look.label, look.color, look.style, 1.6))
        panels.label_ends(own, rounds, lines, " %", 1)
        if rounds[0] == 0 and own.get_xlabel():
            own.set_xlabel("round (0 is the initial model)")
    return figure
