"""``domains.png`` shows on which domains a method wins and on which it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.figures import accuracy_of
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window, over_seeds
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.names import fitted, name_rows, widest
from fedpw_flwr.lab.plots.panels import new_page
from fedpw_flwr.lab.runs.written import number

WIDTH, ROW = 1.95, 0.24  # inches
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
        [max(0.7, ROW * len(names) + 0.1)] * math.ceil(len(domains) / columns),
        width=0.3 + widest(names) + columns * (WIDTH + 0.2),
        columns=columns,
        panels=len(domains),
        labels=("test accuracy (%)", ""),
        same_scale=True,
    )
    # Bars, with their figures beside them.
    means, stds = over_seeds(window.of(setting))
    for axes, domain in zip(panels, domains, strict=True):
        axes.set_title(fitted(domain, 0.9 * WIDTH))
        name_rows(axes, names)
        axes.set(xlim=(0, 100 + TEXT_ROOM), xticks=[0, 25, 50, 75, 100])
        axes.spines["bottom"].set_bounds(0, 100)
        mean, std = (values[accuracy_of(domain).key] for values in (means, stds))
        bars = axes.barh(
            range(len(names)),
            mean,
            height=0.66,
            color=[looks[label].color for label in mean.index],
            alpha=0.85,
            linewidth=0,
            xerr=std.where(std > 0),
            ecolor="#777777",
            capsize=2.0,
            error_kw={"elinewidth": 1.2, "alpha": 1.0},
        )
        axes.bar_label(bars, [number(value, 1) for value in mean], padding=3, fontsize=8)
        for row in mean.isna().to_numpy().nonzero()[0]:
            axes.text(1, row, "unknown", va="center", fontsize=8)
    return figure
