"""Clients of FedPW(adjustment="client"): they train, and follow the server's request or ignore it.

A train function is what a user wrote: from the message to the reply, with no thought of FedPW.
`following` puts the real `FedPWMod` around it; `ignoring` is the same client without it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, REPORT_KEY, REQUEST_KEY
from support.grid import Client, ClientsGrid
from support.records import NDArrays, ndarrays, train_content
from support.small_model import train_reply

Train = Callable[[Message], Message]
Plan = Mapping[tuple[int, int], tuple[Mapping[str, np.ndarray], float]]
"""By round and node: Δ_k by tensor, and the loss that is reported."""


def ignoring(train: Train = train_reply) -> Client:
    """A client that has never heard of FedPW."""
    return lambda message: [train(message)]


def following(train: Train = train_reply) -> Client:
    """The same client with `fedpw_mod`."""
    mod = FedPWMod("cpu")

    def client(message: Message) -> list[Message]:
        context = Context(1, message.metadata.dst_node_id, {}, RecordDict(), {})
        # As over the network: what the mod takes out of its message stays in the sender's.
        return [mod(copy.deepcopy(message), context, lambda inner, _: train(inner))]

    return client


WHERE: dict[str, tuple[dict[str, Any], Callable[..., Client]]] = {
    "server": ({}, ignoring),
    "client": ({"adjustment": "client"}, following),
    "packed": ({"adjustment": "client", "upload": "packed", "upload_dtype": "float16"}, following),
    "client's update adjusted by the server": ({"adjustment": "client"}, ignoring),
}
"""Options by where updates are adjusted, and the clients for it."""


def failing(message: Message) -> list[Message]:
    """A client that is lost in the middle of the round."""
    raise RuntimeError("the battery is empty")


def silent(message: Message) -> list[Message]:
    """A client that never answers."""
    return []


def altered(client: Client, change: Callable[[RecordDict], None]) -> Client:
    """A client whose reply is changed on the way."""

    def altered_client(message: Message) -> list[Message]:
        [reply] = client(message)
        change(reply.content)
        return [reply]

    return altered_client


def round_of(message: Message) -> int:
    server_round = message.content.config_records["config"]["server-round"]
    assert isinstance(server_round, int)
    return server_round


def model_of(message: Message) -> NDArrays:
    return ndarrays(message.content.array_records["arrays"])


def report_of(content: RecordDict) -> dict[str, Any]:
    """A reply's report, as plain JSON; an invented one where it has none."""
    if REPORT_KEY not in content.config_records:
        arrays = next(iter(content.array_records.values()))
        told: dict[str, Any] = {"version": 1, "rate": 0.0, "consensus-round": None}
        told |= {"packed": [], "norms": [], "discarded": [0.0] * len(arrays), "trainable": None}
        return told
    entries: dict[str, Any] = json.loads(content[REPORT_KEY][REPORT_KEY])
    return entries


def with_report(**changes: Any) -> Callable[[RecordDict], None]:
    """Change entries of a reply's report."""

    def change(content: RecordDict) -> None:
        report = json.dumps({**report_of(content), **changes}).encode()
        content[REPORT_KEY] = ConfigRecord({REPORT_KEY: report})

    return change


def planned(plan: Plan, examples: Mapping[int, int] | None = None) -> Train:
    """Train by a plan: w_k = w − Δ_k, whatever w is; counters move by −Δ_k as well."""

    def train(message: Message) -> Message:
        node = message.metadata.dst_node_id
        server_round = round_of(message)
        updates, loss = plan[server_round, node]
        model = {
            name: (array - updates[name]).astype(array.dtype)
            for name, array in model_of(message).items()
        }
        num_examples = 10 if examples is None else examples[node]
        return Message(train_content(model, loss, num_examples), reply_to=message)

    return train


@dataclass(frozen=True)
class Request:
    """What one client was asked to do; `members` are the indices of C by tensor."""

    rate: float
    consensus_round: int | None
    factors: dict[str, float]
    members: dict[str, list[int]]
    upload: str
    upload_dtype: str


def request_of(message: Message) -> Request:
    config: Any = message.content["config"]
    entries = json.loads(config[REQUEST_KEY])
    bits = config.get(CONSENSUS_KEY, b"")
    sizes = {name: array.size for name, array in model_of(message).items()}
    names = list(sizes)
    factors = {names[int(index)]: factor for index, factor in entries["factors"].items()}
    members, offset = {}, 0
    for name in (name for name in names if name in factors):
        whole = np.frombuffer(bits, np.uint8, (sizes[name] + 7) // 8, offset)
        members[name] = np.flatnonzero(np.unpackbits(whole)[: sizes[name]]).tolist()
        offset += whole.size
    assert offset == len(bits)
    return Request(
        rate=entries["rate"],
        consensus_round=entries["consensus-round"],
        factors=factors,
        members=members,
        upload=entries["upload"],
        upload_dtype=entries["upload-dtype"],
    )


@dataclass(frozen=True)
class Round:
    """A training round as it went."""

    messages: dict[int, Message]
    replies: dict[int, RecordDict]
    arrays: ArrayRecord
    metrics: MetricRecord

    @property
    def model(self) -> NDArrays:
        return ndarrays(self.arrays)

    @property
    def requests(self) -> dict[int, Request]:
        return {node: request_of(message) for node, message in self.messages.items()}

    @property
    def rates(self) -> dict[int, float]:
        return {node: request.rate for node, request in self.requests.items()}

    def reply_arrays(self, node: int) -> NDArrays:
        return ndarrays(next(iter(self.replies[node].array_records.values())))


def play_round(
    strategy: FedPW,
    clients: Mapping[int, Client],
    arrays: ArrayRecord,
    server_round: int,
    arrange: Callable[[list[Message]], Sequence[Message]] = list,
) -> Round:
    """One training round of the clients that are there, as `Strategy.start` runs it."""
    grid = ClientsGrid(clients, arrange=arrange)
    sent = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
    messages = {message.metadata.dst_node_id: message for message in sent}
    answers = list(grid.send_and_receive(sent))
    replies = {
        reply.metadata.src_node_id: reply.content for reply in answers if reply.has_content()
    }
    new_arrays, metrics = strategy.aggregate_train(server_round, answers)
    assert new_arrays is not None
    assert metrics is not None
    return Round(messages, replies, new_arrays, metrics)


def play(
    strategy: FedPW,
    clients_by_round: Sequence[Mapping[int, Client]],
    arrays: ArrayRecord,
    first_round: int = 1,
    arrange: Callable[[list[Message]], Sequence[Message]] = list,
) -> list[Round]:
    """Rounds in a row, each from the model of the one before."""
    rounds: list[Round] = []
    for server_round, clients in enumerate(clients_by_round, start=first_round):
        rounds.append(play_round(strategy, clients, arrays, server_round, arrange))
        arrays = rounds[-1].arrays
    return rounds
