"""Claims about AFL: λ_t weights the round, climbs along its losses, and stays on the simplex."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.baselines_federation import (
    MODEL,
    after_rounds,
    client_of,
    flat,
    grid_of,
    local,
    stepped,
    with_loss,
)
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines import AFL
from fedpw_flwr.baselines.afl import project_to_simplex

UPDATES = [local([1, 0, 0, 0]), local([0, 1, 0, 0]), local([0, 0, 1, 0])]


def weights_of_rounds(strategy: AFL, *losses: list[float]) -> list[list[float]]:
    rounds = {
        server_round: [with_loss(one, loss) for one, loss in zip(UPDATES, said, strict=True)]
        for server_round, said in enumerate(losses, start=1)
    }
    return after_rounds(strategy, rounds)[1]


def test_two_rounds_worked_out_by_hand() -> None:
    """Round 1: equal. λ + 0.1 ℓ = 1/3 + (0.1, 0.2, 0.6) is 0.9 too much in sum, 0.3 each; with that
    the first would be 1/3 − 0.2, the second 1/3 − 0.1, the third 1/3 + 0.3: all above 0."""
    weights = weights_of_rounds(AFL(lambda_step=0.1), [1.0, 2.0, 6.0], [1.0, 1.0, 1.0])
    assert weights[0] == pytest.approx([1 / 3] * 3)
    assert weights[1] == pytest.approx([1 / 3 - 0.2, 1 / 3 - 0.1, 1 / 3 + 0.3])


def test_the_update_is_summed_with_the_weights_before_the_ascent() -> None:
    clients = [with_loss(one, loss) for one, loss in zip(UPDATES, (0.0, 0.0, 9.0), strict=True)]
    arrays, _ = train_round(AFL(), grid_of(clients), array_record(MODEL))
    np.testing.assert_allclose(flat(ndarrays(arrays)), stepped(clients, [1 / 3] * 3), rtol=1e-6)


def test_a_client_that_stays_badly_served_takes_over() -> None:
    weights = weights_of_rounds(AFL(lambda_step=0.1), *[[0.1, 0.1, 3.0]] * 5)
    assert [one[2] for one in weights] == sorted(one[2] for one in weights)
    assert weights[-1] == pytest.approx([0.0, 0.0, 1.0])


def test_an_absent_client_keeps_its_weight() -> None:
    """1 is away in round 2; 0 and 2 divide what is theirs anew."""
    strategy, arrays = AFL(lambda_step=0.05), array_record(MODEL)
    losses = {0: 1.0, 1: 2.0, 2: 3.0}
    clients = {
        100 + one: client_of(lambda who, _: with_loss(UPDATES[who], losses[who]), one)
        for one in range(3)
    }
    arrays, _ = train_round(strategy, ClientsGrid(clients), arrays)
    before = dict(strategy.memory)
    present = ClientsGrid({node: clients[node] for node in (100, 102)})
    _, metrics = train_round(strategy, present, arrays, 2)
    after = strategy.memory
    assert after[1] == before[1]
    assert after[0] + after[2] == pytest.approx(before[0] + before[2])
    total = before[0] + before[2]
    shares = [before[0] / total, before[2] / total]
    assert metrics["client-weight"] == pytest.approx(shares)
    # x + 0.05 (1, 3) less 0.1 each: both stay above 0.
    assert [after[0] / total, after[2] / total] == pytest.approx(
        [shares[0] - 0.05, shares[1] + 0.05]
    )


# --- The simplex --------------------------------------------------------------------------------

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


def test_a_newcomer_has_the_average_weight() -> None:
    strategy = AFL()
    strategy.memory = {1: 1.5, 2: 0.5}
    weights, _ = strategy.weigh({}, [ClientResult(client, {}, 1.0) for client in (1, 2, 3)])
    assert weights.mean == pytest.approx((1.5 / 3, 0.5 / 3, 1 / 3))


def test_participants_without_any_weight_count_the_same_and_keep_it() -> None:
    strategy = AFL()
    strategy.memory = {1: 3.0, 2: 0.0, 3: 0.0}
    weights, after = strategy.weigh({}, [ClientResult(2, {}, 0.9), ClientResult(3, {}, 0.1)])
    assert weights.mean == (0.5, 0.5)
    assert after == strategy.memory
