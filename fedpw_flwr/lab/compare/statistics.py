"""Figures over seeds, and whether two methods differ by more than their seeds do.

Runs of two methods with the same seed share their partition, initial model and random numbers, so
methods are compared seed by seed: a paired test, which sees smaller differences than comparing two
means. With three seeds even that sees only large ones, and p-values of many comparisons are not
corrected for their number; tables say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedpw_flwr.lab.compare.figures import DOMAIN_FIGURES, MEAN_AUC, Figure
from fedpw_flwr.lab.compare.settings import Method, Setting

# The figure whose target methods race to: the global model's mean accuracy on the test sets.
MEAN_ACCURACY = "domains.mean"

# With five pairs or fewer, Wilcoxon's smallest possible p-value is above 0.05.
FEWEST_FOR_WILCOXON = 6

LEVEL, POWER = 0.05, 0.8
"""Of significance, two-sided; and how likely a difference called detectable is found."""

NEAR_CHANCE, NEAR_CHANCE_AUC = 1.5, 55.0
"""Times the accuracy of guessing, or percent, up to which a model is taken for one that learned
nothing."""


@dataclass(frozen=True)
class Window:
    """Which tested rounds of a run a table is about: the last one as it is, or a mean of some."""

    last: int

    @property
    def key(self) -> str:
        """Name in files."""
        return "last_round" if self.last == 1 else f"last_{self.last}_rounds"

    @property
    def label(self) -> str:
        """Name in tables."""
        return "last round" if self.last == 1 else f"mean of the last {self.last} rounds"

    def of(self, setting: Setting) -> pd.DataFrame:
        """Return the figures of each run, by method and seed.

        The initial model (round 0) is no trained round, and a mean is unknown if one of its rounds
        is. Runs of fewer trained rounds than the window count with those they have.
        """
        rounds = setting.tested_rounds
        number = rounds.index.get_level_values("round")
        trained = rounds if self.last == 1 or not number.any() else rounds[number > 0]
        found = _over(_by_run(_by_run(trained).tail(self.last)), "mean")
        # A run that was never tested has no figure.
        return found.reindex(_by_run(setting.rounds_of_runs).size().index)


LAST_ROUND = Window(1)


def windows_of(setting: Setting, last: int) -> tuple[Window, ...]:
    """Return the last round, and the `last` ones together, or all trained rounds if fewer."""
    counts = (1, min(last, max(1, setting.rounds)))
    return tuple(map(Window, dict.fromkeys(counts)))


def over_seeds(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and standard deviation (ddof = 1) over seeds, by method; `runs` as `Window.of`.

    A seed whose figure is unknown makes both unknown; one seed has no standard deviation.
    """
    methods = runs.groupby("method", sort=False)
    return _over(methods, "mean"), _over(methods, "std")


def paired_differences(
    setting: Setting, reference: Method, windows: Sequence[Window]
) -> pd.DataFrame:
    """Compare each other method with a reference: a row a method, window and tested figure.

    They are compared on the seeds for which both know the figure. ``seeds``: how many these are;
    ``difference``: the mean of own minus other, with ``difference.sd`` (ddof = 1); ``margin``: half
    of its 95 % confidence interval (t), and ``detectable``: the smallest true difference that as
    many seeds find with a probability of 80 % at p < 0.05; ``p_t``: of the two-sided paired t-test,
    from two seeds on; ``p_wilcoxon``: of Wilcoxon's signed-rank test, from six seeds on. NaN where
    there is none; no p where all differences are equal.

    Divisions of the same data overlap, and their differences vary less than those of new data
    would: where each seed is one, ``p_t`` is of the corrected resampled t-test (Nadeau and Bengio,
    "Inference for the Generalization Error", Machine Learning 52, 2003), whose variance of the mean
    is (1/n + n_test/n_train) times that of the differences; ``margin`` and ``detectable`` are by
    the same variance, and there is no ``p_wilcoxon``.
    """
    runs_in = {window.key: window.of(setting) for window in windows}
    rows = [
        {
            "setting": setting.label,
            "method": method.label,
            "reference": reference.label,
            "window": window,
            "figure": figure.key,
            "unit": figure.unit,
            **_paired(runs[figure.key], method.label, reference.label, setting.overlap),
        }
        for method in setting.methods
        if method is not reference
        for window, runs in runs_in.items()
        for figure in setting.figures
        if figure.tested
    ]
    return pd.DataFrame(rows)


def _paired(runs: pd.Series, own: str, other: str, overlap: float) -> dict[str, float]:
    # Not at the top: a mistyped path should be reported at once.
    from scipy import stats

    both = [runs.loc[own], runs.loc[other]]
    pairs = pd.concat(both, axis=1, join="inner", keys=["own", "other"]).dropna()
    differences = pairs["own"] - pairs["other"]
    count = len(pairs)
    # Without variance a t-value is 0/0 or infinite: rounding, not evidence, would decide.
    vary = count > 0 and np.ptp(differences) > 1e-12 * max(np.abs(pairs.to_numpy()).max(), 1.0)
    found = {
        **{"seeds": count, "difference": differences.mean(), "difference.sd": differences.std()},
        **dict.fromkeys(("margin", "detectable", "p_t", "p_wilcoxon"), math.nan),
    }
    if vary and count >= 2:
        error = found["difference.sd"] * math.sqrt(1 / count + overlap)
        found["margin"] = stats.t.ppf(1 - LEVEL / 2, count - 1) * error
        found["detectable"] = found["margin"] + stats.t.ppf(POWER, count - 1) * error
        found["p_t"] = 2 * stats.t.sf(abs(found["difference"]) / error, count - 1)
    if vary and count >= FEWEST_FOR_WILCOXON and not overlap:
        found["p_wilcoxon"] = stats.wilcoxon(pairs["own"], pairs["other"]).pvalue
    return found


def holm_corrected(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down procedure (Holm 1979).

    The largest never exceeds 1, and the order of the values stays.
    """
    ordered = pd.Series(p_values, dtype=np.float64).sort_values(kind="stable")
    stepped = ordered * np.arange(len(ordered), 0, -1)
    corrected: list[float] = stepped.cummax().clip(upper=1.0).sort_index().tolist()
    return corrected


def rounds_to_target(setting: Setting, target: float) -> pd.Series:
    """Return the first round with a mean accuracy of at least `target` percent, for each run.

    NaN where the run ended below it. The initial model (round 0) reached nothing by training.
    """
    accuracy = setting.rounds_of_runs[MEAN_ACCURACY]
    number = pd.Series(accuracy.index.get_level_values("round"), accuracy.index, np.float64)
    return _by_run(number.where((accuracy >= target) & (number > 0))).min()


def near_chance(setting: Setting, window: Window) -> pd.Series:
    """Return by method whether its models are little better than guessing in some last rounds.

    Such a model fails everyone alike: a low standard deviation is no fairness then.
    """
    mean, _ = over_seeds(window.of(setting))
    figure, bound = near_chance_bound(setting)
    return mean[figure.key] <= bound


def near_chance_bound(setting: Setting) -> tuple[Figure, float]:
    """Return the figure by which models are called near chance, and the highest that is, in %.

    Of two classes it is the mean area under the ROC curve: who always says the more frequent class
    may be right for most.
    """
    if MEAN_AUC in setting.auc_figures:
        return MEAN_AUC, NEAR_CHANCE_AUC
    return DOMAIN_FIGURES[0], NEAR_CHANCE * setting.chance


def default_target(setting: Setting, reference: Method | None, window: Window) -> tuple[float, str]:
    """Return a mean accuracy in percent to count the rounds to, and in words where it comes from.

    It is 95 % of what the reference has in some last rounds. Where there is no reference, or it
    has learned no more than chance, the best method sets it. NaN where none can.
    """
    mean, _ = over_seeds(window.of(setting))
    known = mean[MEAN_ACCURACY][~near_chance(setting, window)].dropna()
    if known.empty:
        return math.nan, ""
    best = str(known.idxmax())
    by = reference.label if reference is not None and reference.label in known.index else best
    return 0.95 * float(known[by]), f"95 % of {by}'s mean accuracy, {window.label}."


def _over(groups: Any, summary: str) -> Any:
    # Not the summary that groups have: it sums otherwise than NumPy, and figures that lie between
    # two roundings would be published differently.
    return groups.apply(lambda own: getattr(own, summary)(skipna=False))


def _by_run(rounds: Any) -> Any:
    return rounds.groupby(["method", "seed"], sort=False)
