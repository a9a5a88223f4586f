"""AFL: the best model for the worst mixture of clients.

The server plays against the model: it moves the clients' weights towards those with large losses,
a small step a round, so a client that stays badly served gains weight for as long as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights
from fedpw_flwr.baselines.loss_weighted import LossWeightedStrategy
from fedpw_flwr.baselines.settings import number_in
from fedpw_flwr.baselines.simplex import ClientShares, project_to_simplex
from fedpw_flwr.strategy.options import BaselineOptions

__all__ = ["AFL"]


class AFL(LossWeightedStrategy):
    """Agnostic federated learning: min_w max_{λ ∈ simplex} Σ_k λ_k ℓ_k(w).

    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019. Descent on w and projected
    ascent on λ, both from the present point:

        w ← w − Σ_k λ_k Δ_k,     Δ_k = w − w_k
        λ ← Π(λ + γ_λ ℓ),        Π: Euclidean projection onto the simplex

    λ begins with equal weights. ℓ_k is the loss of w, the model that arrives at client k, over its
    training data, with ``train_loss_key="initial_loss"``, as in conf/strategy; by default it is
    what every client can report, the mean over its local steps, which end elsewhere than at w. The
    paper takes one stochastic gradient step a round, here Δ_k is what local training did.

    Where not all clients take part, the formulas hold for the participants' shares of their own
    sum of weights: the sum stays with them and is divided anew, absent clients keep their weights,
    and a client that is seen first comes in with the average weight. Participants whose weights are
    all 0 count equally in that round and keep them.

    Parameters
    ----------
    lambda_step : float (default: 0.1)
        γ_λ > 0, the step of the weights, in weight per unit of loss. The paper's follows from
        bounds that are not known in practice and is to be tuned.
    **options : BaselineOptions
        As in `LossWeightedStrategy`.

    Raises
    ------
    TypeError
        If `lambda_step` is not a number.
    ValueError
        If `lambda_step` is not positive and finite.
    """

    def __init__(
        self,
        *,
        lambda_step: float = 0.1,
        **options: Unpack[BaselineOptions],
    ) -> None:
        self.lambda_step = number_in("lambda_step", lambda_step, 0.0, above=True)
        super().__init__(**options)
        self.shares = ClientShares()

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters."""
        return {"lambda_step": self.lambda_step}

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, ClientShares]:
        """Weight by λ, and move λ for the next round."""
        clients = [result.client for result in results]
        weights = self.shares.of(clients)
        ascended = [
            weight + self.lambda_step * (result.loss or 0.0)
            for weight, result in zip(weights, results, strict=True)
        ]
        return RoundWeights.of_mean(weights), self.shares.moved(
            clients, project_to_simplex(ascended)
        )

    def remember(self, memory: ClientShares) -> None:
        """Take the weights of the next round."""
        super().remember(memory)
        self.shares = memory

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the weights beside the number of rounds."""
        state, tensors = super().saved_memory()
        return {**state, "shares": self.shares.to_dict()}, tensors

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set them to what `saved_memory` returned."""
        shares = ClientShares.from_dict(state["shares"])
        super().restore_memory(state, tensors)
        self.shares = shares
