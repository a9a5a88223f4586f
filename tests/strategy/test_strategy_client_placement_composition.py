"""Flower's server optimizers step on the aggregate of clients that adjust their own updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adjusting_clients import following, ignoring, memory, planned, play
from federation import MODEL, evaluate_reply
from flwr.app import Message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from support.grid import Client, ClientsGrid
from support.records import array_record, payloads

from fedpw_flwr import FedPW

NODES = [1, 2, 3, 4]
ROUNDS = 4


class ClientSideFedPW(FedPW):
    """FedPW with a placement, for optimizers that pass only FedAvg's arguments on."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(adjustment="client", device="cpu", **arguments)


class PackedFedPW(FedPW):
    """The same with packed uploads."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(adjustment="client", upload="packed", device="cpu", **arguments)


class Adam(FedAdam, ClientSideFedPW):
    """FedPW's aggregate as the gradient of Adam."""


class Adagrad(FedAdagrad, ClientSideFedPW):
    """FedPW's aggregate as the gradient of Adagrad."""


class Yogi(FedYogi, ClientSideFedPW):
    """FedPW's aggregate as the gradient of Yogi."""


class Momentum(FedAvgM, ClientSideFedPW):
    """FedPW's aggregate with server momentum."""

    def __init__(self) -> None:
        super().__init__(server_learning_rate=0.5, server_momentum=0.9)


class PackedAdam(FedAdam, PackedFedPW):
    """Adam on packed uploads."""


OPTIMIZERS = [Adam, Adagrad, Yogi, Momentum, PackedAdam]

UPDATES = {
    node: {
        name: np.array(-1)
        if array.dtype.kind == "i"
        else 0.1 * np.random.default_rng(node).standard_normal(array.shape)
        for name, array in MODEL.items()
    }
    for node in NODES
}
PLAN = {
    (number, node): (UPDATES[node], 0.5 + 0.1 * node)
    for number in range(1, ROUNDS + 1)
    for node in NODES
}
TRAIN = planned(PLAN)


def evaluating(client: Client) -> Client:
    def both(message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return [evaluate_reply(message)]
        return list(client(message))

    return both


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_server_optimizer_on_top_trains_with_masked_and_rescaled_updates(
    optimizer: type[FedPW],
) -> None:
    strategy = optimizer()
    grid = ClientsGrid(dict.fromkeys(NODES, evaluating(following(TRAIN))))
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=ROUNDS)
    for number, metrics in result.train_metrics_clientapp.items():
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-client-id"] == NODES
        rates = metrics["fedpw-drop-rate"]
        assert isinstance(rates, list)
        assert all(rate > 0 for rate in rates) == (number > 1)
    factor = result.train_metrics_clientapp[ROUNDS]["fedpw-amplification"]
    assert isinstance(factor, float)
    assert factor > 1.0
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert not np.array_equal(result.arrays["body.weight"].numpy(), MODEL["body.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_server_optimizer_on_top_sees_no_difference_between_clients(
    optimizer: type[FedPW],
) -> None:
    outcomes = []
    for clients in (
        dict.fromkeys(NODES, following(TRAIN)),
        dict.fromkeys(NODES, ignoring(TRAIN)),
        {node: following(TRAIN) if node % 2 else ignoring(TRAIN) for node in NODES},
    ):
        strategy = optimizer()
        rounds = play(strategy, [clients] * ROUNDS, array_record(MODEL))
        outcomes.append(
            (
                [payloads(each.arrays) for each in rounds],
                strategy.state,
                memory(strategy.method.adjustment_state),
            )
        )
    assert outcomes[1] == outcomes[0]
    assert outcomes[2] == outcomes[0]


def test_optimizer_steps_on_the_aggregate_as_plain_fedpw_gives_it() -> None:
    # FedAvgM with learning rate 1 and no momentum is its aggregate.
    class Plain(FedAvgM, ClientSideFedPW):
        pass

    client = following(TRAIN)
    plain = play(ClientSideFedPW(), [dict.fromkeys(NODES, client)] * ROUNDS, array_record(MODEL))
    stepped = play(
        Plain(server_learning_rate=1.0),
        [dict.fromkeys(NODES, client)] * ROUNDS,
        array_record(MODEL),
    )
    for one, other in zip(plain, stepped, strict=True):
        for name, array in one.model.items():
            np.testing.assert_allclose(other.model[name], array, atol=1e-6, rtol=0)
