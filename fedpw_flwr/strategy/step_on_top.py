"""Flower's server optimizers on top of FedPW: their step is for what training moves.

Momentum along a running variance carries it past 0, and arithmetic in floats destroys a 64-bit key.
So in a class like ``M(FedAdam, FedPW)`` the optimizer gets FedPW's aggregate of the trained arrays
alone, or nothing in a round without a usable reply; what it returns is put back among the others.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvgM

__all__ = ["StepOnTrained", "StepOnTrainedFit", "place_in_front"]


class StepOnTrained(ABC):
    """Stands in front of an optimizer of the Message API, behind the class that has both."""

    after_step: Callable[[Any], Any]
    """The strategy's: from what the optimizer made of the trained arrays to the whole model."""

    current_arrays: Any

    def step_from(self, start: ArrayRecord) -> None:
        """Tell the optimizer what it steps from."""
        by_array = {name: array.numpy() for name, array in start.items()}
        self.current_arrays = start if isinstance(self, FedAvgM) else by_array

    def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
        """Aggregate and step; return the whole model."""
        stepped, metrics = super().aggregate_train(*arguments, **named)  # type: ignore[misc]
        return self.after_step(stepped), metrics


class StepOnTrainedFit(ABC):
    """The same for the legacy API."""

    after_step: Callable[[Any], Any]

    current_weights: Any

    lost_round_metrics: Any = None
    """Metrics of a round without a usable result: Flower's optimizers drop them."""

    def step_from(self, start: ArrayRecord) -> None:
        """Tell the optimizer what it steps from."""
        self.current_weights = [array.numpy() for array in start.values()]

    def aggregate_fit(self, *arguments: Any, **named: Any) -> Any:
        """Aggregate and step; return the whole model."""
        stepped, metrics = super().aggregate_fit(*arguments, **named)  # type: ignore[misc]
        return self.after_step(stepped), metrics or self.lost_round_metrics or {}


def place_in_front(mixin: type, cls: type, optimizers: type | tuple[type, ...]) -> None:
    """Place a mixin among the bases of a class, in front of the optimizer that it names itself.

    So the class' own methods, and those of its subclasses, come before the mixin, as Python orders
    them; nothing happens where a base has it already, or none is an optimizer. The mixin is an ABC,
    as Flower's strategies are: bases can only be exchanged for such of the same layout.
    """
    bases = cls.__bases__
    indices = [index for index, base in enumerate(bases) if issubclass(base, optimizers)]
    if indices and mixin not in cls.__mro__:
        cls.__bases__ = (*bases[: indices[0]], mixin, *bases[indices[0] :])
