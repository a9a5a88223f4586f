"""FedMGDA+: a step in a common descent direction, so that no client pays for the others.

Every client's update counts with the same length, so a loud one cannot drown the others; of their
mixtures near the equal one the shortest is taken, which leans towards those who disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, inner_products
from fedpw_flwr.baselines.min_norm import min_norm_weights
from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.baselines.settings import Rescale, checked_rescale, number_in
from fedpw_flwr.strategy.options import BaselineOptions

__all__ = ["FedMGDAPlus"]


class FedMGDAPlus(ScreenedStrategy):
    """FedMGDA+.

    Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization", arXiv
    2006.11489 (2020), IEEE TNSE 2022. With Δ_k = w − w_k over the trainable arrays:

        ḡ_k = Δ_k / ‖Δ_k‖
        λ* = argmin ‖Σ_k λ_k ḡ_k‖²  over  {λ ∈ simplex, |λ_k − λ⁰_k| ≤ ε},  λ⁰_k = 1/N
        w ← w − η_t s Σ_k λ*_k ḡ_k,     η_t = η · decay^t,  t = 0, 1, ... rounds so far

    Normalised updates have lost their length. In the paper's form (``rescale="none"``, s = 1) the
    step is at most η long however short or long the clients' own steps are, so η is to be tuned
    for a model and a local training. By default s = mean_k ‖Δ_k‖: clients that agree move the
    model as far as FedAvg would, at η = 1, and disagreement shortens the step as in the paper.

    A client whose update is 0 has no direction: it counts 0, and the others as if it were not
    there. Where all updates are 0, or the shortest mixture is, the trained arrays stay as they are.
    Running statistics and counters are averaged with λ*. The reported weights are
    c_k = η_t s λ*_k / ‖Δ_k‖.

    Parameters
    ----------
    epsilon : float (default: 0.1)
        ε in [0, 1]. 0: equal weights; 1: any weights, MGDA.
    server_learning_rate : float (default: 1.0)
        η > 0.
    decay : float (default: 1.0)
        Factor of η from one round to the next, in (0, 1].
    rescale : "none" | "mean" (default: "mean")
        Length of a step: the paper's, or that of the clients' mean step.
    **options : BaselineOptions
        As in `ScreenedStrategy`.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    ImportError
        In a round, if SciPy is not installed (``pip install "fedpw-flwr[app]"``).
    """

    def __init__(
        self,
        *,
        epsilon: float = 0.1,
        server_learning_rate: float = 1.0,
        decay: float = 1.0,
        rescale: Rescale = "mean",
        **options: Unpack[BaselineOptions],
    ) -> None:
        self.epsilon = number_in("epsilon", epsilon, 0.0, 1.0)
        self.server_learning_rate = number_in(
            "server_learning_rate", server_learning_rate, 0.0, above=True
        )
        self.decay = number_in("decay", decay, 0.0, 1.0, above=True)
        self.rescale = checked_rescale(rescale)
        super().__init__(**options)

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters."""
        return {
            "epsilon": self.epsilon,
            "server_learning_rate": self.server_learning_rate,
            "decay": self.decay,
            "rescale": self.rescale,
        }

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Weight by the min-norm point of the normalised updates."""
        products = inner_products(global_model, results)
        norms = np.sqrt(np.diag(products))
        moved = np.flatnonzero(norms > 0.0)
        if len(moved) == 0:
            equal = (1.0 / len(results),) * len(results)
            return RoundWeights((0.0,) * len(results), equal), None
        lengths = norms[moved]
        cosines = products[np.ix_(moved, moved)] / np.outer(lengths, lengths)
        weights = np.zeros(len(results))
        weights[moved] = min_norm_weights(cosines, self.epsilon)
        step_size = self.server_learning_rate * self.decay**self.rounds_done
        scale = float(norms.mean()) if self.rescale == "mean" else 1.0
        step = np.zeros(len(results))
        step[moved] = step_size * scale * weights[moved] / lengths
        return RoundWeights(tuple(step.tolist()), tuple(weights.tolist())), None
