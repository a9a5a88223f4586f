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
        client's identity in the ConfigRecord ``identity``, and whatever a MetricRecord refuses in
        the ConfigRecord ``other-metrics``.
    """
    numbers: dict[str, MetricRecordValues] = {}
    others: dict[str, Any] = {}
    content = RecordDict()
    for key, value in metrics.items():
        number = _number(value)
        if key == REPORT_KEY and isinstance(value, bytes):
            content[REPORT_KEY] = ConfigRecord({REPORT_KEY: value})
        elif key == IDENTITY_KEY:
            content[IDENTITY_RECORD] = ConfigRecord({IDENTITY_KEY: value})
        elif number is None:
            others[key] = value
        else:
            numbers[key] = number
    content[METRICS_RECORD] = MetricRecord(numbers)
    if others:
        content[OTHER_METRICS_RECORD] = ConfigRecord(others)
    return content


def _number(value: Any) -> int | float | None:
    """Return a number as MetricRecord takes it; NumPy's and 0-d arrays are numbers, too."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value
