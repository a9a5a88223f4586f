"""The participants of a round and what was decided for all tensors alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    AppliedAdjustment,
    SentAdjustment,
    is_adjustable,
)

CLIPPED = 0.99
"""An update that comes with less than this share of its reported norm was clipped on the way."""

ROUNDING = 1.01
"""What rounding may add to a magnitude before it is called too large."""


@dataclass(frozen=True)
class ClientResult:
    """What one client brings to a round.

    Attributes
    ----------
    client : int
        Client id, the same in every round.
    tensors : Mapping[str, Tensor]
        w_k, the client's model after training; may decode on access.
    loss : float | None
        ℓ_k, mean training loss over all local batches. Needed unless both parts of the method are
        switched off.
    num_examples : float | None
        Number of training examples; only used where `adapt_weights` is off.
    applied : AppliedAdjustment | None
        What the client did to its update before sending; None where w_k is as trained.
    """

    client: int
    tensors: Mapping[str, Tensor]
    loss: float | None = None
    num_examples: float | None = None
    applied: AppliedAdjustment | None = None


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
