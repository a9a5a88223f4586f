"""What lines and bands over rounds show: the mean over seeds, and the lowest and highest seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from fedpw_flwr.lab.compare.history import CLIENT_WEIGHT, DOMAIN_WEIGHT
from fedpw_flwr.lab.compare.settings import Method, Setting

__all__ = ["accuracy_limits", "band_over_seeds", "said_of_seeds", "weights_over_seeds"]


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


def weights_over_seeds(method: Method, *, of_clients: bool) -> pd.DataFrame:
    """Average a method's shares of the weights over its seeds, round by round.

    Parameters
    ----------
    method : Method
        The method.
    of_clients : bool
        The largest, median and smallest share of a client, instead of each domain's mean.

    Returns
    -------
    pd.DataFrame
        By round and name the shares in units of the equal share 1/N, over those seeds in which
        some of the domain's clients took part, NaN where there is none. Rounds without any weight,
        such as the initial model, are left out.
    """
    prefix = CLIENT_WEIGHT if of_clients else DOMAIN_WEIGHT
    seeds = [run.history.filter(regex=f"^{re.escape(prefix)}") for run in method.runs.values()]
    return (
        pd.concat(seeds)
        .groupby("round")
        .mean()
        .dropna(how="all")
        .rename(columns=lambda key: key.removeprefix(prefix))
    )


def said_of_seeds(setting: Setting) -> str:
    """Return what a heading says of lines and bands."""
    if any(len(method.runs) > 1 for method in setting.methods):
        return "Line: mean over seeds. Band: from the lowest to the highest seed."
    return "One seed."


def accuracy_limits(bands: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Return limits in percent that show every band, with some air."""
    shown = pd.concat(bands) if bands else pd.DataFrame({"min": [0.0], "max": [100.0]})
    low, high = shown["min"].min(), shown["max"].max()
    air = max(0.04 * (high - low), 0.5)
    return max(0.0, low - air), min(100.0, high + air) if high < 100 else 101.0
