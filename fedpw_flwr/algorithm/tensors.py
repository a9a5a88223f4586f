"""Which tensors of a model the method treats how.

FedPW's direction and consensus look at what gradient descent trains; BatchNorm's running
statistics are averaged and masked but have no direction; counters are only averaged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

import torch
from torch import Tensor

__all__ = ["TensorKind", "classify_tensors", "saturated", "working_dtype"]

_RUNNING_STATISTICS = (".running_mean", ".running_var")


class TensorKind(Enum):
    """The three kinds of tensors in a model."""

    TRAINABLE = "trainable"
    BUFFER = "buffer"
    INTEGER = "integer"


def classify_tensors(
    dtypes: Mapping[str, torch.dtype], trainable: Collection[str] | None = None
) -> dict[str, TensorKind]:
    """Say for each tensor of a model which kind it is.

    Parameters
    ----------
    dtypes : Mapping[str, torch.dtype]
        Data type of every tensor, by name.
    trainable : Collection[str] | None (default: None)
        Names of the trainable tensors; None applies the rule: every floating tensor except
        BatchNorm's ``running_mean`` and ``running_var``.

    Returns
    -------
    dict[str, TensorKind]
        In the order of `dtypes`. Integer and bool tensors are of kind INTEGER.

    Raises
    ------
    TypeError
        If a tensor is complex, or one named in `trainable` is not floating.
    ValueError
        If `trainable` names a tensor that the model does not have.
    """
    if trainable is not None and (unknown := sorted(set(trainable) - set(dtypes))):
        raise ValueError(
            f"trainable names {unknown}, which the model does not have; its tensors are "
            f"{list(dtypes)}"
        )
    kinds: dict[str, TensorKind] = {}
    for name, dtype in dtypes.items():
        if dtype.is_complex:
            raise TypeError(f"tensor {name!r} is {dtype}: complex tensors are not supported")
        named = trainable is not None and name in trainable
        if named and not dtype.is_floating_point:
            raise TypeError(f"tensor {name!r} is named trainable but is {dtype}, not floating")
        if not dtype.is_floating_point:
            kinds[name] = TensorKind.INTEGER
        elif named or (trainable is None and not _is_running_statistic(name)):
            kinds[name] = TensorKind.TRAINABLE
        else:
            kinds[name] = TensorKind.BUFFER
    return kinds


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which a tensor of `dtype` is computed: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`; what half precision cannot hold becomes its largest value, in place."""
    if dtype == values.dtype:
        return values
    limit = torch.finfo(dtype).max
    return values.clamp_(-limit, limit).to(dtype)


def _is_running_statistic(name: str) -> bool:
    return f".{name}".endswith(_RUNNING_STATISTICS)
