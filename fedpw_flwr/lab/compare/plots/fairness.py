"""The plot ``fairness.png``: which methods serve everyone well, and which the average."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import Basis
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window, near_chance, over_seeds
from fedpw_flwr.lab.plots.labels import LEADER, label_points, panel_height, widest
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.panels import new_page
from fedpw_flwr.lab.runs.written import number, percent

# Inches.
FAIRNESS_WIDTH = 5.2


def fairness_figure(
    setting: Setting, looks: Mapping[str, Look], basis: Basis, window: Window
) -> Figure | None:
    """Draw mean against standard deviation of methods that have them over `basis`; None if none."""
    runs = window.of(setting)[[f"{basis}.mean", f"{basis}.std"]]
    points = over_seeds(runs)[0].dropna()
    if points.empty:
        return None
    near = near_chance(setting, window)
    texts = [
        f"{looks[label].label}: {percent(mean)}, STD {number(std, 1)}"
        + (" (near chance)" if near[label] else "")
        for label, mean, std in points.itertuples()
    ]
    seeds = len(runs.loc[list(points.index)]) > len(points)
    whom = "domains" if basis == "domains" else "clients, each on its own test data"
    figure, (axes,) = new_page(
        "Accuracy against fairness",
        f"{setting.label}\nOver {whom}: {window.label}. Better is right and down."
        + (" Small: one seed. Large: mean over seeds." if seeds else ""),
        [panel_height(len(points) + 1, least=3.4)],
        width=0.9 + FAIRNESS_WIDTH + LEADER + widest(texts),
        labels=(f"mean accuracy over {basis} (%)", f"STD over {basis} (points)"),
    )
    axes.grid(axis="x")
    for label, mean, std in points.itertuples():
        own, look = runs.loc[label], looks[label]
        if len(own) > 1:
            axes.plot(*own.to_numpy().T, alpha=0.55, zorder=3, **look.points(4.5))
        axes.plot(mean, std, zorder=4, **look.points(10.0, edge=1.0))
    axes.margins(0.08)
    # Limits that lie close together would have ticks of many digits.
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        missing = max(0.0, 1.0 - (high - low))
        axis.set_view_interval(low - missing / 2, high + missing / 2, ignore=True)
    named = zip(points.itertuples(), texts, strict=True)
    label_points(axes, [(*at, text, looks[label].points(7.0)) for (label, *at), text in named])
    return figure
