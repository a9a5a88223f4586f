"""Records of a reply by name: who the client is, its metrics, the loss of the model it was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, MetricRecordValues, RecordDict

from fedpw_flwr.wire.adjustment import REPORT_KEY

IDENTITY_RECORD, IDENTITY_KEY = "identity", "client-id"
"""ConfigRecord of a reply, and its entry, by which a client names itself for good: an integer.
Flower's node ids change from run to run."""

ANSWERS_KEY = "answers"
"""Entry beside it: true where the client has a function for the question who it is."""

IDENTITY_ACTION = "fedpw_identity"
IDENTITY_QUERY = f"query.{IDENTITY_ACTION}"
"""Type of the message by which the server asks a node which client it is."""

METRICS_RECORD, OTHER_METRICS_RECORD = "metrics", "other-metrics"
"""Records of a reply: numbers, and what Flower's MetricRecord refuses (text, bytes, truth)."""

REPORT_INITIAL_LOSS = "report-initial-loss"
"""Entry of a training message's configuration that asks for the metric `INITIAL_LOSS`: True."""

INITIAL_LOSS = "initial_loss"
"""F_k(w), the loss of the model that arrived over all of the client's training data."""


def identity_record(client_id: int | None) -> RecordDict:
    """Return the records by which a client names itself; none where it has no name."""
    if client_id is None:
        return RecordDict()
    return RecordDict({IDENTITY_RECORD: ConfigRecord({IDENTITY_KEY: client_id})})


def shows_answers(content: RecordDict) -> bool:
    """Return whether a reply shows that its client can be asked who it is."""
    return _identity(content).get(ANSWERS_KEY) is True


def identity_of(content: RecordDict) -> int | None:
    """Return the client id that records state, None if none; ValueError if it can be none."""
    identity = _identity(content).get(IDENTITY_KEY)
    if identity is None:
        return None
    if type(identity) is not int or identity < 0:
        raise ValueError(f"its {IDENTITY_KEY!r} is {identity!r}, not a non-negative integer")
    return identity


def client_of(reply: Message) -> int:
    """Return the client id that a reply states, or its node where it states none."""
    try:
        stated = identity_of(reply.content)
    except ValueError:
        stated = None
    return reply.metadata.src_node_id if stated is None else stated


def _identity(content: RecordDict) -> ConfigRecord:
    return content.config_records.get(IDENTITY_RECORD, ConfigRecord())


def records_of_metrics(metrics: Mapping[str, Any]) -> RecordDict:
    """Sort the metrics of a NumPyClient (numbers, text, bytes, truth values) into records.

    Numbers go into the MetricRecord ``metrics``, FedPW's report and the client id into
    ConfigRecords of their own, the rest into the ConfigRecord ``other-metrics``.
    """
    numbers: dict[str, MetricRecordValues] = {}
    others: dict[str, Any] = {}
    content = RecordDict()
    for key, value in metrics.items():
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if key == REPORT_KEY and isinstance(value, bytes):
            content[REPORT_KEY] = ConfigRecord({REPORT_KEY: value})
        elif key == IDENTITY_KEY:
            content[IDENTITY_RECORD] = ConfigRecord({IDENTITY_KEY: value})
        elif _is_metric(value):
            numbers[key] = value
        else:
            others[key] = value
    content[METRICS_RECORD] = MetricRecord(numbers)
    if others:
        content[OTHER_METRICS_RECORD] = ConfigRecord(others)
    return content


def _is_metric(value: Any) -> bool:
    """Return whether a MetricRecord takes a value: a number, or a list of ints or of floats."""
    if isinstance(value, list):
        return bool(value) and {type(entry) for entry in value} in ({int}, {float})
    return isinstance(value, int | float) and not isinstance(value, bool)
