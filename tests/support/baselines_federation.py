"""Every baseline, and clients of a `ClientsGrid` whose updates are written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedpw_flwr import baselines
from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.wire.records import IDENTITY_QUERY
from support.grid import Client, ClientsGrid, train_round
from support.records import NDArrays, array_record, ndarrays, train_content

MODEL: NDArrays = {
    "body.weight": np.array([[1.0, -2.0], [0.5, 0.25]], dtype=np.float32),
    "body.bias": np.array([0.125, -0.5], dtype=np.float32),
    "norm.running_mean": np.array([0.5, 1.0], dtype=np.float32),
    "norm.running_var": np.array([1.0, 2.0], dtype=np.float32),
    "norm.num_batches_tracked": np.array(10, dtype=np.int64),
}
"""Trained arrays, running statistics and a 0-d counter, as in a model with BatchNorm."""

TRAINED = ("body.weight", "body.bias")

BUILDS: dict[str, Callable[..., ScreenedStrategy]] = {
    "fedavg": baselines.FedAvg,
    "fedavg_equal": baselines.EqualFedAvg,
    "fedprox": lambda **options: baselines.FedProx(proximal_mu=0.01, **options),
    "qfedavg": lambda **options: baselines.QFedAvg(client_learning_rate=0.5, q=0.5, **options),
    "afl": baselines.AFL,
    "term": lambda **options: baselines.TERM(t=0.7, **options),
    "fedmgda_plus": lambda **options: baselines.FedMGDAPlus(decay=0.9, **options),
    "fedheal": lambda **options: baselines.FedHEAL(tau=0.6, **options),
    "fedavgm": baselines.FedAvgM,
    "fedadam": baselines.FedAdam,
}
"""Every strategy, by the name of its configuration."""


@dataclass(frozen=True)
class Local:
    """What one client's training does in a round: Δ = w − w_k, in the model's own shapes."""

    update: Mapping[str, Any]
    loss: float | None = 1.0
    examples: int | None = 10

    def flat(self) -> np.ndarray:
        """Δ over the trained arrays in double precision, computed apart from the package."""
        return np.concatenate([np.ravel(np.float64(self.update[name])) for name in TRAINED])


def local(
    weight: Sequence[float],
    bias: Sequence[float] = (0.0, 0.0),
    mean: Sequence[float] = (0.0, 0.0),
    var: Sequence[float] = (0.0, 0.0),
    batches: int = 0,
    **said: Any,
) -> Local:
    update = {
        "body.weight": np.reshape(np.float32(weight), (2, 2)),
        "body.bias": np.float32(bias),
        "norm.running_mean": np.float32(mean),
        "norm.running_var": np.float32(var),
        "norm.num_batches_tracked": np.int64(-batches),
    }
    return Local(update, **said)


def drawn(node: int, server_round: int, scale: float = 0.1) -> Local:
    """Some update, loss and number of examples, which follow from node and round."""
    rng = np.random.default_rng([node, server_round])
    return local(
        scale * rng.standard_normal(4),
        scale * rng.standard_normal(2),
        scale * rng.standard_normal(2),
        scale * rng.random(2),
        batches=int(rng.integers(1, 5)),
        loss=float(rng.uniform(0.1, 2.0)),
        examples=int(rng.integers(1, 50)),
    )


def client_of(does: Callable[[int, int], Local], identity: int | None = None) -> Client:
    """A client whose training is `does(identity or node, round)`."""

    def answer(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        who = node if identity is None else identity
        if message.metadata.message_type == IDENTITY_QUERY:
            named = RecordDict({"identity": ConfigRecord({"client-id": who})})
            return [Message(named, reply_to=message)]
        if message.metadata.message_type != "train":
            metrics = MetricRecord({"accuracy": 0.5 + 0.01 * (who % 7), "num-examples": 10})
            return [Message(RecordDict({"metrics": metrics}), reply_to=message)]
        now = does(who, int(message.content["config"]["server-round"]))
        start = ndarrays(message.content["arrays"])
        trained = {
            name: (array - np.asarray(now.update[name])).astype(array.dtype)
            for name, array in start.items()
        }
        content = train_content(trained, now.loss, now.examples, identity)
        return [Message(content, reply_to=message)]

    return answer


def grid_of(rounds: Mapping[int, Sequence[Local]] | Sequence[Local]) -> ClientsGrid:
    """Clients 0, 1, ... that do what is listed; by round, or the same in every round."""

    def does(client: int, server_round: int) -> Local:
        now = rounds[server_round] if isinstance(rounds, Mapping) else rounds
        return now[client]

    count = len(next(iter(rounds.values())) if isinstance(rounds, Mapping) else rounds)
    return ClientsGrid({100 + one: client_of(does, one) for one in range(count)})


def one_round(strategy: FlowerFedAvg, *clients: Local) -> tuple[NDArrays, MetricRecord]:
    """The next model and the metrics of one round from MODEL."""
    arrays, metrics = train_round(strategy, grid_of(clients), array_record(MODEL))
    return ndarrays(arrays), metrics


def after_rounds(
    strategy: FlowerFedAvg, rounds: Mapping[int, Sequence[Local]]
) -> tuple[list[NDArrays], list[list[float]]]:
    """The models before and after each round from MODEL, and the weights of each."""
    arrays, models, weights = array_record(MODEL), [MODEL], []
    for server_round in rounds:
        arrays, metrics = train_round(strategy, grid_of(rounds), arrays, server_round)
        models.append(ndarrays(arrays))
        listed = metrics["client-weight"]
        assert isinstance(listed, list)
        weights.append([float(one) for one in listed])
    return models, weights


def flat(model: Mapping[str, np.ndarray]) -> np.ndarray:
    """The trained arrays of a model as one vector in double precision."""
    return np.concatenate([np.ravel(np.float64(model[name])) for name in TRAINED])


def stepped(clients: Sequence[Local], weights: Sequence[float]) -> np.ndarray:
    """w − Σ c_k Δ_k over the trained arrays, in double precision."""
    step = sum(weight * client.flat() for weight, client in zip(weights, clients, strict=True))
    return flat(MODEL) - step


def with_loss(client: Local, loss: float) -> Local:
    return replace(client, loss=loss)
