"""Flower's server optimizers and privacy wrappers work on top of FedPW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pytest
from federation import MODEL, evaluate_reply
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedYogi,
)
from support.grid import ClientsGrid
from support.records import array_record, ndarrays, payloads, train_content

from fedpw_flwr import FedPW

NODES = [1, 2, 3, 4]
FLOATS = {name: array for name, array in MODEL.items() if array.dtype.kind == "f"}


class FedPWAdam(FedAdam, FedPW):
    """FedPW's aggregate as the gradient of Adam."""


class FedPWAdagrad(FedAdagrad, FedPW):
    """FedPW's aggregate as the gradient of Adagrad."""


class FedPWYogi(FedYogi, FedPW):
    """FedPW's aggregate as the gradient of Yogi."""


class FedPWMomentum(FedAvgM, FedPW):
    """FedPW's aggregate with server momentum."""

    def __init__(self) -> None:
        super().__init__(server_learning_rate=0.5, server_momentum=0.9)


OPTIMIZERS = [FedPWAdam, FedPWAdagrad, FedPWYogi, FedPWMomentum]


def torch_client(message: Message) -> list[Message]:
    """As every PyTorch client: what arrives is loaded into the model's own dtypes, then trained."""
    if message.metadata.message_type == "evaluate":
        return [evaluate_reply(message)]
    sent = ndarrays(message.content["arrays"])
    loaded = {name: array.astype(MODEL[name].dtype) for name, array in sent.items()}
    rng = np.random.default_rng(message.metadata.dst_node_id)
    model = {
        name: (array + (1 if array.dtype.kind == "i" else 0.1 * rng.random(array.shape))).astype(
            array.dtype
        )
        for name, array in loaded.items()
    }
    loss = 0.3 * message.metadata.dst_node_id
    return [Message(train_content(model, loss), reply_to=message)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_server_optimizer_on_top_runs_a_round(optimizer: type[FedPW]) -> None:
    strategy = optimizer()
    assert isinstance(strategy, FedPW)
    grid = ClientsGrid(dict.fromkeys(NODES, torch_client))
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    assert result.train_metrics_clientapp[1]["fedpw-client-id"] == NODES
    assert list(result.arrays) == list(MODEL)
    model = ndarrays(result.arrays)
    assert all(np.isfinite(array).all() for array in model.values())
    assert not np.array_equal(model["body.weight"], MODEL["body.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [FLOATS, MODEL], ids=["floats only", "with a counter"])
def test_server_optimizer_on_top_keeps_training_in_later_rounds(
    optimizer: type[FedPW], model: dict[str, np.ndarray]
) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, torch_client))
    result = optimizer().start(grid=grid, initial_arrays=array_record(model), num_rounds=3)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-client-id"] == NODES


def test_round_without_usable_replies_leaves_the_initial_arrays_whole_under_momentum() -> None:
    def client(message: Message) -> list[Message]:
        raise RuntimeError("no data")

    initial = array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    FedPWMomentum().start(grid=grid, initial_arrays=initial, num_rounds=1)
    assert payloads(initial) == payloads(array_record(MODEL))


KEY = np.array([2**64 - 1, 2**53 + 1], dtype=np.uint64)


def client_with_a_key(message: Message) -> list[Message]:
    """A client that lets a key be, and whose running variance falls close to 0."""
    if message.metadata.message_type == "evaluate":
        return [evaluate_reply(message)]
    node = message.metadata.dst_node_id
    sent = ndarrays(message.content["arrays"])
    rng = np.random.default_rng(node)
    model = {
        "weight": (sent["weight"] + 0.1 * rng.random(5)).astype(np.float32),
        "bn.running_var": np.full(3, 1e-4 * node, dtype=np.float32),
        "key": sent["key"],
    }
    return [Message(train_content(model, 0.3 * node), reply_to=message)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_server_optimizer_steps_on_what_is_trained_alone(optimizer: type[FedPW]) -> None:
    model = {
        "weight": np.zeros(5, np.float32),
        "bn.running_var": np.ones(3, np.float32),
        "key": KEY,
    }
    grid = ClientsGrid(dict.fromkeys(NODES, client_with_a_key))
    result = optimizer().start(grid=grid, initial_arrays=array_record(model), num_rounds=6)
    arrays = ndarrays(result.arrays)
    assert arrays["key"].dtype == np.uint64
    assert arrays["key"].tolist() == KEY.tolist()
    assert (arrays["bn.running_var"] > 0).all()
    assert arrays["bn.running_var"].max() < 1e-3
    assert arrays["weight"].dtype == np.float32
    assert (arrays["weight"] != 0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_server_optimizer_goes_on_without_the_arrays_that_clients_keep(
    optimizer: type[FedPW],
) -> None:
    def keeps_its_head(message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return [evaluate_reply(message)]
        node = message.metadata.dst_node_id
        body = ndarrays(message.content["arrays"])["body"]
        trained = (body + 0.1 * node).astype(np.float32)
        return [Message(train_content({"body": trained}, 0.3 * node), reply_to=message)]

    model = {"head": np.ones(2, np.float32), "body": np.zeros(4, np.float32)}
    grid = ClientsGrid(dict.fromkeys(NODES, keeps_its_head))
    result = optimizer().start(grid=grid, initial_arrays=array_record(model), num_rounds=3)
    assert list(result.arrays) == ["body"]
    assert (ndarrays(result.arrays)["body"] > 0).all()


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

    model = {
        "weight": np.zeros(5, np.float32),
        "bn.running_var": np.ones(3, np.float32),
        "key": KEY,
    }
    grid = ClientsGrid(dict.fromkeys(NODES, client_with_a_key))
    result = Recalibrated().start(grid=grid, initial_arrays=array_record(model), num_rounds=2)
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

    grid = ClientsGrid(dict.fromkeys(NODES, torch_client))
    Both().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    assert called == ["filters"]


def test_a_subclass_without_an_optimizer_keeps_its_own_attributes() -> None:
    class Weighs(FedPW):
        current_weights: ClassVar = [0.25] * 4
        current_arrays = 0.5

    strategy = Weighs()
    grid = ClientsGrid(dict.fromkeys(NODES, torch_client))
    strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    assert strategy.current_weights == [0.25] * 4
    assert strategy.current_arrays == 0.5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_lost_round_moves_nothing_and_a_private_head_may_leave_after_it(
    optimizer: type[FedPW],
) -> None:
    def loses_some_rounds(message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return [evaluate_reply(message)]
        if message.content["config"]["server-round"] in (1, 3):
            raise RuntimeError("the power is out")
        node = message.metadata.dst_node_id
        body = ndarrays(message.content["arrays"])["body"]
        trained = (body + 0.1 * node).astype(np.float32)
        return [Message(train_content({"body": trained}, 0.3 * node), reply_to=message)]

    model = {"head": np.ones(2, np.float32), "body": np.zeros(4, np.float32)}
    seen: dict[int, np.ndarray] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        seen[server_round] = ndarrays(arrays)["body"]
        return None

    grid = ClientsGrid(dict.fromkeys(NODES, loses_some_rounds))
    optimizer().start(
        grid=grid, initial_arrays=array_record(model), num_rounds=4, evaluate_fn=evaluate
    )
    assert seen[1].tolist() == seen[0].tolist()
    assert seen[3].tolist() == seen[2].tolist()
    assert (seen[2] > seen[1]).all()
    assert (seen[4] > seen[3]).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_of_truths_and_variances_without_a_name_pass_an_optimizer(
    optimizer: type[FedPW],
) -> None:
    mask = np.array([True, False, True])

    def halves(message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return [evaluate_reply(message)]
        node = message.metadata.dst_node_id
        weight, variance, same = (a.numpy() for a in message.content["arrays"].values())
        model = {"0": weight + np.float32(0.1 * node), "1": variance / 2, "2": same}
        return [Message(train_content(model, 0.3 * node), reply_to=message)]

    model = {"0": np.zeros(5, np.float32), "1": np.ones(3, np.float32), "2": mask}
    grid = ClientsGrid(dict.fromkeys(NODES, halves))
    result = optimizer().start(grid=grid, initial_arrays=array_record(model), num_rounds=8)
    arrays = ndarrays(result.arrays)
    assert arrays["2"].tolist() == mask.tolist()
    assert (arrays["1"] >= 0).all()
