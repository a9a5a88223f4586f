"""Claims about TERM: n_k exp(t ℓ_k), however large the exponent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.baselines_federation import drawn, flat, local, one_round, stepped

from fedpw_flwr.baselines import TERM, FedAvg
from fedpw_flwr.baselines.term import tilted_weights

losses = st.lists(st.floats(0, 50), min_size=1, max_size=12)


def test_weights_are_those_worked_out_by_hand() -> None:
    """n = 30 and 10, ℓ = 1 and 2, t = 0.5: 30 e^0.5 = 49.4616 and 10 e = 27.1828 of 76.6445."""
    clients = [local([1, 0, 0, 2], loss=1.0, examples=30), local([0, 1, 0, 0], examples=10, loss=2)]
    model, metrics = one_round(TERM(t=0.5), *clients)
    weights = [49.4616 / 76.6445, 27.1828 / 76.6445]
    assert metrics["client-weight"] == pytest.approx(weights, abs=1e-5)
    np.testing.assert_allclose(flat(model), stepped(clients, weights), atol=1e-5)


def test_without_tilt_it_is_fedavg() -> None:
    clients = [drawn(one, 1) for one in range(4)]
    expected, by_examples = one_round(FedAvg(), *clients)
    model, metrics = one_round(TERM(t=0.0), *clients)
    assert metrics["client-weight"] == pytest.approx(by_examples["client-weight"])
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-6)


@pytest.mark.parametrize(("t", "winner"), [(1e6, 2), (-1e6, 0), (1e308, 2)])
def test_at_the_ends_only_the_largest_or_the_smallest_loss_counts(t: float, winner: int) -> None:
    weights = tilted_weights([0.2, 0.3, 0.5], [1.0, 3.0, 700.0], t)
    assert weights == tuple(float(place == winner) for place in range(3))


def test_a_client_without_examples_counts_nothing_however_large_its_loss() -> None:
    assert tilted_weights([0.5, 0.0, 0.5], [1.0, 1e300, 1.0], 10.0) == (0.5, 0.0, 0.5)


@settings(deadline=None)
@given(losses, st.floats(-3, 3))
def test_weights_are_on_the_simplex_and_follow_the_formula(values: list[float], t: float) -> None:
    shares = [1.0 / len(values)] * len(values)
    weights = tilted_weights(shares, values, t)
    plain = [math.exp(t * value) for value in values]
    assert weights == pytest.approx([one / sum(plain) for one in plain], rel=1e-9, abs=1e-12)
