"""TERM: weights tilted towards the clients with large losses.

One number moves the objective from the mean loss (t = 0) towards the largest one (t → ∞), without
memory and without a step size of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised, weights_by_examples
from fedpw_flwr.baselines.screened import LossWeightedStrategy, number_in
from fedpw_flwr.strategy.options import BaselineOptions


class TERM(LossWeightedStrategy):
    """Tilted empirical risk minimisation over clients.

    Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021. The objective is
    (1/t) log Σ_k p_k exp(t f_k(w)), p_k = n_k / n, whose gradient is Σ_k λ_k ∇f_k(w) with

        λ_k ∝ n_k exp(t ℓ_k),     w ← w − Σ_k λ_k Δ_k,     Δ_k = w − w_k.

    ℓ_k is f_k(w) with ``train_loss_key="initial_loss"``, as in conf/strategy; by default the mean
    over the client's local steps. Equal n_k where no client reports them. At t = 0 this is FedAvg.

    Parameters
    ----------
    t : float (default: 0.1)
        The tilt, any finite number: above 0 it favours large losses, below 0 small ones.
    **options : BaselineOptions
        As in `LossWeightedStrategy`.

    Raises
    ------
    TypeError, ValueError
        If `t` is not a number, or not finite.
    """

    hyperparameters = ("t",)
    needs_examples = True

    def __init__(self, *, t: float = 0.1, **options: Unpack[BaselineOptions]) -> None:
        self.t = number_in("t", t)
        super().__init__(**options)

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight by number of examples and tilted loss."""
        losses = [result.loss or 0.0 for result in results]
        shares = weights_by_examples(results)
        return RoundWeights.of_mean(tilted_weights(shares, losses, self.t)), None


def tilted_weights(shares: Sequence[float], losses: Sequence[float], t: float) -> tuple[float, ...]:
    """Return λ_k ∝ p_k exp(t ℓ_k), from p_k ≥ 0 that sum to 1 and finite ℓ_k.

    The loss that counts most is taken out of all losses first, so nothing overflows and not all
    weights can vanish.
    """
    counted = np.asarray(shares, dtype=np.float64)
    values = np.asarray(losses, dtype=np.float64)
    there = values[counted > 0]
    leading = there.max() if t > 0 else there.min()
    with np.errstate(over="ignore"):
        exponents = t * (values - leading)
    return normalised((counted * np.exp(np.minimum(exponents, 0.0))).tolist())
