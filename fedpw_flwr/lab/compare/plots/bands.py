"""Lines and bands over rounds: the mean over seeds, and the lowest and highest seed."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from fedpw_flwr.lab.compare.settings import Method, Setting


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


def draw_band(axes: Axes, band: pd.DataFrame, color: str) -> None:
    """Draw what lies between the lowest and the highest seed."""
    axes.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.14, linewidth=0)


def how_drawn(setting: Setting) -> str:
    """Return what a heading says of lines and bands."""
    if setting.has_seeds:
        return "Line: mean over seeds. Band: from the lowest to the highest seed."
    return "One seed."


def stay_in_percent(axes: Axes) -> None:
    """Keep the vertical limits that matplotlib chose within 0 to 100 %."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(max(high, low + 1.0), 101.0))
