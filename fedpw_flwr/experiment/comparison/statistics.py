"""Figures over seeds, and whether two methods differ by more than their seeds do.

Runs of two methods with the same seed share their partition, initial model and random numbers, so
methods are compared seed by seed: a paired test, which sees smaller differences than comparing two
means. With three seeds even that sees only large ones, and p-values of many comparisons are not
corrected for their number; tables say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpw_flwr.experiment.comparison.runs import FinishedRun
from fedpw_flwr.experiment.comparison.settings import Method, Setting

__all__ = [
    "FEWEST_FOR_WILCOXON",
    "LAST_ROUND",
    "MEAN_ACCURACY",
    "OverSeeds",
    "PairedDifference",
    "RoundsToTarget",
    "Window",
    "chance_accuracy",
    "chance_limit",
    "default_target",
    "holm_corrected",
    "near_chance",
    "over_seeds",
    "paired_difference",
    "rounds_to_target",
    "windows_of",
]

MEAN_ACCURACY = "domains.mean"
"""The figure whose target methods race to: the global model's mean accuracy on the test sets."""

# With five pairs or fewer, Wilcoxon's smallest possible p-value is above 0.05.
FEWEST_FOR_WILCOXON = 6
_FEWEST_FOR_T = 2

DEFAULT_SHARE = 0.95

# Times the accuracy of guessing, up to which a model is taken for one that learned nothing.
_NEAR_CHANCE = 1.5


@dataclass(frozen=True)
class Window:
    """Which rounds of a run a table is about.

    Attributes
    ----------
    last : int
        1: the last round as it is. More: the mean of that many last rounds.
    """

    last: int

    @property
    def key(self) -> str:
        """Name in files."""
        return "last_round" if self.last == 1 else f"last_{self.last}_rounds"

    @property
    def label(self) -> str:
        """Name in tables."""
        return "last round" if self.last == 1 else f"mean of the last {self.last} rounds"

    def value(self, run: FinishedRun, key: str) -> float:
        """Return a run's figure; NaN where it has none."""
        if self.last == 1:
            return run.history.last_round(key)
        return run.history.mean_of_last(key, self.last)


@dataclass(frozen=True)
class OverSeeds:
    """A figure of one method over its seeds.

    Attributes
    ----------
    values : tuple[float, ...]
        One a seed.
    mean : float
        Their mean; NaN if one of them is.
    std : float
        Standard deviation over seeds with ddof = 1; NaN for one seed.
    """

    values: tuple[float, ...]
    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Summarise at least one value."""
        array = np.asarray(values, dtype=np.float64)
        std = float(array.std(ddof=1)) if len(array) > 1 else math.nan
        return cls(tuple(float(value) for value in array), float(array.mean()), std)


@dataclass(frozen=True)
class PairedDifference:
    """How a method's figure differs from the reference's on the same seeds.

    Attributes
    ----------
    seeds : tuple[int, ...]
        The seeds that both have and on which both have the figure.
    mean, std : float
        Mean of the differences (method minus reference) and their standard deviation (ddof = 1);
        NaN for no seed, and the latter for one.
    p_t : float
        Two-sided p-value of the paired t-test; NaN for fewer than two seeds, or where all
        differences are equal.
    p_wilcoxon : float
        Two-sided p-value of Wilcoxon's signed-rank test; NaN for fewer than six seeds, or where
        all differences are equal.
    """

    seeds: tuple[int, ...]
    mean: float
    std: float
    p_t: float
    p_wilcoxon: float


@dataclass(frozen=True)
class RoundsToTarget:
    """When a method's mean accuracy first reached the target.

    Attributes
    ----------
    rounds : Mapping[int, int | None]
        By seed; None where the run ended below the target.
    """

    rounds: Mapping[int, int | None]

    @property
    def reached(self) -> list[int]:
        """The rounds of those seeds that reached it."""
        return [number for number in self.rounds.values() if number is not None]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN unless all of them reached it.

        A mean over some alone would favour the method whose slow seeds never arrive.
        """
        reached = self.reached
        return float(np.mean(reached)) if len(reached) == len(self.rounds) else math.nan


LAST_ROUND = Window(1)


def windows_of(setting: Setting, last: int) -> tuple[Window, ...]:
    """Return the last round, and the `last` ones together, or all trained rounds if fewer."""
    counts = (1, min(last, max(1, setting.rounds)))
    return tuple(Window(count) for count in dict.fromkeys(counts))


def over_seeds(method: Method, window: Window, key: str) -> OverSeeds:
    """Summarise a method's figure over its seeds."""
    return OverSeeds.of([window.value(run, key) for run in method.runs.values()])


def paired_difference(
    method: Method, reference: Method, window: Window, key: str
) -> PairedDifference:
    """Compare two methods on the seeds that both were run with."""
    pairs = {
        seed: (window.value(run, key), window.value(reference.runs[seed], key))
        for seed, run in method.runs.items()
        if seed in reference.runs
    }
    known = {seed: pair for seed, pair in pairs.items() if all(map(math.isfinite, pair))}
    own, other = (np.array([pair[place] for pair in known.values()]) for place in (0, 1))
    differences = own - other
    count = len(differences)
    # Not at the top: a mistyped path should be reported at once.
    from scipy import stats

    return PairedDifference(
        seeds=tuple(known),
        mean=float(differences.mean()) if count else math.nan,
        std=float(differences.std(ddof=1)) if count > 1 else math.nan,
        p_t=_p_value(stats.ttest_rel, own, other, _FEWEST_FOR_T),
        p_wilcoxon=_p_value(stats.wilcoxon, own, other, FEWEST_FOR_WILCOXON),
    )


def holm_corrected(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down procedure (Holm 1979).

    The largest never exceeds 1, and the order of the values stays.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]


def rounds_to_target(method: Method, target: float) -> RoundsToTarget:
    """Find the first round with a mean accuracy of at least `target` percent, for each seed."""
    return RoundsToTarget(
        {
            seed: run.history.first_reached(MEAN_ACCURACY, target)
            for seed, run in method.runs.items()
        }
    )


def chance_accuracy(setting: Setting) -> float:
    """Return the accuracy of guessing in percent; NaN where the number of classes is not known."""
    return math.nan if not setting.classes else 100 / setting.classes


def chance_limit(setting: Setting) -> float:
    """Return the accuracy in percent up to which a model may have learned nothing."""
    return _NEAR_CHANCE * chance_accuracy(setting)


def near_chance(setting: Setting, method: Method, window: Window) -> bool:
    """Tell whether a method's models are little better than guessing in some last rounds.

    Such a model fails everyone alike: a low standard deviation is no fairness then.
    """
    return over_seeds(method, window, MEAN_ACCURACY).mean <= chance_limit(setting)


def default_target(
    setting: Setting, reference: Method | None, window: Window
) -> tuple[float, Method | None]:
    """Return a mean accuracy in percent to count the rounds to, and the method that sets it.

    It is 95 % of what the reference has in some last rounds. Where there is no reference, or it
    has learned no more than chance, the best method sets it. NaN and None where none can.
    """
    reached = {
        method.label: over_seeds(method, window, MEAN_ACCURACY).mean
        for method in setting.methods
        if not near_chance(setting, method, window)
    }
    known = {label: mean for label, mean in reached.items() if math.isfinite(mean)}
    if not known:
        return math.nan, None
    by = reference.label if reference is not None else ""
    if by not in known:
        by = max(known, key=known.__getitem__)
    return DEFAULT_SHARE * known[by], next(each for each in setting.methods if each.label == by)


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _p_value(
    test: Callable[[_Array, _Array], object], own: _Array, other: _Array, fewest: int
) -> float:
    differences = own - other
    if len(differences) < fewest:
        return math.nan
    # Without variance a t-value is 0/0 or infinite: rounding, not evidence, would decide.
    scale = float(np.abs(np.concatenate([own, other])).max())
    if np.ptp(differences) <= 1e-12 * max(scale, 1.0):
        return math.nan
    return float(test(own, other).pvalue)  # type: ignore[attr-defined]
