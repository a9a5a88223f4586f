"""Claims about FedMGDA+: the shortest mixture, and the step along it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.baselines_federation import MODEL, after_rounds, drawn, flat, local, one_round, stepped

from fedpw_flwr.baselines import EqualFedAvg, FedMGDAPlus
from fedpw_flwr.baselines.fedmgda_plus import min_norm_weights


def unit_vectors(seed: int, count: int, size: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize(("epsilon", "weights"), [(1.0, (0.2, 0.8)), (0.1, (0.4, 0.6))])
def test_perpendicular_vectors_are_mixed_by_the_inverse_of_their_squares_within_bounds(
    epsilon: float, weights: tuple[float, float]
) -> None:
    """‖λ a + (1−λ) b‖² = 4 λ² + (1−λ)² is least at λ = 1/5."""
    assert min_norm_weights(np.diag([4.0, 1.0]), epsilon) == pytest.approx(weights, abs=1e-7)


def test_where_any_weights_are_as_good_they_are_equal() -> None:
    assert min_norm_weights(np.ones((3, 3)), 1.0) == (1 / 3,) * 3
    assert min_norm_weights(np.zeros((3, 3)), 1.0) == (1 / 3,) * 3


def optimality_gap(products: np.ndarray, weights: np.ndarray, epsilon: float) -> float:
    """Return a bound on how far ½‖Σ λ_k g_k‖² is above its least value (Frank and Wolfe's gap).

    max ⟨∇, λ − μ⟩ over the allowed μ, which puts as much weight as it may on the smallest entries
    of the gradient ∇ = Gλ, with `products` G, shape (N, N), and `weights` λ, shape (N,).
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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
)
def test_weights_are_allowed_and_the_best(seed: int, count: int, size: int, epsilon: float) -> None:
    """The gap of Frank and Wolfe bounds the distance from the optimum, whoever solved it."""
    vectors = unit_vectors(seed, count, size)
    products = vectors @ vectors.T
    weights = np.array(min_norm_weights(products, epsilon))
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0
    assert np.abs(weights - 1 / count).max() <= epsilon + 1e-9
    assert optimality_gap(products, weights, epsilon) <= 1e-6


def test_the_gap_is_what_it_says() -> None:
    """At the equal point of diag(4, 1) the gradient is (2, ½): all weight on the second is best."""
    assert optimality_gap(np.diag([4.0, 1.0]), np.array([0.5, 0.5]), 1.0) == pytest.approx(0.75)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_at_the_min_norm_point_nobody_loses(seed: int) -> None:
    """⟨d, g_k⟩ ≥ ‖d‖²: a small step along d lets every client's loss fall, or stay."""
    vectors = unit_vectors(seed, 5, 8)
    common = np.array(min_norm_weights(vectors @ vectors.T, 1.0)) @ vectors
    assert (vectors @ common).min() >= common @ common - 1e-6


def test_a_round_worked_out_by_hand() -> None:
    """Updates (2, 0), (0, 1) and (0, −1) in the first two entries have the units a, b, −b. Within
    1/3 ± 0.1 the mixture is (λ_1, λ_2 − λ_3): shortest at λ_1 = 1/3 − 0.1, the others equal. The
    mean norm is 4/3.
    """
    clients = [local([2, 0, 0, 0]), local([0, 1, 0, 0]), local([0, -1, 0, 0])]
    model, metrics = one_round(FedMGDAPlus(epsilon=0.1), *clients)
    mixture = [1 / 3 - 0.1, 1 / 3 + 0.05, 1 / 3 + 0.05]
    weights = [4 / 3 * share / norm for share, norm in zip(mixture, (2, 1, 1), strict=True)]
    assert metrics["client-weight"] == pytest.approx(weights, abs=1e-6)
    np.testing.assert_allclose(flat(model), stepped(clients, weights), atol=1e-6)


def test_in_the_papers_form_a_step_has_the_length_of_the_servers_rate() -> None:
    same = local([3, 0, 4, 0])
    model, _ = one_round(
        FedMGDAPlus(rescale="none", server_learning_rate=0.5, epsilon=1.0), same, same
    )
    np.testing.assert_allclose(flat(MODEL) - flat(model), [0.3, 0, 0.4, 0, 0, 0], atol=1e-6)


def test_the_servers_rate_decays_from_round_to_round() -> None:
    strategy = FedMGDAPlus(rescale="none", decay=0.5)
    models, _ = after_rounds(strategy, dict.fromkeys((1, 2, 3), [local([3, 0, 4, 0])] * 2))
    steps = np.diff([flat(model) for model in models], axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), [1.0, 0.5, 0.25], rtol=1e-5)


def test_the_length_of_an_update_buys_no_influence() -> None:
    small, large = [drawn(0, 1), drawn(1, 1)], [drawn(0, 1, scale=5.0), drawn(1, 1)]
    steps = []
    for clients in (small, large):
        model, _ = one_round(FedMGDAPlus(rescale="none", epsilon=0.3), *clients)
        steps.append(flat(MODEL) - flat(model))
    np.testing.assert_allclose(steps[0], steps[1], atol=1e-6)


def test_a_client_that_did_not_move_counts_nothing() -> None:
    moved = [drawn(0, 1), drawn(1, 1)]
    expected, _ = one_round(FedMGDAPlus(rescale="none"), *moved)
    model, metrics = one_round(FedMGDAPlus(rescale="none"), *moved, local([0] * 4))
    assert metrics["client-weight"][2] == 0.0  # type: ignore[index]
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-6)


def test_where_nobody_moved_the_model_stays() -> None:
    model, metrics = one_round(FedMGDAPlus(), *[local([0] * 4, mean=(0.5, 0))] * 3)
    np.testing.assert_array_equal(flat(model), flat(MODEL))
    np.testing.assert_allclose(model["norm.running_mean"], [0.0, 1.0], atol=1e-6)
    assert metrics["client-weight"] == [0.0] * 3


def test_agreeing_clients_move_as_far_as_in_fedavg() -> None:
    clients = [local([0.5, 0, 0, 0]), local([1.5, 0, 0, 0])]
    expected, _ = one_round(EqualFedAvg(), *clients)
    model, _ = one_round(FedMGDAPlus(), *clients)
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-6)
