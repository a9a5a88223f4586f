"""What a strategy carries from round to round, taken out of it and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.common import ndarrays_to_parameters
from torch import Tensor

__all__ = ["Stateful", "restore_strategy", "strategy_fingerprint", "strategy_state"]

State = tuple[dict[str, Any], dict[str, Tensor]]
"""What JSON can hold, and tensors by name."""

_MOMENTS = ("m_t", "v_t", "momentum_vector")
"""What Flower's server optimizers carry: arrays by name, or in a list in the legacy API."""


_SETTINGS = (
    *("fraction_train", "fraction_evaluate", "fraction_fit", "weighted_by_key"),
    *("eta", "eta_l", "beta_1", "beta_2", "tau", "server_learning_rate", "server_momentum"),
)
"""Settings of Flower's strategies that change the results."""


@runtime_checkable
class Stateful(Protocol):
    """A strategy that says itself what it carries from round to round."""

    def saved_state(self) -> State:
        """Return its state; what is returned is not changed afterwards."""
        ...

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set it to a saved state.

        Raises
        ------
        ValueError
            If it is not a state of such a strategy.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on."""
        ...


def strategy_state(strategy: object) -> State:
    """Return the state of any strategy: its own, and the moments of Flower's server optimizers."""
    state, tensors = strategy.saved_state() if isinstance(strategy, Stateful) else ({}, {})
    for attribute in _MOMENTS:
        moments = getattr(strategy, attribute, None)
        if isinstance(moments, Mapping):
            by_place = {f"{attribute}/{name}": array for name, array in moments.items()}
        else:
            by_place = {f"{attribute}[]/{place}": one for place, one in enumerate(moments or ())}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in by_place.items()}
    return state, tensors


def restore_strategy(
    strategy: object,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    arrays: ArrayRecord,
) -> None:
    """Set a strategy to a saved state, `arrays` being the model of that round.

    Raises
    ------
    ValueError
        If it is not a state of such a strategy.
    """
    if isinstance(strategy, Stateful):
        strategy.restore_state(state, tensors)
    for attribute in _MOMENTS:
        named, listed = _below(f"{attribute}/", tensors), _below(f"{attribute}[]/", tensors)
        if named:
            setattr(strategy, attribute, {name: moment.numpy() for name, moment in named.items()})
        elif listed:
            setattr(
                strategy, attribute, [listed[place].numpy() for place in sorted(listed, key=int)]
            )
    # What server optimizers take their step from, where they are not told in every round.
    for attribute, value in (
        ("current_arrays", arrays),
        ("current_weights", arrays.to_numpy_ndarrays()),
        ("initial_parameters", ndarrays_to_parameters(arrays.to_numpy_ndarrays())),
    ):
        if any(hasattr(strategy, moments) for moments in _MOMENTS) and hasattr(strategy, attribute):
            setattr(strategy, attribute, value)


def strategy_fingerprint(strategy: object) -> dict[str, Any]:
    """Return the settings that a run must keep when it goes on, and the strategy's class."""
    own = strategy.fingerprint() if isinstance(strategy, Stateful) else {}
    settings = {name: getattr(strategy, name) for name in _SETTINGS if hasattr(strategy, name)}
    return {"strategy": type(strategy).__name__, **settings, **own}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
