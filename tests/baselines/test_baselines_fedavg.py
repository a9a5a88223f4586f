"""Claims about FedAvg in its two weightings, and FedProx."""

from __future__ import annotations

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
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
from support.records import array_record, ndarrays, payloads

from fedpw_flwr.baselines import EqualFedAvg, FedAvg, FedProx


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
    expected, _ = train_round(FlowerFedAvg(), grid_of(clients), array_record(MODEL))
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


def test_nobody_is_asked_where_training_is_switched_off() -> None:
    strategy, grid = FedAvg(fraction_train=0.0), grid_of([drawn(0, 1)] * 3)
    arrays = array_record(MODEL)
    assert strategy.configure_train(1, arrays, ConfigRecord(), grid) == ()
    after, metrics = strategy.aggregate_train(1, [])
    assert after is not None
    assert payloads(after) == payloads(arrays)
    assert metrics is None
