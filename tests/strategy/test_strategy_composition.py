"""Flower's server optimizers, and subclasses that override something, work on top of FedPW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.server import strategy as legacy_strategies
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from support.adjusting_clients import following, ignoring, play
from support.federation import LEGACY, MESSAGE, Federation, Run, parameters_of
from support.grid import Client, ClientsGrid
from support.legacy_federation import with_server_round
from support.records import NDArrays, array_record, ndarrays, payloads, train_content
from support.small_model import MODEL, evaluating

from fedpw_flwr import FedPW, legacy

NODES = [1, 2, 3, 4]


class ClientSideFedPW(FedPW):
    """FedPW with a placement, for optimizers that pass only FedAvg's arguments on."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(adjustment="client", device="cpu", **arguments)


class PackedFedPW(FedPW):
    """The same with packed uploads."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(adjustment="client", upload="packed", device="cpu", **arguments)


class FedPWAdam(FedAdam, FedPW):
    """FedPW's aggregate as the gradient of Adam."""


class Momentum(FedAvgM):
    """Server momentum that keeps much."""

    def __init__(self) -> None:
        super().__init__(server_learning_rate=0.5, server_momentum=0.9)


def on_top(flowers: type, ours: type) -> Any:
    return type(f"{flowers.__name__}{ours.__name__}", (flowers, ours), {})


OPTIMIZERS = [FedPWAdam, *(on_top(kind, FedPW) for kind in (FedAdagrad, FedYogi, Momentum))]
OF_LEGACY = [
    on_top(kind, legacy.FedPW)
    for kind in (legacy_strategies.FedAdam, legacy_strategies.FedAdagrad, legacy_strategies.FedYogi)
]
ON_TOP = [
    *((MESSAGE, optimizer) for optimizer in OPTIMIZERS),
    *((LEGACY, optimizer) for optimizer in OF_LEGACY),
]
BY_CLIENTS = [on_top(Momentum, ClientSideFedPW), on_top(FedYogi, PackedFedPW)]


def torch_client(message: Message) -> Message:
    """As every PyTorch client, which trains in the model's own dtypes: it gets them."""
    node, sent = message.metadata.dst_node_id, ndarrays(message.content["arrays"])
    rng = np.random.default_rng(node)
    model = {}
    for name, array in sent.items():
        assert array.dtype == MODEL[name].dtype
        step = 1 if array.dtype.kind == "i" else 0.1 * rng.random(array.shape)
        model[name] = (array + step).astype(array.dtype)
    return Message(train_content(model, 0.3 * node), reply_to=message)


def start(strategy: FedPW, client: Client, model: NDArrays, num_rounds: int, **options: Any) -> Any:
    grid = ClientsGrid(dict.fromkeys(NODES, evaluating(client)))
    return strategy.start(grid, array_record(model), num_rounds=num_rounds, **options)


def run(api: Federation, optimizer: Any, client: Client, model: NDArrays, rounds: int) -> Run:
    """Play rounds under either API."""
    clients, arrays = dict.fromkeys(NODES, evaluating(client)), array_record(model)
    if api is MESSAGE:
        return api.run(optimizer(), clients, rounds, arrays)
    initial = parameters_of(arrays)
    strategy = optimizer(initial_parameters=initial, on_fit_config_fn=with_server_round)
    # Flower's optimizers pass on no options but their own.
    strategy.array_names = tuple(model)
    return api.run(strategy, clients, rounds, arrays)


@pytest.mark.parametrize(
    ("api", "optimizer"), [*ON_TOP, *((MESSAGE, optimizer) for optimizer in BY_CLIENTS)]
)
def test_server_optimizer_on_top_trains_every_round(api: Federation, optimizer: Any) -> None:
    result = run(api, optimizer, following(torch_client), MODEL, 4)
    for metrics in result.train.values():
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-client-id"] == NODES
    assert all(rate > 0 for rate in metrics["fedpw-drop-rate"])
    assert metrics["fedpw-amplification"] > 1.0
    model = ndarrays(result.arrays)
    assert list(model) == list(MODEL)
    assert all(np.isfinite(array).all() for array in model.values())
    assert not np.array_equal(model["body.weight"], MODEL["body.weight"])


def test_optimizer_steps_on_the_aggregate_as_plain_fedpw_gives_it() -> None:
    # FedAvgM with learning rate 1 and no momentum is its aggregate.
    class Plain(FedAvgM, ClientSideFedPW):
        pass

    clients = [dict.fromkeys(NODES, following(torch_client))] * 4
    plain = play(ClientSideFedPW(), clients, array_record(MODEL))
    stepped = play(Plain(server_learning_rate=1.0), clients, array_record(MODEL))
    for one, other in zip(plain, stepped, strict=True):
        for name, array in one.model.items():
            np.testing.assert_allclose(other.model[name], array, atol=1e-6, rtol=0)


KEY = np.array([2**64 - 1, 2**53 + 1], dtype=np.uint64)
WITH_A_KEY: NDArrays = {
    "weight": np.zeros(5, np.float32),
    "bn.running_var": np.ones(3, np.float32),
    "key": KEY,
}


def client_with_a_key(message: Message) -> list[Message]:
    """A client that lets a key be, and whose running variance falls close to 0."""
    node = message.metadata.dst_node_id
    sent = ndarrays(message.content["arrays"])
    rng = np.random.default_rng(node)
    model = {
        "weight": (sent["weight"] + 0.1 * rng.random(5)).astype(np.float32),
        "bn.running_var": np.full(3, 1e-4 * node, dtype=np.float32),
        "key": sent["key"],
    }
    return [Message(train_content(model, 0.3 * node), reply_to=message)]


@pytest.mark.parametrize(("api", "optimizer"), ON_TOP)
def test_a_server_optimizer_steps_on_what_is_trained_alone(api: Federation, optimizer: Any) -> None:
    arrays = ndarrays(run(api, optimizer, client_with_a_key, WITH_A_KEY, 6).arrays)
    assert arrays["key"].dtype == np.uint64
    assert arrays["key"].tolist() == KEY.tolist()
    assert (arrays["bn.running_var"] > 0).all()
    assert arrays["bn.running_var"].max() < 1e-3
    assert arrays["weight"].dtype == np.float32
    assert (arrays["weight"] != 0).all()


def test_an_override_sees_the_whole_model_and_what_it_does_stays() -> None:
    class Recalibrated(FedPWAdam):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            assert arrays["key"].numpy().tolist() == KEY.tolist()
            arrays["bn.running_var"] = Array(np.full(3, 7.0, np.float32))
            return arrays, metrics

    result = start(Recalibrated(), client_with_a_key, WITH_A_KEY, 2)
    assert ndarrays(result.arrays)["bn.running_var"].tolist() == [7.0] * 3


def test_classes_on_top_of_each_other_are_called_in_pythons_order() -> None:
    called: list[str] = []

    class Filters(FedPWAdam):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            called.append("filters")
            return super().aggregate_train(server_round, replies)

    class Logs(FedPWAdam):
        pass

    class Both(Logs, Filters):
        pass

    start(Both(), ignoring(torch_client), MODEL, 1)
    assert called == ["filters"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_lost_round_moves_nothing_and_a_private_head_may_leave_after_it(
    optimizer: type[FedPW],
) -> None:
    def loses_some_rounds(message: Message) -> list[Message]:
        if message.content["config"]["server-round"] in (1, 3):
            raise RuntimeError("the power is out")
        node = message.metadata.dst_node_id
        body = ndarrays(message.content["arrays"])["body"]
        trained = (body + 0.1 * node).astype(np.float32)
        return [Message(train_content({"body": trained}, 0.3 * node), reply_to=message)]

    model = {"head": np.ones(2, np.float32), "body": np.zeros(4, np.float32)}
    initial, seen = array_record(model), {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        seen[server_round] = ndarrays(arrays)["body"]

    grid = ClientsGrid(dict.fromkeys(NODES, evaluating(loses_some_rounds)))
    result = optimizer().start(grid, initial, num_rounds=4, evaluate_fn=evaluate)
    assert seen[1].tolist() == seen[0].tolist()
    assert seen[3].tolist() == seen[2].tolist()
    assert (seen[2] > seen[1]).all()
    assert (seen[4] > seen[3]).all()
    assert list(result.arrays) == ["body"]
    assert payloads(initial) == payloads(array_record(model))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_of_truths_and_variances_without_a_name_pass_an_optimizer(
    optimizer: type[FedPW],
) -> None:
    mask = np.array([True, False, True])

    def halves(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        weight, variance, same = (a.numpy() for a in message.content["arrays"].values())
        model = {"0": weight + np.float32(0.1 * node), "1": variance / 2, "2": same}
        return [Message(train_content(model, 0.3 * node), reply_to=message)]

    model = {"0": np.zeros(5, np.float32), "1": np.ones(3, np.float32), "2": mask}
    arrays = ndarrays(start(optimizer(), halves, model, 8).arrays)
    assert arrays["2"].tolist() == mask.tolist()
    assert (arrays["1"] >= 0).all()
