"""What a run carries from round to round, taken out of it, saved and put back.

Both of Flower's APIs save the same: the model, the strategy's state, the process's random state,
and what each API has reported so far.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.common import ndarrays_to_parameters
from torch import Tensor

from fedpw_flwr.rounds.checkpoints import Checkpoint, CheckpointError, CheckpointStore, differences
from fedpw_flwr.wire.arrays import ArrayTensors, encode_arrays

logger = logging.getLogger("flwr")

State = tuple[dict[str, Any], dict[str, Tensor]]
"""What JSON can hold, and tensors by name."""

RANDOM_STATE = Lock()
"""Held by whoever seeds PyTorch's source of random numbers, and until the draws are done: there may
be other runs in the process."""

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
        """Set it to a saved state; ValueError if it is not a state of such a strategy."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on."""
        ...


def run_identity(strategy: object, initial_arrays: ArrayRecord) -> dict[str, Any]:
    """Return what a run must keep when it goes on: strategy, its settings, shapes of the model."""
    own = strategy.fingerprint() if isinstance(strategy, Stateful) else {}
    settings = {name: getattr(strategy, name) for name in _SETTINGS if hasattr(strategy, name)}
    model = {
        name: f"array {index}, {array.dtype} {list(array.shape)}"
        for index, (name, array) in enumerate(initial_arrays.items())
    }
    return {"strategy": type(strategy).__name__, **settings, **own, "model": model}


def newest_checkpoint(checkpoints: CheckpointStore, resume: bool) -> Checkpoint | None:
    """Read the checkpoint to go on from; None where a run begins.

    `CheckpointError` if there are checkpoints and `resume` is False, or all are damaged.
    """
    if resume:
        newest = checkpoints.newest()
        if newest is None:
            logger.warning(
                "There is no checkpoint in %s to go on from: beginning with round 1",
                checkpoints.folder,
            )
        return newest
    rounds = checkpoints.rounds()
    if rounds:
        raise CheckpointError(
            f"{checkpoints.folder} holds checkpoints up to round {rounds[0]}: go on with "
            "resume=True, or choose another folder for a new run"
        )
    return None


def check_checkpoint(
    checkpoint: Checkpoint,
    identity: Mapping[str, Any],
    checkpoints: CheckpointStore,
    num_rounds: int,
) -> None:
    """Raise a `CheckpointError` if a checkpoint is that of another run, or beyond this one."""
    found = differences(checkpoint.fingerprint, identity)
    if found:
        listed = "\n  ".join(found)
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {checkpoints.folder} is that of "
            f"another run:\n  {listed}\nGo on with what it was begun with, or begin anew in "
            "another folder"
        )
    if checkpoint.round > num_rounds:
        raise CheckpointError(
            f"the run has had {checkpoint.round} rounds already, and {num_rounds} are asked for"
        )


def run_checkpoint(
    server_round: int,
    strategy: object,
    arrays: ArrayRecord,
    reported: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> Checkpoint:
    """Return all that a run carries after a round; `reported` is what its API keeps of rounds."""
    state, tensors = _strategy_state(strategy)
    random_state, random_tensors = _saved_random_state()
    return Checkpoint(
        round=server_round,
        model=dict(ArrayTensors(arrays)),
        state={"strategy": state, "random": random_state, **reported},
        tensors={**tensors, **random_tensors},
        fingerprint=identity,
    )


def put_back(
    checkpoint: Checkpoint,
    strategy: object,
    take: Callable[[ArrayRecord, Mapping[str, Any]], None],
) -> None:
    """Set strategy and random state to those of a checkpoint; `take` its model and the rest.

    `CheckpointError` if the checkpoint holds another version's state.
    """
    arrays = encode_arrays(checkpoint.model)
    try:
        _restore_strategy(strategy, checkpoint.state["strategy"], checkpoint.tensors, arrays)
        _restore_random_state(checkpoint.state["random"], dict(checkpoint.tensors))
        take(arrays, checkpoint.state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} holds another version's state "
            f"({type(error).__name__}: {error}): go on with the version that wrote it, or "
            "begin a new run with its model.safetensors as the initial model"
        ) from error


def _strategy_state(strategy: object) -> State:
    """Return the state of any strategy: its own, and the moments of Flower's server optimizers."""
    state, tensors = strategy.saved_state() if isinstance(strategy, Stateful) else ({}, {})
    for attribute in _MOMENTS:
        moments = getattr(strategy, attribute, None)
        if isinstance(moments, Mapping):
            by_index = {f"{attribute}/{name}": array for name, array in moments.items()}
        else:
            by_index = {f"{attribute}[]/{index}": one for index, one in enumerate(moments or ())}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in by_index.items()}
    return state, tensors


def _restore_strategy(
    strategy: object,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    arrays: ArrayRecord,
) -> None:
    """Set a strategy to a saved state, `arrays` being the model of that round."""
    if isinstance(strategy, Stateful):
        strategy.restore_state(state, tensors)
    for attribute in _MOMENTS:
        named = tensors_below(f"{attribute}/", tensors)
        listed = tensors_below(f"{attribute}[]/", tensors)
        if named:
            setattr(strategy, attribute, {name: moment.numpy() for name, moment in named.items()})
        elif listed:
            in_order = [listed[index].numpy() for index in sorted(listed, key=int)]
            setattr(strategy, attribute, in_order)
    # What server optimizers take their step from, where they are not told in every round.
    if any(hasattr(strategy, moments) for moments in _MOMENTS):
        ndarrays = arrays.to_numpy_ndarrays()
        for attribute, value in (
            ("current_arrays", arrays),
            ("current_weights", ndarrays),
            ("initial_parameters", ndarrays_to_parameters(ndarrays)),
        ):
            if hasattr(strategy, attribute):
                setattr(strategy, attribute, value)


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}


def _saved_random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state of all generators, as JSON and as tensors."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    # Asking a GPU that is not in use would start it.
    devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    nested = {
        "python": [version, list(numbers), gauss],
        "numpy": [int(position), int(has_gauss), float(cached)],
        "cuda": devices,
    }
    of_devices = {f"cuda-{device}": torch.cuda.get_rng_state(device) for device in range(devices)}
    of_numpy = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    tensors = {"numpy": of_numpy, "torch": torch.get_rng_state(), **of_devices}
    return nested, {f"random/{name}": tensor for name, tensor in tensors.items()}


def _restore_random_state(nested: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Set all generators to a saved state; those of GPUs that are gone are left out."""
    version, numbers, gauss = nested["python"]
    random.setstate((version, tuple(numbers), gauss))
    position, has_gauss, cached = nested["numpy"]
    keys = tensors["random/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    with RANDOM_STATE:
        torch.set_rng_state(tensors["random/torch"])
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in range(min(here, nested["cuda"])):
        torch.cuda.set_rng_state(tensors[f"random/cuda-{device}"], device)
