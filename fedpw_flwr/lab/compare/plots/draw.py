"""Which plots a setting has, their files and captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from fedpw_flwr.lab.compare.plots.curves import curves_figure
from fedpw_flwr.lab.compare.plots.fairness import fairness_figure
from fedpw_flwr.lab.compare.plots.finals import domains_figure, rounds_to_target_figure
from fedpw_flwr.lab.compare.plots.weights import weights_figure
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import Window
from fedpw_flwr.lab.plots.looks import Look
from fedpw_flwr.lab.plots.panels import STYLE, save_plots
from fedpw_flwr.lab.runs.written import percent


def write_plots(
    folder: Path, setting: Setting, looks: Mapping[str, Look], window: Window, target: float
) -> dict[Path, str]:
    """Draw a setting's plots as PNG files and return their captions by path."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_setting(setting, looks, window, target)
    paths = save_plots(folder, {name: figure for name, (figure, _) in drawn.items()})
    return dict(zip(paths, (caption for _, caption in drawn.values()), strict=True))


@matplotlib.rc_context(STYLE)
def draw_setting(
    setting: Setting, looks: Mapping[str, Look], window: Window, target: float
) -> dict[str, tuple[Figure, str]]:
    """Draw all plots that a setting's runs have the figures for, with captions by file name.

    Final accuracies are those of the window; a target of NaN has no plot. Where accuracies are
    known over clients and over several domains, the plots over domains have names of their own
    (``fairness_domains.png``).
    """
    plots: dict[str, tuple[Figure | None, str]] = {}
    bands = "round by round; bands from the lowest to the highest seed"
    for basis in setting.bases:
        suffix = "" if basis == setting.bases[0] else f"_{basis}"
        plots[f"fairness{suffix}.png"] = (
            fairness_figure(setting, looks, basis, window),
            f"Mean accuracy against standard deviation over {basis}, {window.label}; small "
            "markers are seeds",
        )
        curves = curves_figure(setting, looks, basis)
        plots[f"curves{suffix}.png"] = curves, f"Accuracy over {basis}, {bands}"
    if "domains" not in setting.bases:
        suffix = "_test_set" if setting.bases else ""
        curves = curves_figure(setting, looks, "domains")
        plots[f"curves{suffix}.png"] = curves, f"Accuracy on the test set, {bands}"
    plots["domains.png"] = (
        domains_figure(setting, looks, window),
        f"Accuracy per domain, {window.label}; lines are one standard deviation over seeds",
    )
    plots["rounds_to_target.png"] = (
        rounds_to_target_figure(setting, looks, target),
        f"Rounds to a mean accuracy of {percent(target)}",
    )
    weights = weights_figure(setting)
    plots["weights.png"] = weights, "Aggregation weights over rounds, mean over seeds"
    return {name: (figure, text) for name, (figure, text) in plots.items() if figure is not None}
