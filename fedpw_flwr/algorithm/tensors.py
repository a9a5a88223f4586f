"""Which tensors of a model the method treats how.

FedPW's direction and consensus look at what gradient descent trains; BatchNorm's running
statistics are averaged and masked but have no direction; counters are only averaged. Names decide,
and where there are none, the order in which PyTorch lists a BatchNorm layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor

_RUNNING_STATISTICS = {"running_mean", "running_var", "moving_mean", "moving_variance"}
"""Last words of the names that PyTorch and Keras give to BatchNorm's running statistics."""

_COLLECTION = "batch_stats"
"""The collection in which Flax keeps them."""

_GLANCE = 1 << 16
"""Entries that are looked at together: most tensors have a negative one among the first."""


class TensorKind(Enum):
    """The three kinds of tensors in a model."""

    TRAINABLE = "trainable"
    BUFFER = "buffer"
    INTEGER = "integer"


def classify_tensors(
    model: Mapping[str, Tensor], trainable: Collection[str] | None = None
) -> dict[str, TensorKind]:
    """Return which kind each tensor of a model is.

    Parameters
    ----------
    model : Mapping[str, Tensor]
        The tensors, by name; only names, dtypes and shapes are looked at.
    trainable : Collection[str] | None (default: None)
        Names of the trainable tensors; None applies the rule: every floating tensor except
        BatchNorm's running statistics. These are known by PyTorch's, Keras' and Flax' names, or,
        in a list without names, as two 1-d tensors of equal shape right before a 0-d integer
        (PyTorch's order: mean, variance, number of batches).

    Returns
    -------
    dict[str, TensorKind]
        In the order of `model`. Integer and bool tensors are of kind INTEGER.

    Raises
    ------
    TypeError
        If a tensor is complex, or one named in `trainable` is not floating.
    ValueError
        If `trainable` names a tensor that the model does not have.
    """
    if trainable is not None and (unknown := sorted(set(trainable) - set(model))):
        raise ValueError(
            f"trainable names {unknown}, which the model does not have; its tensors are "
            f"{list(model)}"
        )
    statistics = _running_statistics(model) if trainable is None else set()
    kinds: dict[str, TensorKind] = {}
    for name, tensor in model.items():
        dtype = tensor.dtype
        if dtype.is_complex:
            raise TypeError(f"tensor {name!r} is {dtype}: complex tensors are not supported")
        named = trainable is not None and name in trainable
        if named and not dtype.is_floating_point:
            raise TypeError(f"tensor {name!r} is named trainable but is {dtype}, not floating")
        if not dtype.is_floating_point:
            kinds[name] = TensorKind.INTEGER
        elif named or (trainable is None and name not in statistics):
            kinds[name] = TensorKind.TRAINABLE
        else:
            kinds[name] = TensorKind.BUFFER
    return kinds


def has_names(names: Sequence[str]) -> bool:
    """Return whether tensors have names: a list of arrays has "0", "1", ... in their place."""
    return list(names) != [str(position) for position in range(len(names))]


def _running_statistics(model: Mapping[str, Tensor]) -> set[str]:
    names = list(model)
    if has_names(names):
        return {name for name in names if _names_running_statistic(name)}
    found = set()
    for mean, variance, count in zip(names, names[1:], names[2:], strict=False):
        pair, counter = (model[mean], model[variance]), model[count]
        is_counter = counter.dim() == 0 and not counter.is_floating_point()
        alike = pair[0].shape == pair[1].shape and pair[0].dim() == 1
        if is_counter and alike and all(tensor.is_floating_point() for tensor in pair):
            found |= {mean, variance}
    return found


def _names_running_statistic(name: str) -> bool:
    words = [word for word in re.split(r"\W+", name) if word and not word.isdigit()]
    return bool(words) and (words[-1] in _RUNNING_STATISTICS or _COLLECTION in words)


def is_nonnegative(tensor: Tensor) -> bool:
    """Return whether no entry is negative; True for a tensor without entries."""
    flat = tensor.reshape(-1)
    return all(bool((part >= 0).all()) for part in flat.split(_GLANCE))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which a tensor of `dtype` is computed: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`; what half precision cannot hold becomes its largest value, in place."""
    if dtype == values.dtype:
        return values
    limit = torch.finfo(dtype).max
    return values.clamp_(-limit, limit).to(dtype)
