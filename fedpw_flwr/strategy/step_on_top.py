"""Flower's server optimizers on top of FedPW: their step is for what training moves.

Momentum along a running variance carries it past 0, and arithmetic in floats destroys a 64-bit key.
So a class like ``M(FedAdam, FedPW)`` takes the optimizer's step on the trained arrays alone; all
others are FedPW's aggregate, and every array has the model's dtype again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = ["puts_back", "trim_start"]

_START = ("current_arrays", "current_weights")
"""What Flower's optimizers step from: arrays by name, or in a list in the legacy API."""


def puts_back(aggregate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an optimizer's ``aggregate_train`` or ``aggregate_fit``.

    Its strategy has a method `_put_back` that gets what the optimizer returned as the next model.
    """

    @wraps(aggregate)
    def aggregate_and_put_back(self: Any, *arguments: Any, **named: Any) -> Any:
        model, metrics = aggregate(self, *arguments, **named)
        return (model if model is None else self._put_back(model)), metrics

    return aggregate_and_put_back


def trim_start(strategy: object, names: list[str]) -> None:
    """Let an optimizer step from the arrays that are left where clients keep some to themselves.

    Parameters
    ----------
    strategy : object
        The strategy; nothing happens to one without an optimizer on top.
    names : list[str]
        Names of the arrays of its next model, in their order; in a list the first ones are left.
    """
    for attribute in _START:
        start = getattr(strategy, attribute, None)
        if start is None or len(start) == len(names):
            continue
        left = (
            start[: len(names)]
            if isinstance(start, list)
            else type(start)({name: start[name] for name in names})
        )
        setattr(strategy, attribute, left)
