"""AFL: the best model for the worst mixture of clients.

The server plays against the model: it moves the clients' weights towards those with large losses,
a small step a round, so a client that stays badly served gains weight for as long as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised
from fedpw_flwr.baselines.screened import LossWeightedStrategy, number_in
from fedpw_flwr.strategy.options import BaselineOptions


class AFL(LossWeightedStrategy):
    """Agnostic federated learning: min_w max_{λ ∈ simplex} Σ_k λ_k ℓ_k(w).

    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019. Descent on w and projected
    ascent on λ, both from the present point:

        w ← w − Σ_k λ_k Δ_k,     Δ_k = w − w_k
        λ ← Π(λ + γ_λ ℓ),        Π: Euclidean projection onto the simplex

    λ begins with equal weights. ℓ_k is the loss of w over the client's training data with
    ``train_loss_key="initial_loss"``, as in conf/strategy; by default the mean over its local
    steps. The paper takes one stochastic gradient step a round; here Δ_k is what training did.

    Where not all clients take part, the formulas hold for the participants' shares of their own
    sum of weights, which stays, as do the weights of those who are absent. Participants whose
    weights are all 0 count equally in that round and keep them.

    Parameters
    ----------
    lambda_step : float (default: 0.1)
        γ_λ > 0, the step of the weights, in weight per unit of loss. The paper's follows from
        bounds that are not known in practice and is to be tuned.
    **options : BaselineOptions
        As in `LossWeightedStrategy`.

    Raises
    ------
    TypeError, ValueError
        If `lambda_step` is not a number, or not positive and finite.
    """

    hyperparameters = ("lambda_step",)
    memory: Mapping[int, float]
    """λ by client, in units where the average client has 1, as who is seen first does."""

    def __init__(self, *, lambda_step: float = 0.1, **options: Unpack[BaselineOptions]) -> None:
        self.lambda_step = number_in("lambda_step", lambda_step, 0.0, above=True)
        super().__init__(**options)
        self.memory = {}

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Mapping[int, float]]:
        """Weight by λ, and move λ for the next round."""
        before = [self.memory.get(result.client, 1.0) for result in results]
        weights = normalised(before)
        ascended = [
            weight + self.lambda_step * (result.loss or 0.0)
            for weight, result in zip(weights, results, strict=True)
        ]
        after = {
            result.client: sum(before) * share
            for result, share in zip(results, project_to_simplex(ascended), strict=True)
        }
        return RoundWeights.of_mean(weights), {**self.memory, **after}

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the weights beside the number of rounds."""
        state, tensors = super().saved_memory()
        return {**state, "shares": dict(self.memory)}, tensors

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set them to what `saved_memory` returned."""
        weights = {int(client): float(weight) for client, weight in state["shares"].items()}
        super().restore_memory(state, tensors)
        self.memory = weights


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
