"""A federation inside one process: a Grid over plain Python clients, and small models to train.

Messages, records and the strategy are Flower's own and the real ones; only the network is missing.
A client is a function from the message it was sent to the replies it gives: one, several, or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedpw_flwr import FedPW

Client = Callable[[Message], Iterable[Message]]
NDArrays = dict[str, np.ndarray]


@dataclass
class ClientsGrid(Grid):
    """Deliver each message to its client at once and hand back the replies.

    `arrange` puts a round's replies in the order in which the server shall see them.
    """

    clients: Mapping[int, Client]
    arrange: Callable[[list[Message]], Sequence[Message]] = list
    sent: list[Message] = field(default_factory=list)
    times_asked_for_nodes: int = 0

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self._replies: dict[str, list[Message]] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        self.times_asked_for_nodes += 1
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            # Flower's grids name a message when it is pushed, on the object they were given.
            message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"
            self.sent.append(message)
            self._replies[message.metadata.message_id] = self._answers(message)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message in message_ids for reply in self._replies.pop(message, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.arrange(list(self.pull_messages(self.push_messages(messages))))

    def _answers(self, message: Message) -> list[Message]:
        try:
            return list(self.clients[message.metadata.dst_node_id](message))
        except Exception as error:
            return [Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)]


MODEL: NDArrays = {
    "body.weight": np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(6, 4),
    "body.bias": np.linspace(0.0, 0.3, 4, dtype=np.float32),
    "norm.running_mean": np.linspace(0.5, 0.8, 4, dtype=np.float32),
    "norm.num_batches_tracked": np.array(10, dtype=np.int64),
}
"""Two trainable tensors, a buffer and a 0-d counter, as in a model with BatchNorm."""


def array_record(model: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})


def ndarrays(arrays: ArrayRecord) -> NDArrays:
    return {name: array.numpy() for name, array in arrays.items()}


def payloads(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Everything about an ArrayRecord, in its order, to compare bit for bit."""
    return [(name, array.dtype, array.shape, array.data) for name, array in arrays.items()]


def trained(model: NDArrays, seed: Sequence[int], scale: float = 0.1) -> NDArrays:
    """A client's model after training: floating tensors moved by noise, counters moved by one."""
    rng = np.random.default_rng(list(seed))
    return {
        name: (array + 1).astype(array.dtype)
        if array.dtype.kind in "iu"
        else (array + scale * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    }


def train_content(
    model: Mapping[str, np.ndarray],
    loss: float | None = 1.0,
    num_examples: float | None = 10,
    client_id: Any = None,
    **metrics: Any,
) -> RecordDict:
    values = dict(metrics)
    if loss is not None:
        values["train_loss"] = loss
    if num_examples is not None:
        values["num-examples"] = num_examples
    content = RecordDict({"arrays": array_record(model), "metrics": MetricRecord(values)})
    if client_id is not None:
        content["identity"] = ConfigRecord({"client-id": client_id})
    return content


def train_reply(message: Message, loss: float | None = None, **content: Any) -> Message:
    """The reply of a well-behaved client; everything in it follows from its node and the round."""
    node = message.metadata.dst_node_id
    server_round = int(message.content["config"]["server-round"])
    model = trained(ndarrays(message.content["arrays"]), (node, server_round))
    loss = 0.5 + 0.1 * (node % 7) + 0.3 / server_round if loss is None else loss
    content = {"num_examples": 10 + node % 5, **content}
    return Message(train_content(model, loss, **content), reply_to=message)


def evaluate_reply(message: Message, **metrics: Any) -> Message:
    node = message.metadata.dst_node_id
    values = metrics or {"accuracy": 0.5 + 0.01 * (node % 7), "num-examples": 10}
    return Message(RecordDict({"metrics": MetricRecord(values)}), reply_to=message)


def good_client(message: Message) -> list[Message]:
    if message.metadata.message_type == "train":
        return [train_reply(message)]
    return [evaluate_reply(message)]


def stray(reply: Message, node_id: int) -> Message:
    """The same reply, from a node that nobody asked."""
    question = Message(RecordDict(), dst_node_id=node_id, message_type=reply.metadata.message_type)
    return Message(reply.content, reply_to=question)


def ask(
    strategy: FedPW, grid: ClientsGrid, arrays: ArrayRecord, server_round: int
) -> list[Message]:
    """The first half of a training round: the replies that came back, as the grid arranged them."""
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    return list(grid.send_and_receive(messages))


def train_round(
    strategy: FedPW, grid: ClientsGrid, arrays: ArrayRecord, server_round: int
) -> tuple[ArrayRecord, MetricRecord]:
    """One training round as `Strategy.start` runs it."""
    new_arrays, metrics = strategy.aggregate_train(
        server_round, ask(strategy, grid, arrays, server_round)
    )
    assert new_arrays is not None
    assert metrics is not None
    return new_arrays, metrics


def evaluate_round(strategy: FedPW, grid: ClientsGrid, server_round: int = 1) -> MetricRecord:
    messages = strategy.configure_evaluate(server_round, array_record(MODEL), ConfigRecord(), grid)
    metrics = strategy.aggregate_evaluate(server_round, grid.send_and_receive(messages))
    assert metrics is not None
    return metrics
