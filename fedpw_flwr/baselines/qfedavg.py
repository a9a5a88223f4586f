"""q-FedAvg: large losses count more, and the server takes a shorter step the fairer it is to be.

Flower has this strategy, too; its arithmetic fails on the integer counters of a model with
BatchNorm, and steps along running statistics as if they were weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised, squared_norms
from fedpw_flwr.baselines.screened import LossWeightedStrategy, Rescale, checked_rescale, number_in
from fedpw_flwr.strategy.options import BaselineOptions

_LEAST_LOSS = 1e-10
"""Added to every loss, as Flower and the paper's authors do: a loss of 0 has no power below 0."""


class QFedAvg(LossWeightedStrategy):
    """q-FedAvg.

    Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
    Algorithm 2, for the objective Σ_k F_k(w)^{q+1} / (q+1) with equal p_k. With L = 1/η of the
    clients' learning rate η:

        Δw_k = L (w − w_k)        Δ_k = F_k^q Δw_k
        h_k = q F_k^{q−1} ‖Δw_k‖² + L F_k^q
        w ← w − Σ_k Δ_k / Σ_k h_k

    F_k is the loss of w over the client's training data with ``train_loss_key="initial_loss"``, as
    in conf/strategy; by default the mean over its local steps.

    Running statistics and counters are no part of Δw_k or its norm: they are averaged with the
    weights F_k^q / Σ_j F_j^q, in proportion to what the clients' updates count. The weights
    c_k = L F_k^q / Σ_j h_j that are reported sum to less than 1 for q > 0: the step is shorter than
    an average, by 1 + q L ‖w − w_k‖² / F_k for clients that are alike. At q = 0 this is
    `EqualFedAvg`.

    After many local steps ‖w − w_k‖² is large, and the paper's step may be too short to train by:
    q is to be tuned for a local training, or ``rescale="mean"`` takes the step
    w ← w − Σ_k F_k^q (w − w_k) / Σ_j F_j^q, of the same clients' powers and an average's length.

    Parameters
    ----------
    client_learning_rate : float
        η > 0, with which clients train.
    q : float (default: 0.1)
        Fairness, at least 0.
    rescale : "none" | "mean" (default: "none")
        Length of a step: the paper's, or that of a weighted mean.
    **options : BaselineOptions
        As in `LossWeightedStrategy`.

    Raises
    ------
    TypeError, ValueError
        If a setting is not a number, or outside its range.
    """

    hyperparameters = ("client_learning_rate", "q", "rescale")

    def __init__(
        self,
        *,
        client_learning_rate: float,
        q: float = 0.1,
        rescale: Rescale = "none",
        **options: Unpack[BaselineOptions],
    ) -> None:
        self.client_learning_rate = number_in(
            "client_learning_rate", client_learning_rate, 0.0, above=True
        )
        self.q = number_in("q", q, 0.0)
        self.rescale = checked_rescale(rescale)
        super().__init__(**options)

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight by the q-th power of the losses."""
        losses = [result.loss or 0.0 for result in results]
        norms = squared_norms(global_model, results)
        weights = q_weights(losses, norms, self.q, 1.0 / self.client_learning_rate)
        if self.rescale == "mean":
            weights = RoundWeights.of_mean(weights.mean)
        return weights, None


def q_weights(
    losses: Sequence[float], norms: Sequence[float], q: float, lipschitz: float
) -> RoundWeights:
    """Return c_k = L F_k^q / Σ_j h_j, and F_k^q / Σ_j F_j^q for what is not trained.

    `losses` are F_k ≥ 0, `norms` ‖w − w_k‖² (without the factor L²), `lipschitz` is L. Numerator
    and denominator are divided by L F_max^q, which no power of a loss overflows then.
    """
    shifted = np.asarray(losses, dtype=np.float64) + _LEAST_LOSS
    largest = float(shifted.max())
    ratios = shifted / largest
    powers = ratios**q
    moved = np.asarray(norms, dtype=np.float64)
    with np.errstate(all="ignore"):
        curvature = q * ratios ** (q - 1.0) * lipschitz * moved / largest
    # A loss out of all proportion has an infinite power, also where nothing was moved.
    curvature = np.where(moved > 0.0, curvature, 0.0)
    total = float((powers + curvature).sum())
    return RoundWeights(step=tuple((powers / total).tolist()), mean=normalised(powers.tolist()))
