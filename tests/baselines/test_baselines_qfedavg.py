"""Claims about q-FedAvg: Flower's numbers on a model of weights alone, sense on any other."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import QFedAvg as FlowerQFedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from support.baselines_federation import (
    MODEL,
    TRAINED,
    drawn,
    flat,
    grid_of,
    local,
    one_round,
    stepped,
)
from support.grid import train_round
from support.records import array_record, ndarrays

from fedpw_flwr.baselines import EqualFedAvg, QFedAvg
from fedpw_flwr.baselines.qfedavg import q_weights

FLOATS = {name: MODEL[name] for name in TRAINED}


def test_a_round_worked_out_by_hand() -> None:
    """q = 1, η = 0.5, so L = 2; F = 2 and 1; ‖w − w_k‖² = 1 and 4.

    h_1 = 1·4·1 + 2·2 = 8, h_2 = 1·4·4 + 2·1 = 18, Σ h = 26; c = L F / Σ h = 4/26, 2/26.
    Statistics: F / Σ F = 2/3, 1/3.
    """
    clients = [
        local([1, 0, 0, 0], loss=2.0, mean=(0.375, 0), batches=3),
        local([0, 0, 2, 0], loss=1.0, mean=(0, 0.75), batches=6),
    ]
    model, metrics = one_round(QFedAvg(client_learning_rate=0.5, q=1.0), *clients)
    assert metrics["client-weight"] == pytest.approx([4 / 26, 2 / 26])
    np.testing.assert_allclose(flat(model), stepped(clients, [4 / 26, 2 / 26]), rtol=1e-6)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5 - 0.25, 1 - 0.25], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 10 + 2 + 2


@pytest.mark.parametrize(("q", "rate"), [(0.0, 0.01), (0.1, 0.5), (5.0, 0.01)])
def test_on_weights_alone_it_gives_what_flowers_gives(q: float, rate: float) -> None:
    clients = [drawn(one, 1) for one in range(4)]
    arrays = array_record(FLOATS)
    flowers = FlowerQFedAvg(client_learning_rate=rate, q=q)
    expected, _ = train_round(flowers, grid_of(clients), arrays)
    found, _ = train_round(QFedAvg(client_learning_rate=rate, q=q), grid_of(clients), arrays)
    for name in TRAINED:
        moved = ndarrays(expected)[name] - FLOATS[name]
        assert np.abs(moved).max() > 0
        np.testing.assert_allclose(
            ndarrays(found)[name], ndarrays(expected)[name], rtol=1e-6, atol=1e-7
        )


def test_flowers_own_fails_on_counters() -> None:
    """Why there is one here: when this fails, Flower's can do it."""
    with pytest.raises(TypeError, match=r"float64.*int64"):
        train_round(FlowerQFedAvg(0.1), grid_of([drawn(0, 1)] * 2), array_record(MODEL))


def test_without_q_it_is_the_equal_average() -> None:
    clients = [drawn(one, 1) for one in range(4)]
    expected, _ = one_round(EqualFedAvg(), *clients)
    model, metrics = one_round(QFedAvg(client_learning_rate=0.1, q=0.0), *clients)
    assert metrics["client-weight"] == pytest.approx([0.25] * 4)
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-6)


def test_rescaled_the_step_is_a_weighted_mean() -> None:
    clients = [local([1, 0, 0, 0], loss=2.0), local([0, 0, 2, 0], loss=1.0)]
    model, metrics = one_round(QFedAvg(client_learning_rate=0.5, q=2.0, rescale="mean"), *clients)
    assert metrics["client-weight"] == pytest.approx([4 / 5, 1 / 5])
    np.testing.assert_allclose(flat(model), stepped(clients, [4 / 5, 1 / 5]), rtol=1e-6)


def test_clients_that_are_alike_take_the_step_that_the_docstring_says() -> None:
    """1 + q L ‖w − w_k‖² / F = 1 + 0.5 · 10 · 4 / 2 = 11."""
    same = local([2, 0, 0, 0], loss=2.0)
    _, metrics = one_round(QFedAvg(client_learning_rate=0.1, q=0.5), same, same)
    assert metrics["client-weight"] == pytest.approx([0.5 / 11] * 2)


figures = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))


@settings(deadline=None)
@given(st.lists(figures, min_size=1, max_size=10), st.floats(0, 20), st.floats(1e-3, 1e4))
def test_weights_are_finite_and_no_longer_than_an_average(
    clients: list[tuple[float, float]], q: float, lipschitz: float
) -> None:
    losses, norms = zip(*clients, strict=True)
    weights = q_weights(losses, norms, q, lipschitz)
    assert min(weights.step) >= 0
    assert sum(weights.step) <= 1 + 1e-9
    assert min(weights.mean) >= 0
    assert sum(weights.mean) == pytest.approx(1.0)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [0.0, 1.7e308], [1e308, 1e308]])
@pytest.mark.parametrize("norms", [[0.0, 0.0], [0.0, 1e32]])
def test_the_largest_and_smallest_losses_leave_numbers(
    losses: list[float], norms: list[float]
) -> None:
    for q in (0.0, 0.1, 5.0):
        weights = q_weights(losses, norms, q, 1e3)
        assert np.isfinite([*weights.step, *weights.mean]).all()
