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

SMALLEST_PRODUCT, LARGEST_PRODUCT = 1e-30, 1e36
"""Between these magnitudes an inner product in float32 has neither underflowed nor overflowed."""

CANCELLED = 1e-6
"""Updates cancel where Σ d is no more than this share of the largest |d_k|."""


def add_tensor_directions(
    directions: list[float], global_tensor: Tensor, client_tensors: Sequence[Tensor]
) -> None:
    """Add one tensor's part of d_k = ⟨Δ_k, Σ_j Δ_j⟩, from w and w_k, to the running sums, in place.

    Holds two tensors of this size beside its inputs, whatever the number of clients. Inner products
    are taken a tensor at a time in float32 (float64 for float64 tensors) and added in double
    precision. Products that float32 cannot hold are taken again in float64.
    """
    dtype = working_dtype(global_tensor.dtype)
    products = _inner_products(global_tensor, client_tensors, dtype)
    doubtful = [
        client_tensors[index]
        for index, product in enumerate(products)
        if not SMALLEST_PRODUCT < abs(product) < LARGEST_PRODUCT
    ]
    # A tensor that was not trained has a product of 0 that is right.
    if not all(torch.equal(client.to(global_tensor.device), global_tensor) for client in doubtful):
        products = _inner_products(global_tensor, client_tensors, torch.float64)
    for position, product in enumerate(products):
        directions[position] += product


def _inner_products(
    global_tensor: Tensor, client_tensors: Sequence[Tensor], dtype: torch.dtype
) -> list[float]:
    start = global_tensor.reshape(-1).to(dtype)
    total = torch.zeros_like(start)
    update = torch.empty_like(start)
    for client in client_tensors:
        torch.sub(start, client.reshape(-1).to(start.device, dtype), out=update)
        total.add_(update)
    products = []
    for client in client_tensors:
        torch.sub(start, client.reshape(-1).to(start.device, dtype), out=update)
        products.append(torch.dot(update, total))
    return [float(product) for product in torch.stack(products).tolist()]


def direction_shares(directions: Tensor) -> Tensor:
    """Turn directions, shape (N,), into shares D_k = d_k / Σ d; equal where the updates cancel.

    A share is negative where d_k is.
    """
    if updates_cancel(directions):
        return torch.full_like(directions, 1.0 / directions.numel())
    return directions / directions.sum()


def direction_size(directions: Tensor) -> float:
    """Size of a round's direction: d̄ = (mean_k d_k) / N, the squared norm of the mean update.

    0 where the updates cancel.
    """
    if updates_cancel(directions):
        return 0.0
    return float(directions.mean()) / directions.numel()


def updates_cancel(directions: Tensor) -> bool:
    """Return whether the updates' sum is nothing but rounding: Σ d is the squared norm of Σ_j Δ_j.

    With |d_k| ≤ ‖Δ_k‖·‖Σ_j Δ_j‖, a Σ d below a millionth of the largest |d_k| means that the sum is
    shorter than a millionth of that client's update, which float32 cannot tell from zero.
    """
    return float(directions.sum()) <= CANCELLED * float(directions.abs().max())
