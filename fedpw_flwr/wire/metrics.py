"""Metrics of a client, sorted into the records of Flower's Message API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, MetricRecordValues, RecordDict

from fedpw_flwr.wire.adjustment import REPORT_KEY
from fedpw_flwr.wire.identity import IDENTITY_KEY, IDENTITY_RECORD

__all__ = ["METRICS_RECORD", "OTHER_METRICS_RECORD", "records_of_metrics"]

METRICS_RECORD, OTHER_METRICS_RECORD = "metrics", "other-metrics"
"""Records of a reply: numbers, and what Flower's MetricRecord refuses (text, bytes, truth)."""


def records_of_metrics(metrics: Mapping[str, Any]) -> RecordDict:
    """Sort the metrics of a NumPyClient into the records of a reply.

    Parameters
    ----------
    metrics : Mapping[str, Any]
        Any metrics of the legacy API: numbers, text, bytes and truth values.

    Returns
    -------
    RecordDict
        Numbers in the MetricRecord ``metrics``, FedPW's report in a ConfigRecord of its own, the
        client's identity (an integer) in the ConfigRecord ``identity``, and whatever a MetricRecord
        refuses in the ConfigRecord ``other-metrics``.
    """
    numbers: dict[str, MetricRecordValues] = {}
    others: dict[str, Any] = {}
    content = RecordDict()
    for key, given in metrics.items():
        value = _of_python(given)
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


def _of_python(value: Any) -> Any:
    """Turn NumPy's scalars and 0-d arrays, which no record takes, into Python's numbers."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def _is_metric(value: Any) -> bool:
    """Return whether a MetricRecord takes a value: a number, or a list of ints or of floats."""
    if isinstance(value, list):
        return bool(value) and {type(entry) for entry in value} in ({int}, {float})
    return isinstance(value, int | float) and not isinstance(value, bool)
