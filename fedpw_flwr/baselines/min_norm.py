"""The shortest convex combination of vectors: a direction in which nobody's loss grows.

Only the vectors' inner products are needed, so the problem has as many unknowns as there are
clients, however large the model. SciPy solves it.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

__all__ = ["min_norm_weights", "optimality_gap"]

logger = logging.getLogger("flwr")


def min_norm_weights(
    products: npt.NDArray[np.float64], epsilon: float, tolerance: float = 1e-6
) -> tuple[float, ...]:
    """Return argmin ‖Σ λ_k g_k‖² over {λ ∈ simplex, |λ_k − 1/N| ≤ ε}.

    Parameters
    ----------
    products : NDArray[float64]
        ⟨g_k, g_j⟩, shape (N, N), finite.
    epsilon : float
        ε in [0, 1]: at 0 the weights are equal, at 1 they are anywhere in the simplex.
    tolerance : float (default: 1e-6)
        Distance of ½‖Σ λ_k g_k‖² from the optimum, relative to the largest ‖g_k‖², beyond which a
        warning is logged.

    Returns
    -------
    tuple[float, ...]
        λ_k, at least 0, summing to 1. Equal weights where they are as good as any others.
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
    weights = np.clip(found.x, least, most)
    weights = weights / weights.sum()
    if not np.all(np.isfinite(weights)) or float(equal @ scaled @ equal) <= float(
        weights @ scaled @ weights
    ):
        weights = equal
    gap = optimality_gap(scaled, weights, epsilon)
    if gap > tolerance:
        logger.warning(
            "the min-norm point is %.1e of the largest squared norm away from the optimum at most "
            "(%s)",
            gap,
            found.message,
        )
    return tuple(weights.tolist())


def optimality_gap(
    products: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], epsilon: float
) -> float:
    """Return a bound on how far ½‖Σ λ_k g_k‖² is above its least value (Frank and Wolfe's gap).

    max ⟨∇, λ − μ⟩ over the allowed μ, which puts as much weight as it may on the smallest entries
    of the gradient ∇ = Gλ.

    Parameters
    ----------
    products : NDArray[float64]
        G, shape (N, N).
    weights : NDArray[float64]
        λ, shape (N,).
    epsilon : float
        ε in [0, 1].
    """
    count = len(weights)
    gradient = products @ weights
    least = np.maximum(1.0 / count - epsilon, 0.0)
    room = np.minimum(1.0 / count + epsilon, 1.0) - least
    best = np.full(count, least)
    left = 1.0 - best.sum()
    for index in np.argsort(gradient, kind="stable"):
        taken = min(room, left)
        best[index] += taken
        left -= taken
    return float(gradient @ (weights - best))
