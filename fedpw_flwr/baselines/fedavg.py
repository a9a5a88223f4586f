"""FedAvg, by examples or equally, and Flower's FedProx, FedAvgM and FedAdam on top of it.

FedAvg is Flower's on the same ground as the others here (screened replies, counters that stay
integers, draws that repeat). To weight equally is the simplest idea of fairness: every client
counts the same, whatever data it has.

Flower's own server optimizers step along every array: momentum carries a running variance past 0,
and the model answers NaN; adaptive steps leave it where training never was, and a counter at a
fraction. Here their step is taken on the trained arrays (`strategy.step_on_top`), and the rest is
averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from flwr.serverapp import strategy as flower
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised, weights_by_examples
from fedpw_flwr.baselines.screened import ScreenedStrategy, number_in
from fedpw_flwr.strategy.options import FedAvgOptions


class FedAvg(ScreenedStrategy):
    """Federated averaging: w ← w − Σ_k (n_k / n) Δ_k, with Δ_k = w − w_k.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", AISTATS 2017: n_k examples at client k, n = Σ n_k. Equal
    weights where no client reports its number. Options as in `ScreenedStrategy`.
    """

    needs_examples = True

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight by number of examples."""
        return RoundWeights.of_mean(weights_by_examples(results)), None


class EqualFedAvg(ScreenedStrategy):
    """Federated averaging with every client counting the same: w ← w − (1/N) Σ_k Δ_k.

    Options as in `ScreenedStrategy`.
    """

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight equally."""
        return RoundWeights.of_mean(normalised([1.0] * len(results))), None


class FedProx(flower.FedProx, FedAvg):
    """Flower's FedProx on the averaging of this package's FedAvg.

    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020: clients add (μ/2)‖w_k − w‖² to their loss. The server only tells them μ,
    as ``proximal-mu`` in the configuration.

    Parameters
    ----------
    proximal_mu : float (default: 0.0)
        μ ≥ 0; at 0 this is `FedAvg`.
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError, ValueError
        If `proximal_mu` is not a number, or negative or not finite.
    """

    def __init__(self, *, proximal_mu: float = 0.0, **options: Unpack[FedAvgOptions]) -> None:
        proximal_mu = number_in("proximal_mu", proximal_mu, 0.0)
        super().__init__(proximal_mu=proximal_mu, **options)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return {**super().fingerprint(), "proximal_mu": self.proximal_mu}


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
    TypeError, ValueError
        If a setting is not a number, or outside its range.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        number_in("server_learning_rate", server_learning_rate, 0.0, above=True)
        number_in("server_momentum", server_momentum, 0.0, 1.0, below=True)
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
    TypeError, ValueError
        If a setting is not a number, or outside its range.
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
            number_in(name, beta, 0.0, 1.0, below=True)
        super().__init__(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau, **options)
