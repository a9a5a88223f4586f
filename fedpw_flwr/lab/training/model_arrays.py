"""A model in place: overwritten with the arrays of a message, and read back as arrays.

A worker trains one client after another with one model. Its tensors stay where they are, so that
nothing is allocated, and what was compiled for them stays valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

NDArrays = list[npt.NDArray[Any]]


def overwrite_model(model: nn.Module, arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Copy arrays into the entries of a model's state dict, in its order, on any device.

    Raises ValueError, and leaves the model as it was, if there are more or fewer arrays than
    entries, or a shape is another one.
    """
    state = model.state_dict()
    if len(arrays) != len(state):
        raise ValueError(f"the model has {len(state)} arrays, the message brought {len(arrays)}")
    for (name, tensor), array in zip(state.items(), arrays, strict=True):
        # copy_ would spread a smaller array over the tensor without a word.
        if tensor.shape != array.shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} in this model, the array that was "
                f"sent {array.shape}: server and client were given different models"
            )
    with torch.no_grad():
        for tensor, array in zip(state.values(), arrays, strict=True):
            source = torch.from_numpy(array)
            tensor.copy_(source.pin_memory() if tensor.is_cuda else source, non_blocking=True)


def read_model(model: nn.Module) -> NDArrays:
    """Return the entries of a model's state dict as arrays, in its order.

    On the CPU they are views of the model's own memory: serialise them, or copy them, before the
    model changes.
    """
    tensors = list(model.state_dict().values())
    # From a GPU all entries travel at once, into pinned memory, with one wait at the end.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()
    return [copy.numpy() for copy in copies]
