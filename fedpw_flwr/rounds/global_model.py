"""The global model of a round: what it must be, and which arrays belong to it."""

from __future__ import annotations

import logging
from collections.abc import Collection

from flwr.app import ArrayRecord
from torch import Tensor

from fedpw_flwr.algorithm.tensors import has_names
from fedpw_flwr.rounds.replies import check_finite
from fedpw_flwr.wire.arrays import ArrayTensors

logger = logging.getLogger("flwr")


def check_model(arrays: ArrayRecord, server_round: int) -> None:
    """Raise a ValueError if a model cannot be trained at all, before anybody is asked to.

    None of its arrays is floating, or one cannot be decoded or is not finite.
    """
    model = ArrayTensors(arrays)
    if not any(model[name].is_floating_point() for name in model):
        kinds = sorted({str(array.dtype) for array in arrays.values()})
        raise ValueError(
            f"the global model of round {server_round} has no floating array (of {len(arrays)} "
            f"arrays, dtypes {kinds}), so there is nothing that averaging could train. Boosted "
            "trees travel as bytes and are not averaged: for XGBoost take FedXgbBagging or "
            "FedXgbCyclic of flwr.serverapp.strategy (flwr.server.strategy for a legacy server)"
        )
    for name in model:
        try:
            check_finite(name, model[name])
        except ValueError as error:
            raise ValueError(f"the global model of round {server_round}: {error}") from error


def without_private(arrays: ArrayRecord, private: Collection[str]) -> ArrayRecord:
    """Leave out the arrays that no client returns, as FedAvg does, and say so in the log.

    They are the clients' own from now on: BatchNorm's in FedBN, a head in FedPer, what adapters
    leave as it is.
    """
    names = [name for name in arrays if name in private]
    logger.info(
        "\tNo client returns the arrays %s: they are private to the clients, and no longer part of "
        "the global model, which now has %s arrays",
        *(names, len(arrays) - len(names)),
    )
    if not has_names(list(arrays)):
        logger.warning(
            "The arrays have no names: the first %s arrays of the list are taken as those that "
            "came. What clients keep to themselves has to stand last",
            len(arrays) - len(names),
        )
    return ArrayRecord({name: array for name, array in arrays.items() if name not in private})


def too_large(name: str, tensor: Tensor) -> bool:
    """Return whether an array holds what no round could begin with."""
    try:
        check_finite(name, tensor)
    except ValueError:
        return True
    return False
