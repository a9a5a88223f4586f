"""FedAvg, weighted by number of examples or equally: what every fair strategy is measured against.

The first is Flower's FedAvg on the same ground as the others here (screened replies, counters that
stay integers, draws that repeat). The second is the simplest idea of fairness: every client counts
the same, whatever data it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from flwr.serverapp import strategy as flower
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised, weights_by_examples
from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.baselines.settings import number_in
from fedpw_flwr.strategy.options import FedAvgOptions

__all__ = ["EqualFedAvg", "FedAvg", "FedProx"]


class FedAvg(ScreenedStrategy):
    """Federated averaging: w ← w − Σ_k (n_k / n) Δ_k, with Δ_k = w − w_k.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", AISTATS 2017: n_k examples at client k, n = Σ n_k. Equal
    weights where no client reports its number.

    Parameters
    ----------
    **options : BaselineOptions
        As in `ScreenedStrategy`.
    """

    @property
    def needs_examples(self) -> bool:
        """Whether a reply without the number of examples is broken, where others have it."""
        return True

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight by number of examples."""
        return RoundWeights.of_mean(weights_by_examples(results)), None


class EqualFedAvg(ScreenedStrategy):
    """Federated averaging with every client counting the same: w ← w − (1/N) Σ_k Δ_k.

    Parameters
    ----------
    **options : BaselineOptions
        As in `ScreenedStrategy`.
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
    TypeError
        If `proximal_mu` is not a number.
    ValueError
        If `proximal_mu` is negative or not finite.
    """

    def __init__(self, *, proximal_mu: float = 0.0, **options: Unpack[FedAvgOptions]) -> None:
        proximal_mu = number_in("proximal_mu", proximal_mu, 0.0)
        super().__init__(proximal_mu=proximal_mu, **options)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return {**super().fingerprint(), "proximal_mu": self.proximal_mu}
