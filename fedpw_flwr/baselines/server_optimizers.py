"""Flower's FedAvgM and FedAdam, for models with BatchNorm.

Flower's own step along every array: momentum carries a running variance past 0, and the model
answers NaN; adaptive steps leave it where training never was, and a counter at a fraction. Here
their step is taken on the trained arrays (`strategy.step_on_top`), and the rest is averaged.
"""

from __future__ import annotations

from typing import Unpack

from flwr.serverapp import strategy as flower

from fedpw_flwr.baselines.fedavg import FedAvg
from fedpw_flwr.baselines.settings import number_in
from fedpw_flwr.strategy.options import FedAvgOptions

__all__ = ["FedAdam", "FedAvgM"]


class FedAvgM(flower.FedAvgM, FedAvg):
    """FedAvg with momentum on the server: v ← μ v + Σ_k (n_k / n) Δ_k,  w ← w − η v.

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019. The step is Flower's.

    Parameters
    ----------
    server_learning_rate : float (default: 1.0)
        η > 0.
    server_momentum : float (default: 0.9)
        μ in [0, 1).
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        number_in("server_learning_rate", server_learning_rate, 0.0, above=True)
        if number_in("server_momentum", server_momentum, 0.0, 1.0) == 1.0:
            raise ValueError("server_momentum=1 would never forget a step: choose one below 1")
        super().__init__(
            server_learning_rate=server_learning_rate, server_momentum=server_momentum, **options
        )


class FedAdam(flower.FedAdam, FedAvg):
    """FedAdam: Adam on the server, the round's mean update as its gradient.

    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, with Δ the mean of w_k − w:
    m ← β₁ m + (1−β₁) Δ,  v ← β₂ v + (1−β₂) Δ²,  w ← w + η_t m / (√v + τ). The step is Flower's,
    with Adam's correction of the first rounds in η_t.

    Parameters
    ----------
    eta : float (default: 0.1)
        η > 0.
    beta_1, beta_2 : float (default: 0.9, 0.99)
        In [0, 1).
    tau : float (default: 0.001)
        τ > 0: the larger, the less adaptive.
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        number_in("eta", eta, 0.0, above=True)
        number_in("tau", tau, 0.0, above=True)
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if number_in(name, beta, 0.0, 1.0) == 1.0:
                raise ValueError(f"{name}=1 would never learn of a step: choose one below 1")
        super().__init__(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau, **options)
