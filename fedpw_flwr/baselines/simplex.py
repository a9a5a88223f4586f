"""Weights of clients that live on the simplex from round to round, and the way back onto it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedpw_flwr.baselines.averaging import normalised

__all__ = ["ClientShares", "project_to_simplex"]


def project_to_simplex(values: Sequence[float]) -> tuple[float, ...]:
    """Return the point of the simplex {x ≥ 0, Σ x = 1} that is nearest to `values`.

    x_k = max(v_k − θ, 0) with the θ for which they sum to 1 (Held, Wolfe, Crowder 1974; Duchi et
    al., ICML 2008): found exactly from the sorted values.
    """
    # Shifting all values does not move their projection; it keeps the sums below exact.
    shifted = np.asarray(values, dtype=np.float64) - max(values)
    descending = np.sort(shifted)[::-1]
    thresholds = (np.cumsum(descending) - 1.0) / np.arange(1, len(values) + 1)
    last = int(np.flatnonzero(descending > thresholds)[-1])
    return normalised(np.maximum(shifted - thresholds[last], 0.0).tolist())


@dataclass(frozen=True)
class ClientShares:
    """The weight of every client seen so far, in units where the average client has 1.

    In a round only the participants' weights are moved, among themselves: their sum stays, and so
    do the weights of those who are absent. A client that is seen first comes in with 1. Where all
    take part these are the weights of the papers, times the number of clients.

    Attributes
    ----------
    weights : Mapping[int, float]
        Weight by client.
    """

    weights: Mapping[int, float] = field(default_factory=dict)

    def of(self, clients: Sequence[int]) -> tuple[float, ...]:
        """Return the participants' shares, summing to 1; equal ones where all weights are 0."""
        return normalised([self.weights.get(client, 1.0) for client in clients])

    def moved(self, clients: Sequence[int], shares: Sequence[float]) -> ClientShares:
        """Return the weights with the participants' sum divided anew, by shares that sum to 1."""
        total = sum(self.weights.get(client, 1.0) for client in clients)
        moved = {client: total * share for client, share in zip(clients, shares, strict=True)}
        return ClientShares({**self.weights, **moved})

    def to_dict(self) -> dict[str, float]:
        """Return the weights as JSON can hold them."""
        return {str(client): weight for client, weight in self.weights.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ClientShares:
        """Return what `to_dict` saved."""
        return cls({int(client): float(weight) for client, weight in saved.items()})
