"""The method's hyper-parameters, checked where they are set.

One object holds every number of the paper that a person may choose, so that a strategy, a test and
a saved run mean the same thing by "the settings". A wrong value fails here, before any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FedPWSettings:
    """Hyper-parameters of FedPW (Guan et al., NeurIPS 2025).

    Parameters
    ----------
    avg_drop_rate : float (default: 0.3)
        r̄, the mean share of an update's entries that Parameter Adjustment masks, and the share of
        entries in the consensus set. In [0, 1).
    beta : float (default: 0.3)
        β, the base momentum of both weighting signals. In (0, 1].
    clip_weights : bool (default: True)
        Clip negative aggregation weights to 0 and renormalise. False is the paper's formula.
    adapt_weights : bool (default: True)
        Adaptive Weighted Aggregation. False weights clients by their number of examples.
    adjust_parameters : bool (default: True)
        Parameter Adjustment (masking and amplification). False averages the plain updates.
    max_weight : float | None (default: 3.0)
        Largest aggregation weight of one client, in units of the equal share 1/N, where weights
        are adapted. At least 1; None bounds nothing, as in the paper.
    max_loss_ratio : float | None (default: 10.0)
        Largest quotient of a client's loss and the median of the round, either way up, that counts.
        At least 1; None bounds nothing, as in the paper.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable tensors. None: every floating tensor except BatchNorm's running
        statistics.

    Raises
    ------
    TypeError
        If a number is not a number, a switch not a bool, or `trainable` a single string.
    ValueError
        If a number lies outside its range, or `trainable` is empty or names a tensor twice.
    """

    avg_drop_rate: float = 0.3
    beta: float = 0.3
    clip_weights: bool = True
    adapt_weights: bool = True
    adjust_parameters: bool = True
    max_weight: float | None = 3.0
    max_loss_ratio: float | None = 10.0
    trainable: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check every value and turn `trainable` into a tuple."""
        for name in ("avg_drop_rate", "beta", "max_weight", "max_loss_ratio"):
            value, optional = getattr(self, name), name.startswith("max")
            if optional and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                kind = "a number or None" if optional else "a number"
                raise TypeError(f"{name} must be {kind}, got {value!r}")
            if optional and not 1.0 <= value < float("inf"):
                raise ValueError(
                    f"{name}={value} is not a finite number from 1 on; None bounds nothing"
                )
        for name in ("clip_weights", "adapt_weights", "adjust_parameters"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        if not 0.0 <= self.avg_drop_rate < 1.0:
            raise ValueError(
                f"avg_drop_rate={self.avg_drop_rate} is outside [0, 1): it is the mean share of an "
                "update's entries that is masked (the paper uses 0.3)"
            )
        if not 0.0 < self.beta <= 1.0:
            raise ValueError(
                f"beta={self.beta} is outside (0, 1]: it is the base momentum of the aggregation "
                "weights (the paper uses 0.3)"
            )
        if self.trainable is not None:
            object.__setattr__(self, "trainable", distinct_names(self.trainable))


def distinct_names(names: Sequence[str], argument: str = "trainable") -> tuple[str, ...]:
    """Check an argument that holds names of tensors and return them as a tuple.

    Raises TypeError where they are no sequence of strings, ValueError where there is none or one
    appears twice.
    """
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a sequence of tensor names or None, got {names!r}")
    if not names:
        raise ValueError(f"{argument} is empty: name at least one tensor, or pass None")
    if len(set(names)) != len(names):
        raise ValueError(f"{argument} names a tensor twice: {sorted(names)}")
    return tuple(names)
