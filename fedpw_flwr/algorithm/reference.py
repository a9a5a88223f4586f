"""The server step a tensor at a time: read it beside the paper; it runs on any device.

The method decides weights and drop rates from a few numbers a client. Everything of the size of a
model is an engine's work: this one, or the faster one of `fedpw_flwr.engines`, which has to agree
with it and leaves to it the tensors it is not made for.

Clients' tensors are asked for by name when they are needed, so a caller may decode them lazily;
beside them a few tensors of the size of the one in hand are held, however many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    ClientResult,
    SentAdjustment,
    is_adjustable,
    rescaled,
)
from fedpw_flwr.algorithm.direction import add_tensor_directions
from fedpw_flwr.algorithm.tensors import TensorKind, saturated, working_dtype

CLIPPED = 0.99
"""An update that comes with less than this share of its reported norm was clipped on the way."""

ROUNDING = 1.01
"""What rounding may add to a magnitude before it is called too large."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Factor f (0-d) of one tensor, and its C (bool, shape (n,)) where there is one."""

    factor: Tensor
    members: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Cohort:
    """The participants of a round, with what was decided for all tensors alike."""

    results: Sequence[ClientResult]
    rates: Sequence[float] | None
    sent: SentAdjustment | None
    avg_drop_rate: float

    def masked_counts(self, tensor: Tensor) -> list[int]:
        """Return how many entries of each client's update of a tensor the server masks."""
        if self.sent is not None:
            return [0] * len(self.results)
        return self._rate_counts(tensor)

    def is_scored(self, tensor: Tensor, *, trainable: bool) -> bool:
        """Return whether the agreement on a tensor is measured: every client masked an entry."""
        adjusted = self.sent is None or is_adjustable(tensor)
        return trainable and adjusted and all(self._rate_counts(tensor))

    def _rate_counts(self, tensor: Tensor) -> list[int]:
        rates = self.rates or (0.0,) * len(self.results)
        return [entry_count(tensor.numel(), rate) for rate in rates]

    def mean_discarded(self, name: str, norms: Sequence[float], entries: int) -> float:
        """Return m = mean_k m_k of a tensor that clients adjusted, given the norms it came with."""
        discarded = [
            _discarded(result, name, norm, entries)
            for result, norm in zip(self.results, norms, strict=True)
        ]
        return sum(discarded) / len(discarded)


def _discarded(result: ClientResult, name: str, norm: float, entries: int) -> float:
    """Return m_k of one tensor in the scale of the update as it came, whose norm is given.

    A client reports m_k of the update before a clipping mod scaled it, and may report anything. No
    masked entry is larger than one that was kept, so m_k is at most their root mean square.
    """
    if isinstance(result.tensors, AdjustedTensors):
        return result.tensors.discarded_magnitude(name)
    if result.applied is None:
        return 0.0
    reported = result.applied.discarded[name]
    norm_before = result.applied.norms.get(name, norm)
    if norm < CLIPPED * norm_before:
        reported *= norm / norm_before
    kept = entries - entry_count(entries, result.applied.rate)
    if kept == 0:
        return reported
    most = ROUNDING * norm / math.sqrt(kept)
    return min(reported, most)


class Reference:
    """The engine that computes tensor by tensor; w is `global_model`."""

    def __init__(
        self,
        global_model: Mapping[str, Tensor],
        kinds: Mapping[str, TensorKind],
        cohort: Cohort,
        device: torch.device | str = "cpu",
    ) -> None:
        self._global_model, self._kinds = global_model, kinds
        self._cohort, self._device = cohort, device

    def directions(self) -> list[float]:
        """Return d_k = ⟨Δ_k, Σ_j Δ_j⟩ over the trainable tensors; asked for before `move`."""
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
        """Compute the new model's tensors with the weights λ_k, in the order of the global model.

        Yields name, w − g on the CPU in the shape and dtype of w, and what it says about consensus.
        """
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
        counts = cohort.masked_counts(tensor)
        start = tensor.reshape(-1).to(self._device, working_dtype(tensor.dtype))
        is_scored = cohort.is_scored(tensor, trainable=kind is TensorKind.TRAINABLE)
        agreement = _Agreement(start) if is_scored else None

        # Mask each Δ_k, and aggregate g = Σ λ_k Δ̃_k.
        change, update = torch.zeros_like(start), torch.empty_like(start)
        scratch = torch.empty_like(start) if any(counts) else update
        masked = start.new_zeros(())
        for client, weight, count in zip(trained, weights, counts, strict=True):
            torch.sub(start, client.reshape(-1).to(start.device, start.dtype), out=update)
            masked = masked + mask_smallest_(update, count, scratch)
            change.add_(update, alpha=weight)
            if agreement is not None:
                agreement.add_(update)

        # Find out where the clients agree, and amplify g there, if it is the server that does.
        measured = None
        if agreement is not None:
            factor, members = self._consensus(name, agreement, change, masked / len(trained))
            measured = Measured(factor, members)
            if cohort.sent is None:
                amplify_(change, members, factor)
        moved = torch.sub(start, change, out=change)
        return saturated(moved, tensor.dtype).reshape(tensor.shape).cpu(), measured

    def _consensus(
        self, name: str, agreement: _Agreement, change: Tensor, discarded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find f and C; m, 0-d, is `discarded`, or what the clients report where they masked.

        For f alone the factor that they multiplied by is divided out of g, else f would feed on
        itself.
        """
        cohort = self._cohort
        if cohort.sent is not None:
            norms = torch.stack(agreement.norms).tolist()
            # Only now: an update that the server adjusted has its m_k when it was read.
            discarded = change.new_tensor(cohort.mean_discarded(name, norms, change.numel()))
            sent, factor = rescaled(cohort.sent.consensus, name)
            if sent is not None:
                factors = torch.where(sent.to(change.device), change.new_tensor(factor), 1.0)
                change = change / factors
        size = entry_count(change.numel(), cohort.avg_drop_rate)
        members = agreement.consensus_set(size)
        return amplification_factor(change, members, size, discarded), members


StartEngine = Callable[[Mapping[str, Tensor], Mapping[str, TensorKind], Cohort], Reference]
"""Makes the engine of a round from w, what each tensor is, and the participants."""


class LazyTensors(Sequence[Tensor]):
    """One tensor of every client, decoded each time it is asked for and never kept."""

    def __init__(self, results: Sequence[ClientResult], name: str) -> None:
        self._results, self._name = results, name

    def __getitem__(self, index: Any) -> Any:
        return self._results[index].tensors[self._name]

    def __len__(self) -> int:
        return len(self._results)


class _Agreement:
    """Running sums over the clients of the unit-normalised updates x_k of one tensor."""

    def __init__(self, like: Tensor) -> None:
        self._total = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)
        self.norms: list[Tensor] = []

    def add_(self, update: Tensor) -> None:
        """Add x_k = Δ̃_k / ‖Δ̃_k‖, and keep the norm, 0-d; `update` is overwritten."""
        self.norms.append(unit_normalise_(update))
        self._total.add_(update)
        self._squares.addcmul_(update, update)

    def consensus_set(self, size: int) -> Tensor:
        """Return membership of C, bool; the sums are overwritten."""
        return consensus_set(consensus_score_(self._total, self._squares), size)


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
