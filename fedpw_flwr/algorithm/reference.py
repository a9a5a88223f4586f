"""The server step a tensor at a time: read it beside the paper; it runs on any device.

Every other engine has to agree with this one, and leaves to it the tensors it is not made for.
Clients' tensors are asked for by name when they are needed, so a caller may decode them lazily;
beside them a few tensors of the size of the one in hand are held, however many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import (
    amplification_factor,
    amplify_,
    consensus_score_,
    consensus_set,
    entry_count,
    mask_smallest_,
    unit_normalise_,
)
from fedpw_flwr.algorithm.client_step import is_adjustable
from fedpw_flwr.algorithm.cohort import ClientResult, Cohort, discarded_magnitude, sent_scale
from fedpw_flwr.algorithm.direction import add_tensor_directions
from fedpw_flwr.algorithm.engine import Measured
from fedpw_flwr.algorithm.tensors import TensorKind, saturated, working_dtype

__all__ = ["LazyTensors", "Reference"]


class Reference:
    """The engine that computes tensor by tensor, see `Engine`.

    Parameters
    ----------
    global_model : Mapping[str, Tensor]
        w.
    kinds : Mapping[str, TensorKind]
        What each tensor is.
    cohort : Cohort
        The participants.
    device : torch.device | str (default: "cpu")
        Where the arithmetic runs.
    """

    def __init__(
        self,
        global_model: Mapping[str, Tensor],
        kinds: Mapping[str, TensorKind],
        cohort: Cohort,
        device: torch.device | str = "cpu",
    ) -> None:
        self._global_model = global_model
        self._kinds = kinds
        self._cohort = cohort
        self._device = device

    def directions(self) -> list[float]:
        """Return d_k = ⟨Δ_k, Σ_j Δ_j⟩ over the trainable tensors."""
        directions = [0.0] * len(self._cohort.results)
        for name in self._global_model:
            self.add_directions(directions, name)
        return directions

    def add_directions(self, directions: list[float], name: str) -> None:
        """Add one tensor's part of d_k to the running sums, in place."""
        tensor = self._global_model[name]
        if self._kinds[name] is TensorKind.TRAINABLE and tensor.numel():
            trained = LazyTensors(self._cohort.results, name)
            add_tensor_directions(directions, tensor.to(self._device), trained)

    def move(self, weights: Sequence[float]) -> Iterator[tuple[str, Tensor, Measured | None]]:
        """Compute the new model's tensors."""
        for name in self._global_model:
            yield name, *self.moved(name, weights)

    def moved(self, name: str, weights: Sequence[float]) -> tuple[Tensor, Measured | None]:
        """Compute one tensor of the new model, w − g, and what it says about consensus."""
        tensor, kind, cohort = self._global_model[name], self._kinds[name], self._cohort
        if tensor.numel() == 0:
            return tensor.cpu(), None
        trained = LazyTensors(cohort.results, name)
        if kind is TensorKind.INTEGER:
            return _weighted_integers(tensor, trained, weights), None
        start = tensor.reshape(-1).to(self._device, working_dtype(tensor.dtype))
        measured = None
        consensus_rate = cohort.avg_drop_rate if kind is TensorKind.TRAINABLE else None
        adjusted = consensus_rate is not None and is_adjustable(tensor)
        if cohort.rates is None or (cohort.sent is not None and not adjusted):
            change = _average(start, trained, weights)
        elif cohort.sent is None:
            change, measured = _average_adjusted(
                start, trained, weights, cohort.rates, consensus_rate
            )
        else:
            change, measured = _average_and_measure(name, start, trained, weights, cohort)
        moved = torch.sub(start, change, out=change)
        return saturated(moved, tensor.dtype).reshape(tensor.shape).cpu(), measured


class LazyTensors(Sequence[Tensor]):
    """One tensor of every client, decoded each time it is asked for and never kept."""

    def __init__(self, results: Sequence[ClientResult], name: str) -> None:
        self._results = results
        self._name = name

    def __getitem__(self, place: Any) -> Any:
        return self._results[place].tensors[self._name]

    def __len__(self) -> int:
        return len(self._results)


def _average(start: Tensor, trained: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Aggregate g = Σ λ_k Δ_k of one tensor."""
    change = torch.zeros_like(start)
    update = torch.empty_like(start)
    for tensor, weight in zip(trained, weights, strict=True):
        change.add_(_update_into(update, start, tensor), alpha=weight)
    return change


def _average_adjusted(
    start: Tensor,
    trained: Sequence[Tensor],
    weights: Sequence[float],
    rates: Sequence[float],
    consensus_rate: float | None,
) -> tuple[Tensor, Measured | None]:
    """Mask each Δ_k, aggregate g = Σ λ_k Δ̃_k, and amplify g where the clients agree.

    `consensus_rate` is r̄, or None for a tensor without consensus (a buffer). Returns g and f.
    """
    entries = start.numel()
    counts = [entry_count(entries, rate) for rate in rates]
    agreement = _Agreement(start) if consensus_rate is not None and all(counts) else None

    change = torch.zeros_like(start)
    update, scratch = torch.empty_like(start), torch.empty_like(start)
    discarded = start.new_zeros(())
    for tensor, weight, count in zip(trained, weights, counts, strict=True):
        _update_into(update, start, tensor)
        discarded = discarded + mask_smallest_(update, count, scratch)
        change.add_(update, alpha=weight)
        if agreement is not None:
            agreement.add_(update)

    if consensus_rate is None:
        return change, None
    if agreement is None:
        return change, Measured(start.new_ones(()))
    size = entry_count(entries, consensus_rate)
    members = agreement.consensus_set(size)
    factor = amplification_factor(change, members, size, discarded / len(trained))
    return amplify_(change, members, factor), Measured(factor, members)


def _average_and_measure(
    name: str, start: Tensor, trained: Sequence[Tensor], weights: Sequence[float], cohort: Cohort
) -> tuple[Tensor, Measured | None]:
    """Aggregate g = Σ λ_k Δ̃_k of updates that are adjusted, and measure the next C and f.

    For f alone the factor that the clients multiplied by is divided out of g, else f would feed on
    itself. Returns g, and C with f where every client masked an entry.
    """
    if not cohort.is_scored(start, trainable=True):
        return _average(start, trained, weights), None
    agreement = _Agreement(start)
    change = torch.zeros_like(start)
    update = torch.empty_like(start)
    norms = []
    for tensor, weight in zip(trained, weights, strict=True):
        change.add_(_update_into(update, start, tensor), alpha=weight)
        norms.append(agreement.add_(update))
    size = entry_count(start.numel(), cohort.avg_drop_rate)
    members = agreement.consensus_set(size)
    scale = sent_scale(cohort.sent, name, start)
    unscaled = change if scale is None else torch.div(change, scale, out=update)
    # Asked for last: an update that the server adjusted has its m_k only now.
    discarded = [
        discarded_magnitude(result, name, norm, start.numel())
        for result, norm in zip(cohort.results, torch.stack(norms).tolist(), strict=True)
    ]
    mean_discarded = start.new_tensor(sum(discarded) / len(discarded))
    factor = amplification_factor(unscaled, members, size, mean_discarded)
    return change, Measured(factor, members)


class _Agreement:
    """Running sums over the clients of the unit-normalised updates x_k of one tensor."""

    def __init__(self, like: Tensor) -> None:
        self._total = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)

    def add_(self, update: Tensor) -> Tensor:
        """Add x_k = Δ̃_k / ‖Δ̃_k‖ and return the norm, 0-d; `update` is overwritten."""
        norm: Tensor = torch.linalg.vector_norm(update)
        unit_normalise_(update, norm)
        self._total.add_(update)
        self._squares.addcmul_(update, update)
        return norm

    def consensus_set(self, size: int) -> Tensor:
        """Return membership of C, bool; the sums are overwritten."""
        return consensus_set(consensus_score_(self._total, self._squares), size)


def _update_into(update: Tensor, start: Tensor, trained: Tensor) -> Tensor:
    """Write Δ_k = w − w_k into `update`."""
    return torch.sub(start, trained.reshape(-1).to(start.device, start.dtype), out=update)


def _weighted_integers(
    start: Tensor, trained: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Weighted mean of integers or truths, rounded to nearest; where all agree, what they agree on.

    On the CPU in float64, which holds integers up to 2⁵³ exactly. Larger ones that differ have a
    mean as exact as float64 is, within what the dtype holds.
    """
    mean = np.zeros(start.shape, dtype=np.float64)
    first = trained[0].cpu().numpy().astype(start.cpu().numpy().dtype, copy=False)
    agreed = np.ones(start.shape, dtype=np.bool_)
    for tensor, weight in zip(trained, weights, strict=True):
        values = tensor.cpu().numpy()
        mean += weight * values.astype(np.float64)
        agreed &= values == first
    if first.dtype != np.bool_:
        limits = np.iinfo(first.dtype)
        # The largest float64 that the dtype holds.
        most = min(float(limits.max), math.nextafter(float(limits.max + 1), 0.0))
        mean = mean.clip(limits.min, most)
    return torch.from_numpy(np.where(agreed, first, np.rint(mean).astype(first.dtype)))
