"""Any metrics of the legacy API travel in Flower's new records, each in one that takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.wire.adjustment import REPORT_KEY
from fedpw_flwr.wire.records import (
    IDENTITY_KEY,
    METRICS_RECORD,
    OTHER_METRICS_RECORD,
    records_of_metrics,
)

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBERS = WHOLE | st.floats()
OTHERS = st.booleans() | st.text(max_size=9) | st.binary(max_size=9)
KEYS = st.text(max_size=6).filter(lambda key: key not in (REPORT_KEY, IDENTITY_KEY))


def same(first: Any, second: Any) -> bool:
    """Equal in value and type, NaN included."""
    both_nan = first != first and second != second
    return type(first) is type(second) and (first == second or both_nan)


def inflated(content: RecordDict) -> dict[str, dict[str, Any]]:
    """Every record as the other side of a network reads it."""
    read: dict[str, dict[str, Any]] = {}
    for name, record in content.items():
        assert isinstance(record, MetricRecord | ConfigRecord)
        read[name] = dict(type(record).inflate(record.deflate()))
    return read


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, NUMBERS | OTHERS, max_size=6))
def test_every_metric_arrives_in_one_record_with_its_value_and_type(
    metrics: dict[str, Any],
) -> None:
    records = inflated(records_of_metrics(metrics))
    assert set(records) <= {METRICS_RECORD, OTHER_METRICS_RECORD}
    arrived = {key: value for record in records.values() for key, value in record.items()}
    assert arrived.keys() == metrics.keys()
    assert sum(len(record) for record in records.values()) == len(metrics)
    for key, value in metrics.items():
        assert same(arrived[key], value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        assert (key in records[METRICS_RECORD]) == is_number


@pytest.mark.parametrize(
    ("value", "plain", "record"),
    [
        (np.float16(0.5), 0.5, METRICS_RECORD),
        (np.float32(0.1), float(np.float32(0.1)), METRICS_RECORD),
        (np.int64(2**62), 2**62, METRICS_RECORD),
        (np.uint8(3), 3, METRICS_RECORD),
        (np.array(0.25), 0.25, METRICS_RECORD),
        (np.array(7), 7, METRICS_RECORD),
        ([0.5, 0.25], [0.5, 0.25], METRICS_RECORD),
        ([1, 2], [1, 2], METRICS_RECORD),
        (np.bool_(True), True, OTHER_METRICS_RECORD),
        (np.array(False), False, OTHER_METRICS_RECORD),
        (np.str_("text"), "text", OTHER_METRICS_RECORD),
        (np.bytes_(b"bytes"), b"bytes", OTHER_METRICS_RECORD),
    ],
    ids=repr,
)
def test_numpys_scalars_are_what_they_are_in_python(value: Any, plain: Any, record: str) -> None:
    assert same(inflated(records_of_metrics({"value": value}))[record]["value"], plain)


def test_there_is_one_metric_record_even_without_metrics() -> None:
    content = records_of_metrics({})
    assert list(content) == [METRICS_RECORD]
    assert dict(content.metric_records[METRICS_RECORD]) == {}


@pytest.mark.parametrize("value", [1, 0.5, "text", True])
def test_a_users_own_metric_under_the_reports_key_is_no_report(value: Any) -> None:
    assert REPORT_KEY not in records_of_metrics({REPORT_KEY: value})


@pytest.mark.parametrize("value", [None, {}, object(), np.zeros(2), [None], 1j], ids=type)
def test_what_no_record_takes_is_a_type_error_of_flower(value: Any) -> None:
    with pytest.raises(TypeError):
        records_of_metrics({"value": value})
