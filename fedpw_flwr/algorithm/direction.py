"""Update direction: how far each client's update points where the whole round points.

Paper, Adaptive Weighted Aggregation, direction signal: d_k = ⟨Δ_k, Σ_j Δ_j⟩ with Δ_k = w − w_k over
the trainable tensors. A client that agrees with the others has a large d_k, an outlier a small or a
negative one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpw_flwr.algorithm.tensors import working_dtype

__all__ = ["add_tensor_directions", "direction_shares", "direction_size"]


def add_tensor_directions(
    directions: list[float], global_tensor: Tensor, client_tensors: Sequence[Tensor]
) -> None:
    """Add one tensor's part of d_k = ⟨Δ_k, Σ_j Δ_j⟩ to the running sums, in place.

    Parameters
    ----------
    directions : list[float]
        Running sums d_k, one a client.
    global_tensor : Tensor
        w, any shape.
    client_tensors : Sequence[Tensor]
        w_k of the same shape, one a client, in the order of `directions`.

    Notes
    -----
    Holds two tensors of this size beside its inputs, whatever the number of clients. Inner products
    are taken a tensor at a time in float32 (float64 for float64 tensors) and added in double
    precision.
    """
    dtype = working_dtype(global_tensor.dtype)
    start = global_tensor.reshape(-1).to(dtype)
    total = torch.zeros_like(start)
    update = torch.empty_like(start)
    for client in client_tensors:
        torch.sub(start, client.reshape(-1).to(dtype), out=update)
        total.add_(update)
    products = []
    for client in client_tensors:
        torch.sub(start, client.reshape(-1).to(dtype), out=update)
        products.append(torch.dot(update, total))
    for position, product in enumerate(torch.stack(products).tolist()):
        directions[position] += product


def direction_shares(directions: Tensor) -> Tensor:
    """Turn directions into shares D_k = d_k / Σ d; equal shares where Σ d is not positive.

    Parameters
    ----------
    directions : Tensor
        d_k, shape (N,), float64.

    Returns
    -------
    Tensor
        D_k, shape (N,); sums to 1. A share is negative where d_k is.
    """
    total = directions.sum()
    if total <= 0:
        return torch.full_like(directions, 1.0 / directions.numel())
    return directions / total


def direction_size(directions: Tensor) -> float:
    """Size of a round's direction: d̄ = (mean_k d_k) / N, the squared norm of the mean update."""
    return float(directions.mean()) / directions.numel()
