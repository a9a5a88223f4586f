"""Claims about FedAvg, equally weighted or not, FedProx, and Flower's server optimizers."""

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
    one_round,
    stepped,
)
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, payloads

from fedpw_flwr.baselines import EqualFedAvg, FedAdam, FedAvg, FedAvgM, FedProx


def test_fedavg_weights_by_examples() -> None:
    clients = [
        local([1, 0, 0, 0], mean=(0.5, 0), batches=4, examples=30),
        local([0, 1, 0, 0], mean=(0, 0.25), batches=8, examples=10),
    ]
    model, metrics = one_round(FedAvg(), *clients)
    assert metrics["client-weight"] == [0.75, 0.25]
    np.testing.assert_allclose(flat(model)[:4], [1 - 0.75, -2 - 0.25, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5 - 0.375, 1 - 0.0625], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 10 + 3 + 2


def test_equal_fedavg_looks_at_no_number_of_examples() -> None:
    clients = [local([1, 0, 0, 0], examples=1000), local([0, 1, 0, 0], examples=1)]
    model, metrics = one_round(EqualFedAvg(), *clients)
    assert metrics["client-weight"] == [0.5, 0.5]
    np.testing.assert_allclose(flat(model), stepped(clients, [0.5, 0.5]), rtol=1e-6)


def test_fedavg_gives_what_flowers_gives() -> None:
    clients = [drawn(one, 1) for one in range(4)]
    expected, _ = train_round(flower.FedAvg(), grid_of(clients), array_record(MODEL))
    model, _ = one_round(FedAvg(), *clients)
    for name in (*TRAINED, "norm.running_mean", "norm.running_var"):
        np.testing.assert_allclose(model[name], ndarrays(expected)[name], rtol=1e-5)


def test_fedprox_tells_the_clients_and_averages_as_fedavg() -> None:
    clients = [drawn(one, 1) for one in range(4)]
    grid = grid_of(clients)
    arrays, _ = train_round(FedProx(proximal_mu=0.25), grid, array_record(MODEL))
    assert {message.content["config"]["proximal-mu"] for message in grid.sent} == {0.25}
    expected, _ = train_round(FedAvg(), grid_of(clients), array_record(MODEL))
    assert payloads(arrays) == payloads(expected)
    assert FedProx(proximal_mu=0.25).fingerprint()["proximal_mu"] == 0.25


# --- FedAvgM and FedAdam ------------------------------------------------------------------------

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
