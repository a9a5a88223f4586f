"""Claims about FedHEAL: inconsistent entries are dropped, and distance brings weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from baselines_federation import (
    MODEL,
    ClientsGrid,
    Local,
    array_record,
    client_of,
    drawn,
    flat,
    grid_of,
    local,
    ndarrays,
    one_round,
    train_round,
)

from fedpw_flwr.baselines import EqualFedAvg, FedHEAL
from fedpw_flwr.baselines.fedheal import ClientHabits


def after_rounds(
    strategy: FedHEAL, rounds: dict[int, list[Local]]
) -> tuple[list[np.ndarray], list]:
    """The trained arrays after each round, and the weights."""
    arrays, models, weights = array_record(MODEL), [], []
    for server_round in rounds:
        arrays, metrics = train_round(strategy, grid_of(rounds), arrays, server_round)
        models.append(flat(ndarrays(arrays)))
        weights.append(metrics["client-weight"])
    return models, weights


def test_three_rounds_worked_out_by_hand() -> None:
    """One client, τ = 0.6: the first entry falls, falls, rises (1 of 3: dropped); the second rises,
    falls (1 of 2: dropped), falls (2 of 3: kept); the third does not move, falls (1 of 2: dropped),
    falls (2 of 3: kept); the fourth always falls."""
    rounds = {
        1: [local([1, -1, 0, 1])],
        2: [local([1, 1, 1, 1])],
        3: [local([-1, 1, 1, 1])],
    }
    strategy = FedHEAL(tau=0.6, min_train_nodes=1, min_available_nodes=1)
    models, _ = after_rounds(strategy, rounds)
    steps = -np.diff([flat(MODEL), *models], axis=0)[:, :4]
    np.testing.assert_allclose(steps, [[1, -1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 1]], atol=1e-6)


def test_weights_of_two_rounds_worked_out_by_hand() -> None:
    """β = 0.4, d² = 1 and 3: δp = 0.1, 0.3; p = normalise(0.6, 0.8) = 3/7, 4/7.

    Then d² = 3 and 1: δp = 0.6·(0.1, 0.3) + 0.4·(3/4, 1/4) = 0.36, 0.28, and p is to be divided by
    1 + 0.64.
    """
    one, three = local([1, 0, 0, 0]), local([0, 1, 1, 1])
    strategy = FedHEAL(tau=0.0, beta=0.4)
    _, weights = after_rounds(strategy, {1: [one, three], 2: [three, one]})
    assert weights[0] == pytest.approx([3 / 7, 4 / 7])
    assert weights[1] == pytest.approx([(3 / 7 + 0.36) / 1.64, (4 / 7 + 0.28) / 1.64])
    assert strategy.memory.momenta == pytest.approx({0: 0.36, 1: 0.28})


def test_the_distance_is_that_of_what_was_kept() -> None:
    """In round 2 client 1 turns round altogether: all of its update is dropped, d_1 = 0."""
    ahead, back = local([1, 1, 1, 1]), local([-5, -5, -5, -5])
    strategy = FedHEAL(tau=0.6, beta=1.0)
    models, weights = after_rounds(strategy, {1: [ahead, ahead], 2: [ahead, back]})
    assert weights[1] == pytest.approx([0.75, 0.25])  # ½ + 1 and ½ + 0, of 2
    np.testing.assert_allclose(models[0][:4] - models[1][:4], 0.75, atol=1e-6)


def test_nothing_is_dropped_in_the_first_round() -> None:
    clients = [drawn(one, 1) for one in range(4)]
    expected, _ = one_round(EqualFedAvg(), *clients)
    model, _ = one_round(FedHEAL(tau=1.0, beta=0.0), *clients)
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-6)


def test_without_threshold_and_momentum_it_is_equal_fedavg() -> None:
    rounds = {
        server_round: [drawn(one, server_round) for one in range(4)] for server_round in (1, 2, 3)
    }
    models, weights = after_rounds(FedHEAL(tau=0.0, beta=0.0), rounds)
    arrays = array_record(MODEL)
    for server_round, model in zip(rounds, models, strict=True):
        arrays, _ = train_round(EqualFedAvg(), grid_of(rounds), arrays, server_round)
        np.testing.assert_allclose(model, flat(ndarrays(arrays)), rtol=1e-6)
    np.testing.assert_allclose(weights, 0.25)


def test_statistics_and_counters_are_never_dropped() -> None:
    there = local([1, 1, 1, 1], mean=(0.25, 0), batches=2)
    back = local([-1, -1, -1, -1], mean=(-0.25, 0), batches=2)
    strategy, rounds = FedHEAL(tau=1.0), {1: [there] * 2, 2: [back] * 2}
    arrays = array_record(MODEL)
    for server_round in rounds:
        arrays, _ = train_round(strategy, grid_of(rounds), arrays, server_round)
    model = ndarrays(arrays)
    np.testing.assert_allclose(flat(model)[:4], flat(MODEL)[:4] - 1, atol=1e-6)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5, 1.0], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 14


def test_an_absent_client_keeps_weight_momentum_and_counts() -> None:
    strategy = FedHEAL()
    clients = {100 + one: client_of(drawn, one) for one in range(3)}
    arrays, _ = train_round(strategy, ClientsGrid(clients), array_record(MODEL))
    before = strategy.memory
    present = ClientsGrid({node: clients[node] for node in (100, 102)})
    train_round(strategy, present, arrays, 2)
    after = strategy.memory
    assert after.shares.weights[1] == before.shares.weights[1]
    assert after.momenta[1] == before.momenta[1]
    assert after.habits[1] is before.habits[1]
    assert [after.habits[one].rounds for one in range(3)] == [2, 1, 2]
    assert sum(after.shares.weights.values()) == pytest.approx(3.0)


@pytest.mark.parametrize(("rounds", "dtype"), [(255, torch.uint8), (256, torch.int16)])
def test_counts_take_a_larger_type_before_they_overflow(rounds: int, dtype: torch.dtype) -> None:
    start, trained = {"weight": torch.zeros(3)}, {"weight": torch.tensor([-1.0, 1.0, 0.0])}
    habits = ClientHabits()
    for _ in range(rounds):
        habits = habits.after(start, trained)
    assert habits.fell["weight"].dtype == habits.rose["weight"].dtype == dtype
    assert habits.fell["weight"].tolist() == [rounds, 0, 0]
    assert habits.rose["weight"].tolist() == [0, rounds, 0]


@pytest.mark.parametrize("tenths", range(1, 11))
@pytest.mark.parametrize("rounds", [10, 30, 110])
def test_a_threshold_is_met_by_the_share_it_names(tenths: int, rounds: int) -> None:
    """3 of 10 rounds meet τ = 0.3, 2 of 10 do not, whatever 0.3 is in binary."""
    enough = tenths * rounds // 10
    habits = ClientHabits(
        rounds,
        {"weight": torch.tensor([enough, enough - 1, 0, 0], dtype=torch.uint8)},
        {"weight": torch.tensor([0, 0, enough, enough - 1], dtype=torch.uint8)},
    )
    update = torch.tensor([0.1, 0.1, -0.1, -0.1])
    assert habits.kept("weight", update, tenths / 10).tolist() == [True, False, True, False]


@pytest.mark.parametrize("wrong", [{"tau": 1.1}, {"tau": -0.1}, {"beta": 1.5}, {"beta": -1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedHEAL(**wrong)  # type: ignore[arg-type]
