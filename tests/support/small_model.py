"""A small model to train, and what well-behaved clients of a `ClientsGrid` reply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from support.grid import Client
from support.records import NDArrays, ndarrays, train_content

MODEL: NDArrays = {
    "body.weight": np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(6, 4),
    "body.bias": np.linspace(0.0, 0.3, 4, dtype=np.float32),
    "norm.running_mean": np.linspace(0.5, 0.8, 4, dtype=np.float32),
    "norm.num_batches_tracked": np.array(10, dtype=np.int64),
}
"""Two trainable tensors, a buffer and a 0-d counter, as in a model with BatchNorm."""


def trained(model: NDArrays, seed: Sequence[int], scale: float = 0.1) -> NDArrays:
    """A client's model after training: floating tensors moved by noise, counters moved by one."""
    rng = np.random.default_rng(list(seed))
    return {
        name: (array + 1).astype(array.dtype)
        if array.dtype.kind in "iu"
        else (array + scale * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    }


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


def evaluating(client: Client) -> Client:
    """The same client, which can evaluate, too."""

    def both(message: Message) -> Iterable[Message]:
        if message.metadata.message_type == "evaluate":
            return [evaluate_reply(message)]
        return client(message)

    return both


def good_client(message: Message) -> list[Message]:
    return list(evaluating(lambda message: [train_reply(message)])(message))


def stray(reply: Message, node_id: int) -> Message:
    """The same reply, from a node that nobody asked."""
    question = Message(RecordDict(), dst_node_id=node_id, message_type=reply.metadata.message_type)
    return Message(reply.content, reply_to=question)
