"""When more rounds bring nothing: stop a run at a target, or when it no longer improves."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

from fedpw_flwr.rounds.observers import Observer

logger = logging.getLogger("flwr")

_LOWER_IS_BETTER = {
    *("loss", "logloss", "nll", "crossentropy", "perplexity"),
    *("error", "mse", "rmse", "mae", "std", "angle"),
}


class EarlyStopping(Observer):
    """Stops a run when a figure reaches a target, or has had no better value for some rounds.

    Judge by what clients measure on data they keep: a run that stops where its test set looks best
    says too much of itself. Rounds without the figure are passed over.

    Parameters
    ----------
    metric : str
        The figure, as `numbers_of` names it: ``evaluate/NAME`` or ``train/NAME`` of what clients
        report, NAME of what `evaluate_fn` returns.
    target : float | None (default: None)
        Stop when the figure is as good as this. None: no target.
    patience : int | None (default: None)
        Stop when so many rounds have passed since the best value. None: never for that.
    min_rounds : int (default: 1)
        Rounds that are played in any case.
    lower_is_better : bool | None (default: None)
        None: lower values are better where a word of the figure's name is "loss", "logloss", "nll",
        "cross_entropy", "perplexity", "error", "mse", "rmse", "mae", "std" or "angle", else higher
        ones; of ``accuracy/oslo`` "oslo" is no such word.

    Examples
    --------
    >>> from fedpw_flwr.observers import EarlyStopping
    >>> strategy = FedPW(observers=[EarlyStopping("evaluate/accuracy", patience=10)])
    """

    def __init__(
        self,
        metric: str,
        target: float | None = None,
        patience: int | None = None,
        min_rounds: int = 1,
        lower_is_better: bool | None = None,
    ) -> None:
        if target is not None and not isinstance(target, int | float):
            raise ValueError(f"target must be a number, or None, got {target!r}")
        for name, rounds, least in (("patience", patience, 1), ("min_rounds", min_rounds, 0)):
            if rounds is not None and not (isinstance(rounds, int) and rounds >= least):
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {rounds!r}"
                )
        self.metric, self.target, self.patience = metric, target, patience
        self.min_rounds = min_rounds
        lower = _lower_is_better(metric) if lower_is_better is None else lower_is_better
        self._sign = -1 if lower else 1
        self.on_begin(None)

    def on_begin(self, after: int | None) -> None:
        """Forget: the rounds of a run that goes on are told again."""
        self._best, self._best_round = math.nan, -1
        self._reason: str | None = None

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Judge a round."""
        self._reason = None
        if self.metric not in numbers:
            if server_round == 1 and self._best_round < 0:
                known = ", ".join(numbers) or "none"
                logger.warning(
                    "EarlyStopping: round 1 has no figure %r; it has: %s", self.metric, known
                )
            return
        value = numbers[self.metric]
        if not self._sign * value <= self._sign * self._best:
            self._best, self._best_round = value, server_round
        if server_round < self.min_rounds:
            return
        found = f"{self.metric} is {value:.4g} in round {server_round}"
        passed = server_round - self._best_round
        if self.target is not None and self._sign * value >= self._sign * self.target:
            self._reason = f"{found} and has reached its target, {self.target:.4g}"
        elif self.patience is not None and passed >= self.patience:
            best = f"{self._best:.4g} in round {self._best_round}"
            rounds = "1 round" if passed == 1 else f"{passed} rounds"
            self._reason = f"{found}, {rounds} after its best, {best} (patience {self.patience})"

    def stop_reason(self) -> str | None:
        """Return by what the run has ended, and what its value is."""
        return self._reason


def _lower_is_better(metric: str) -> bool:
    """Return what the name says; a domain in it, such as "rectangles", says nothing."""
    family, _, member = metric.partition("/")
    judged = member if family in ("train", "evaluate", "clients") else family
    # Entropy alone is largest where all are served alike.
    words = re.findall("[a-z]+", re.sub("cross.entropy", "crossentropy", judged.lower()))
    return not _LOWER_IS_BETTER.isdisjoint(words)
