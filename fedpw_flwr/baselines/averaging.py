"""The step all the baselines share: w ← w − Σ c_k Δ_k, and plain means of what is not trained.

Strategies differ in the numbers c_k, and in which entries of an update they sum at all. What
gradient descent does not train, BatchNorm's running statistics and counters, has no update to
step along: whatever a strategy does to the rest, these are averaged with weights that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.algorithm.reference import Cohort, Reference
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors, saturated, working_dtype

_BLOCK = 1 << 16
"""Entries of every client's update that are in memory at once for their inner products."""

KeptEntries = Callable[[int, str, Tensor], Tensor]
"""From client, name and Δ_k of a tensor (flat) to the entries that are summed (bool, flat)."""


@dataclass(frozen=True)
class RoundWeights:
    """What each client counts in a round; lists run over the clients in the order of client id.

    Attributes
    ----------
    step : tuple[float, ...]
        c_k, what Δ_k is multiplied by before it is summed. Need not sum to 1.
    mean : tuple[float, ...]
        Weights of running statistics and counters: at least 0, summing to 1.
    kept : KeptEntries | None (default: None)
        Says which entries of a client's update are summed. Who discards an entry has no say in it:
        there the c_k of the others are divided by their sum, and where nobody keeps it, w stays.
        None: the plain sum.
    """

    step: tuple[float, ...]
    mean: tuple[float, ...]
    kept: KeptEntries | None = None

    @classmethod
    def of_mean(cls, weights: Sequence[float], kept: KeptEntries | None = None) -> RoundWeights:
        """Return one set of weights that sums to 1, for everything."""
        return cls(tuple(weights), tuple(weights), kept)


def trainable_names(model: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of a model that are trained."""
    return [name for name, kind in classify_tensors(model).items() if kind is TensorKind.TRAINABLE]


def moved_tensors(
    global_model: Mapping[str, Tensor], results: Sequence[ClientResult], weights: RoundWeights
) -> Iterator[tuple[str, Tensor]]:
    """Yield the next model's names and tensors, in order, shapes and dtypes of `global_model`."""
    kinds = classify_tensors(global_model)
    plain = Cohort(results, rates=None, sent=None, avg_drop_rate=0.0)
    reference = Reference(global_model, kinds, plain)
    for name, kind in kinds.items():
        tensor = global_model[name]
        if kind is TensorKind.BUFFER:
            yield name, _mean(tensor, [one.tensors[name] for one in results], weights.mean)
        elif kind is TensorKind.TRAINABLE and weights.kept is not None:
            yield name, _moved_where_kept(name, tensor, results, weights.step, weights.kept)
        else:
            counted = weights.step if kind is TensorKind.TRAINABLE else weights.mean
            yield name, reference.moved(name, counted)[0]


def _moved_where_kept(
    name: str,
    start: Tensor,
    results: Sequence[ClientResult],
    weights: Sequence[float],
    kept: KeptEntries,
) -> Tensor:
    """Return w − Σ c_k Δ_k of one tensor, with the c_k divided at each entry by their sum there."""
    like = start.reshape(-1).to(working_dtype(start.dtype))
    change, counted = torch.zeros_like(like), torch.zeros_like(like)
    for result, weight in zip(results, weights, strict=True):
        update = update_of(start, result.tensors[name])
        entries = kept(result.client, name, update)
        change.add_(update.mul_(entries), alpha=weight)
        counted.add_(entries, alpha=weight)
    # Where nobody keeps an entry, 0 / 1.
    change.div_(counted.masked_fill_(counted == 0, 1.0))
    moved = torch.sub(like, change, out=change)
    return saturated(moved, start.dtype).reshape(start.shape)


def _mean(like: Tensor, trained: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Average w_k themselves: a mean of variances by way of differences could end below 0."""
    mean = torch.zeros_like(like, dtype=working_dtype(like.dtype))
    for tensor, weight in zip(trained, weights, strict=True):
        mean.add_(tensor.to(mean.dtype), alpha=weight)
    return saturated(mean, like.dtype)


def update_of(start: Tensor, trained: Tensor) -> Tensor:
    """Return Δ_k = w − w_k of one tensor, flat, in the working precision."""
    dtype = working_dtype(start.dtype)
    return start.reshape(-1).to(dtype) - trained.reshape(-1).to(dtype)


def squared_norms(
    global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
) -> list[float]:
    """Return ‖Δ_k‖² over the trainable tensors, one a client."""
    squares = []
    for result in results:
        updates = (
            update_of(global_model[name], result.tensors[name])
            for name in trainable_names(global_model)
        )
        squares.append(sum(float(torch.dot(update, update)) for update in updates))
    return squares


def inner_products(
    global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
) -> npt.NDArray[np.float64]:
    """Return ⟨Δ_k, Δ_j⟩ over the trainable tensors, shape (N, N).

    Of every client's update a block is in memory at once. Products of a block are taken in the
    working precision and added in double precision.
    """
    products = np.zeros((len(results), len(results)))
    for name in trainable_names(global_model):
        start = global_model[name].reshape(-1)
        trained = [result.tensors[name].reshape(-1) for result in results]
        for begin in range(0, start.numel(), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            block = torch.stack([update_of(start[part], tensor[part]) for tensor in trained])
            products += (block @ block.T).double().numpy()
    return products


def weights_by_examples(results: Sequence[ClientResult]) -> tuple[float, ...]:
    """Return n_k / Σ n_j; equal weights where not every client says n_k, or all say 0."""
    counts = [result.num_examples for result in results]
    if any(count is None for count in counts):
        return normalised([1.0] * len(counts))
    return normalised([float(count or 0.0) for count in counts])


def normalised(values: Sequence[float]) -> tuple[float, ...]:
    """Divide finite values ≥ 0 by their sum; equal shares where it is 0."""
    largest = max(values)
    if largest <= 0.0:
        return (1.0 / len(values),) * len(values)
    # The sum of very large values would not be finite.
    scaled = [value / largest for value in values]
    total = sum(scaled)
    return tuple(value / total for value in scaled)
