"""What clients report of a round, made averageable, and how many replies were set aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from flwr.app import MetricRecord, RecordDict

from fedpw_flwr.rounds.faults import BadReply, Fate
from fedpw_flwr.rounds.replies import all_finite


def alike_metrics(contents: Sequence[RecordDict], weighted_by_key: str) -> list[RecordDict]:
    """Reduce replies to the metrics they all report, ready for Flower's weighted average.

    Each is left with a MetricRecord of equal keys and finite values.
    """
    records = [next(iter(content.metric_records.items())) for content in contents]
    shapes = [metric_shape(record) for _, record in records]
    shared = dict(frozenset.intersection(*shapes)) if shapes else {}
    alike = []
    for content, (name, record) in zip(contents, records, strict=True):
        kept = MetricRecord({key: record[key] for key in record if key in shared})
        if weighted_by_key not in shared:
            kept[weighted_by_key] = 1
        alike.append(RecordDict({**content, name: kept}))
    return alike


def metric_shape(metrics: MetricRecord) -> frozenset[tuple[str, int]]:
    """Return the names of the finite metrics, each with its length as a list; -1 for a number."""
    return frozenset(
        (key, len(value) if isinstance(value, list) else -1)
        for key, value in metrics.items()
        if all_finite(value)
    )


def reply_counts(bad: Sequence[BadReply], prefix: str = "") -> MetricRecord:
    """Count what was set aside: ``quarantined``, ``failed`` at the client, ``empty`` of data."""
    fates = [reply.fate for reply in bad]
    return MetricRecord({f"{prefix}{fate}": fates.count(fate) for fate in get_args(Fate)})
