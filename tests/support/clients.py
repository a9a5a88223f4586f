"""Real ClientApps behind a `ClientsGrid`, and what they should send.

Every message and reply is written to Flower's wire format and read back: a client gets objects of
its own, as from another machine. `reference_update` says what becomes of an update, in NumPy and
from the formulas alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.serde import message_from_proto, message_to_proto

from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, REQUEST_KEY, AdjustmentRequest, pack_consensus
from support.grid import Client, ClientsGrid
from support.records import NDArrays, array_record
from support.reference import masked
from support.small_model import MODEL, trained

Arrays = list[npt.NDArray[Any]]
AppOf = Callable[[int], ClientApp]

NODES = [11, 12, 13, 14]

FLOATS: NDArrays = {name: array for name, array in MODEL.items() if array.dtype.kind == "f"}
"""The model without its counter: Flower's averaging and clipping cannot take integers."""


def as_list(model: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return [array.copy() for array in model.values()]


def bits(arrays: Arrays) -> list[tuple[Any, ...]]:
    return [(array.shape, array.dtype, array.tobytes()) for array in arrays]


def training_loss(node: int, server_round: int) -> float:
    """As in `federation.train_reply`."""
    return 0.5 + 0.1 * (node % 7) + 0.3 / server_round


class NoisyClient(NumPyClient):
    """Trains by noise and reports a loss, both of which follow from its node and the round."""

    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        server_round = int(config["server-round"])
        model = {str(place): array for place, array in enumerate(parameters)}
        after = trained(model, (self.node, server_round))
        metrics = {"train_loss": training_loss(self.node, server_round)}
        return list(after.values()), 10 + self.node % 5, metrics

    def evaluate(
        self, parameters: Arrays, config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        size = float(sum(np.abs(array).sum() for array in parameters))
        return size / self.node, 10, {"accuracy": 0.5 + 0.01 * (self.node % 7)}


def over_the_wire(message: Message) -> Message:
    return message_from_proto(message_to_proto(message))


def context_of(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def grid_of(app: ClientApp | AppOf) -> ClientsGrid:
    """Nodes that all run one app, or each the one that `app(node)` gives."""

    def client_on(node: int) -> Client:
        own = app if isinstance(app, ClientApp) else app(node)
        context = context_of(node)
        return lambda message: [over_the_wire(own(over_the_wire(message), context))]

    return ClientsGrid({node: client_on(node) for node in NODES})


def message_to(content: RecordDict, kind: str = "train", node: int = NODES[0]) -> Message:
    message = Message(content, dst_node_id=node, message_type=kind)
    message.metadata.__dict__["_message_id"] = f"{kind}-{node}"
    return over_the_wire(message)


def train_message(
    model: Mapping[str, npt.NDArray[Any]] | ArrayRecord,
    config: Mapping[str, Any],
    kind: str = "train",
    node: int = NODES[0],
) -> Message:
    arrays = model if isinstance(model, ArrayRecord) else array_record(model)
    return message_to(
        RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1, **config})}),
        kind,
        node,
    )


def answer(app: ClientApp, message: Message) -> Message:
    """The reply of an app, as it arrives at the server."""
    return over_the_wire(app(message, context_of(message.metadata.dst_node_id)))


def arrays_of(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def metrics_of(message: Message) -> dict[str, Any]:
    return dict(message.content.metric_records["metrics"])


def config_of(message: Message) -> dict[str, Any]:
    return dict(message.content.config_records["config"])


def request_entries(
    rate: float,
    consensus: Mapping[int, tuple[npt.NDArray[np.bool_], float]] | None = None,
    upload: Any = "dense",
    upload_dtype: str = "float32",
    keep_sign: bool = False,
) -> dict[str, bytes]:
    """The entries of a configuration by which FedPW's server asks for an adjustment.

    `consensus` gives membership of C and f by index of the array. What keeps tensors above 0 is no
    part of the formulas in `reference_update`.
    """
    consensus = consensus or {}
    request = AdjustmentRequest(
        rate=rate,
        consensus_round=2 if consensus else None,
        factors={place: factor for place, (_, factor) in sorted(consensus.items())},
        upload=upload,
        upload_dtype=upload_dtype,
        keep_sign=keep_sign,
    )
    entries = {REQUEST_KEY: request.encode()}
    if consensus:
        members = [torch.from_numpy(consensus[place][0]) for place in sorted(consensus)]
        entries[CONSENSUS_KEY] = pack_consensus(members)
    return entries


def reference_update(
    start: npt.NDArray[Any],
    after: npt.NDArray[Any],
    rate: float,
    members: npt.NDArray[np.bool_] | None = None,
    factor: float = 1.0,
) -> tuple[npt.NDArray[Any], float]:
    """Δ̃_k, flat, in the precision in which it is computed, and m_k."""
    precision = np.float64 if start.dtype == np.float64 else np.float32
    update = start.reshape(-1).astype(precision) - after.reshape(-1).astype(precision)
    update, discarded = masked(update, rate)
    if members is not None:
        update[members] *= precision(factor)
    return update, discarded


def reference_sent(start: npt.NDArray[Any], update: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """w − Δ̃_k in the shape and dtype of w."""
    moved = start.reshape(-1).astype(update.dtype) - update
    return np.asarray(moved.astype(start.dtype).reshape(start.shape))


def noisy_train(message: Message, context: Context) -> Message:
    """The train function of a ClientApp that does what `NoisyClient` does."""
    (arrays,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    after, num_examples, metrics = NoisyClient(context.node_id).fit(
        arrays.to_numpy_ndarrays(), dict(config)
    )
    content = RecordDict(
        {
            "arrays": array_record(dict(zip(arrays, after, strict=True))),
            "metrics": MetricRecord({"num-examples": num_examples, **metrics}),
        }
    )
    return Message(content, reply_to=message)


def functions_app(
    mods: Sequence[Mod], train: ClientAppCallable = noisy_train, of_function: bool = False
) -> ClientApp:
    """A ClientApp of functions, with mods around all of them or around its train function only."""
    app = ClientApp(mods=[] if of_function else list(mods))
    app.train(mods=list(mods) if of_function else [])(train)
    return app
