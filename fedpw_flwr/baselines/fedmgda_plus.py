"""FedMGDA+: a step in a common descent direction, so that no client pays for the others.

Every client's update counts with the same length, so a loud one cannot drown the others; of their
mixtures near the equal one the shortest is taken, which leans towards those who disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, inner_products
from fedpw_flwr.baselines.screened import Rescale, ScreenedStrategy, checked_rescale, number_in
from fedpw_flwr.strategy.options import BaselineOptions

logger = logging.getLogger("flwr")


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
    TypeError, ValueError
        If a setting is not a number, or outside its range.
    ImportError
        In a round, if SciPy is not installed (``pip install "fedpw-flwr[app]"``).
    """

    hyperparameters = ("epsilon", "server_learning_rate", "decay", "rescale")

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


def min_norm_weights(products: npt.NDArray[np.float64], epsilon: float) -> tuple[float, ...]:
    """Return argmin ‖Σ λ_k g_k‖² over {λ ∈ simplex, |λ_k − 1/N| ≤ ε}, as SciPy finds it.

    Only `products` are needed, ⟨g_k, g_j⟩, shape (N, N), finite: as many unknowns as clients,
    however large the model. ε in [0, 1]: at 0 the weights are equal, at 1 anywhere in the simplex;
    equal, too, where that is as good as any others.
    """
    count = len(products)
    equal = np.full(count, 1.0 / count)
    scale = float(np.max(np.diag(products)))
    if count == 1 or epsilon == 0.0 or scale <= 0.0:
        return tuple(equal.tolist())
    # Not at the top: SciPy belongs to the extra [app], and takes its time to import.
    from scipy.optimize import minimize

    scaled = products / scale
    least, most = np.maximum(equal - epsilon, 0.0), np.minimum(equal + epsilon, 1.0)
    found = minimize(
        lambda weights: 0.5 * float(weights @ scaled @ weights),
        equal,
        jac=lambda weights: scaled @ weights,
        bounds=list(zip(least, most, strict=True)),
        constraints={
            "type": "eq",
            "fun": lambda weights: float(weights.sum()) - 1.0,
            "jac": lambda weights: np.ones(count),
        },
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    if not found.success:
        logger.warning("the min-norm point may not be the shortest: %s", found.message)
    weights = np.clip(found.x, least, most)
    weights = weights / weights.sum()
    if not np.all(np.isfinite(weights)) or float(equal @ scaled @ equal) <= float(
        weights @ scaled @ weights
    ):
        weights = equal
    return tuple(weights.tolist())
