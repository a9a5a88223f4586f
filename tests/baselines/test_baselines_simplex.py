"""Claims about the simplex: the nearest point of it, and weights that stay with who has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.baselines.simplex import ClientShares, project_to_simplex

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("values", "projection"),
    [
        ([0.2, 0.8], [0.2, 0.8]),  # on it already
        ([1.0, 1.0], [0.5, 0.5]),
        ([0.6, 0.9], [0.35, 0.65]),  # 0.25 off each
        ([0.0, 3.0], [0.0, 1.0]),
        ([0.5, 0.7, -4.0], [0.4, 0.6, 0.0]),
        ([7.0], [1.0]),
    ],
)
def test_projections_worked_out_by_hand(values: list[float], projection: list[float]) -> None:
    assert project_to_simplex(values) == pytest.approx(projection, abs=1e-15)


@settings(deadline=None)
@given(numbers)
def test_a_projection_is_on_the_simplex(values: list[float]) -> None:
    projected = project_to_simplex(values)
    assert min(projected) >= 0
    assert sum(projected) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_no_point_of_the_simplex_is_nearer(values: list[float], seed: int) -> None:
    others = np.random.default_rng(seed).dirichlet(np.ones(len(values)), size=50)
    nearest = np.linalg.norm(np.array(values) - project_to_simplex(values))
    assert nearest <= np.linalg.norm(others - values, axis=1).min() + 1e-9


def test_everybody_begins_with_the_same_share() -> None:
    assert ClientShares().of([4, 7]) == (0.5, 0.5)


def test_absent_clients_keep_their_weight() -> None:
    shares = ClientShares().moved([1, 2, 3], [0.5, 0.3, 0.2])
    later = shares.moved([2, 3], [0.9, 0.1])
    assert later.weights[1] == shares.weights[1] == 1.5
    assert later.weights[2] + later.weights[3] == pytest.approx(1.5)
    assert later.of([2, 3]) == pytest.approx((0.9, 0.1))


def test_a_newcomer_has_the_average_weight() -> None:
    shares = ClientShares().moved([1, 2], [0.75, 0.25])
    assert shares.of([1, 2, 3]) == pytest.approx((1.5 / 3, 0.5 / 3, 1 / 3))


def test_participants_without_any_weight_count_the_same_and_keep_it() -> None:
    shares = ClientShares().moved([1, 2, 3], [1.0, 0.0, 0.0])
    assert shares.of([2, 3]) == (0.5, 0.5)
    assert shares.moved([2, 3], [0.9, 0.1]).weights == shares.weights


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 50), st.floats(0, 10), max_size=9))
def test_weights_survive_saving(weights: dict[int, float]) -> None:
    shares = ClientShares(weights)
    assert ClientShares.from_dict(shares.to_dict()) == shares
