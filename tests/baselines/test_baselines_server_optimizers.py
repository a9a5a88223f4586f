"""Claims about FedAvgM and FedAdam: Flower's step on what is trained, on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.serverapp import strategy as flower
from support.baselines_federation import (
    MODEL,
    TRAINED,
    client_of,
    drawn,
    flat,
    grid_of,
    local,
)
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays

from fedpw_flwr.baselines import FedAdam, FedAvgM

FLOATS = {name: MODEL[name] for name in TRAINED}

PAIRS: dict[str, tuple[Callable[[], flower.FedAvg], Callable[[], flower.FedAvg]]] = {
    "fedavgm": (
        lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
        lambda: flower.FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    ),
    "fedadam": (lambda: FedAdam(eta=0.05), lambda: flower.FedAdam(eta=0.05)),
}


@pytest.mark.parametrize(("ours", "flowers"), PAIRS.values(), ids=PAIRS)
def test_trained_arrays_move_as_flowers_own_moves_them(
    ours: Callable[[], flower.FedAvg], flowers: Callable[[], flower.FedAvg]
) -> None:
    mine, theirs = ours(), flowers()
    arrays, expected = array_record(MODEL), array_record(FLOATS)
    grid = ClientsGrid({100 + one: client_of(drawn, one) for one in range(4)})
    for server_round in range(1, 5):
        arrays, _ = train_round(mine, grid, arrays, server_round)
        expected, _ = train_round(theirs, grid, expected, server_round)
        np.testing.assert_allclose(
            flat(ndarrays(arrays)), flat(ndarrays(expected)), rtol=1e-4, atol=1e-6
        )


def test_two_steps_of_momentum_worked_out_by_hand() -> None:
    """Δ = 1, then 1: v = 1, then 0.5 + 1; w falls by 0.1·1 and 0.1·1.5."""
    same, strategy = local([1, 0, 0, 0]), FedAvgM(server_learning_rate=0.1, server_momentum=0.5)
    arrays, first = array_record(MODEL), []
    for server_round in (1, 2):
        arrays, _ = train_round(strategy, grid_of([same] * 2), arrays, server_round)
        first.append(float(flat(ndarrays(arrays))[0]))
    assert first == pytest.approx([1 - 0.1, 1 - 0.25])


def test_a_step_of_adam_worked_out_by_hand() -> None:
    """Round 1 of Δ = −1: m = −0.1, v = 0.01, η_t = 0.1 √(1 − 0.99²) / (1 − 0.9²) in Flower's
    counting, and w falls by η_t · 0.1 / (0.1 + τ)."""
    arrays, _ = train_round(FedAdam(), grid_of([local([1, 0, 0, 0])] * 2), array_record(MODEL))
    eta = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    assert flat(ndarrays(arrays))[0] == pytest.approx(1 - eta * 0.1 / (0.1 + 1e-3), abs=1e-6)


@pytest.mark.parametrize(("ours", "flowers"), PAIRS.values(), ids=PAIRS)
def test_statistics_are_the_rounds_average(
    ours: Callable[[], flower.FedAvg], flowers: Callable[[], flower.FedAvg]
) -> None:
    strategy, arrays = ours(), array_record(MODEL)
    same = local([0.1] * 4, mean=(0.25, 0), var=(0.125, 0.25), batches=3)
    for server_round in (1, 2, 3, 4):
        arrays, _ = train_round(strategy, grid_of([same] * 3), arrays, server_round)
    model = ndarrays(arrays)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5 - 4 * 0.25, 1.0], atol=1e-6)
    np.testing.assert_allclose(model["norm.running_var"], [1 - 4 * 0.125, 2 - 4 * 0.25], atol=1e-6)
    assert model["norm.num_batches_tracked"] == 10 + 4 * 3
