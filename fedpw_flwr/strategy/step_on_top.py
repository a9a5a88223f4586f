"""Flower's server optimizers on top of FedPW: their step is for what training moves.

Momentum along a running variance carries it past 0, and arithmetic in floats destroys a 64-bit key.
So in a class like ``M(FedAdam, FedPW)`` the optimizer gets FedPW's aggregate of the trained arrays
alone, or nothing in a round without a usable reply; what it returns is put back among the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvgM
from torch import Tensor

from fedpw_flwr.rounds.driver import Driver, Finished
from fedpw_flwr.rounds.standstill import Standstill


class Driven(ABC):
    """What strategies of both APIs have of the `Driver` that plays their rounds."""

    driver: Driver

    @property
    def standstill(self) -> Standstill:
        """How long the model has not changed."""
        return self.driver.standstill

    def saved_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is carried from round to round: JSON, and tensors by name."""
        return self.driver.saved_state()

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set the strategy to what `saved_state` returned; ValueError if it is no such state."""
        self.driver.restore_state(state, tensors)

    def handed_on(self, finished: Finished) -> ArrayRecord | None:
        """Return the model of a finished round."""
        return finished.arrays


class StepOnTop(Driven):
    """Stands in front of an optimizer of Flower's, behind the class that has both."""

    _aggregate: ArrayRecord | None = None

    @abstractmethod
    def _step_from(self, start: ArrayRecord) -> None:
        """Tell the optimizer what it steps from."""

    def handed_on(self, finished: Finished) -> ArrayRecord | None:
        """Return what the optimizer is to step on, and tell it where from."""
        self._aggregate = finished.arrays
        if not finished.good:
            return None
        self._step_from(self.driver.trained())
        return self.driver.trained(finished.arrays)

    def whole_model(self, stepped: ArrayRecord | None) -> ArrayRecord | None:
        """Return the whole model, with what the optimizer made of the trained arrays."""
        aggregate, self._aggregate = self._aggregate, None
        if stepped is None or aggregate is None:
            return aggregate if stepped is None else stepped
        return self.driver.after_step_on_top(stepped, aggregate)


class StepOnTrained(StepOnTop):
    """The same for the Message API."""

    current_arrays: Any

    def _step_from(self, start: ArrayRecord) -> None:
        by_array = {name: array.numpy() for name, array in start.items()}
        self.current_arrays = start if isinstance(self, FedAvgM) else by_array

    def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
        """Aggregate and step; return the whole model."""
        stepped, metrics = super().aggregate_train(*arguments, **named)  # type: ignore[misc]
        return self.whole_model(stepped), metrics


def stand_beside(
    cls: type,
    ours: type,
    fedavg: type,
    optimizers: tuple[type, ...],
    mixin: type[StepOnTop],
    aggregate: str,
    never_called: Set[str],
) -> None:
    """Refuse strategies beside ours in a class that would keep it from working; place the mixin.

    TypeError if one of Flower's in front has a method `aggregate` of its own, or one behind has
    methods that are `never_called`. The mixin comes in front of the optimizer that the class names
    itself, so that the class' own methods, and those of its subclasses, come before it, as Python
    orders them. It is an ABC, as Flower's strategies are: bases can only be exchanged for such of
    the same layout.
    """
    # In the order in which Python looks for methods.
    order = cls.__mro__
    known = next(one for one in order[1:] if _is_own(one) and one not in mixin.__mro__).__name__
    for index, base in enumerate(order[: order.index(fedavg)]):
        name, steps = base.__name__, issubclass(base, optimizers)
        aggregates = aggregate in vars(base) and base.__module__.startswith("flwr.")
        behind = index > order.index(ours) and not _is_own(base)
        if behind and (steps or (never_called & vars(base).keys() and not aggregates)):
            raise TypeError(
                f"{cls.__name__}: put {name} in front, class {cls.__name__}({name}, {known})"
            )
        if aggregates and not steps:
            # FedOpt takes no step itself.
            allowed = ", ".join(one.__name__ for one in optimizers if one.__name__ != "FedOpt")
            remedy = "; leave it out" if behind else ""
            raise TypeError(
                f"{cls.__name__}: {name} aggregates by itself and cannot be combined with "
                f"{known}{remedy}; {allowed} can stand in front of it"
            )
    bases = cls.__bases__
    indices = [index for index, base in enumerate(bases) if issubclass(base, optimizers)]
    if indices and mixin not in order:
        cls.__bases__ = (*bases[: indices[0]], mixin, *bases[indices[0] :])


def _is_own(base: type) -> bool:
    return base.__module__.startswith("fedpw_flwr.")
