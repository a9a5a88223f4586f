"""Models as Flower's records and back, to write messages by hand and to compare what arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

NDArrays = dict[str, np.ndarray]


def array_record(model: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})


def ndarrays(arrays: ArrayRecord) -> NDArrays:
    return {name: array.numpy() for name, array in arrays.items()}


def payloads(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Everything about an ArrayRecord, in its order, to compare bit for bit."""
    return [(name, array.dtype, array.shape, array.data) for name, array in arrays.items()]


def clients_of(metrics: MetricRecord) -> list[int]:
    """Who took part in a round."""
    clients = metrics["fedpw-client-id"]
    assert isinstance(clients, list)
    return [int(client) for client in clients]


def left_out_of(metrics: MetricRecord) -> int:
    """How many of a round's clients failed or were quarantined."""
    failed, quarantined = metrics["fedpw-failed"], metrics["fedpw-quarantined"]
    assert isinstance(failed, int)
    assert isinstance(quarantined, int)
    return failed + quarantined


def train_content(
    model: Mapping[str, np.ndarray],
    loss: float | None = 1.0,
    num_examples: float | None = 10,
    client_id: Any = None,
    **metrics: Any,
) -> RecordDict:
    """What a client's reply to a training message holds; `None` leaves an entry out."""
    values = dict(metrics)
    if loss is not None:
        values["train_loss"] = loss
    if num_examples is not None:
        values["num-examples"] = num_examples
    content = RecordDict({"arrays": array_record(model), "metrics": MetricRecord(values)})
    if client_id is not None:
        content["identity"] = ConfigRecord({"client-id": client_id})
    return content
