"""What clients report of a round, made averageable, and how many replies were set aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from flwr.app import MetricRecord, RecordDict

from fedpw_flwr.rounds.faults import BadReply, Fate
from fedpw_flwr.rounds.replies import all_finite

__all__ = ["alike_metrics", "reply_counts"]


def alike_metrics(contents: Sequence[RecordDict], weighted_by_key: str) -> list[RecordDict]:
    """Reduce replies to the metrics they all report, ready for Flower's weighted average.

    Returns
    -------
    list[RecordDict]
        The replies with a MetricRecord of equal keys and finite values each.
    """
    records = [next(iter(content.metric_records.items())) for content in contents]
    metrics = [record for _, record in records]
    shared = {key for record in metrics for key in record if _is_shared(key, metrics)}
    weighted = weighted_by_key in shared
    alike = []
    for content, (name, record) in zip(contents, records, strict=True):
        kept = MetricRecord({key: record[key] for key in record if key in shared})
        if not weighted:
            kept[weighted_by_key] = 1
        alike.append(RecordDict({**content, name: kept}))
    return alike


def _is_shared(key: str, metrics: Sequence[MetricRecord]) -> bool:
    lengths = set()
    for record in metrics:
        if key not in record:
            return False
        value = record[key]
        if not all_finite(value):
            return False
        lengths.add(len(value) if isinstance(value, list) else -1)
    return len(lengths) == 1


def reply_counts(bad: Sequence[BadReply], prefix: str = "") -> MetricRecord:
    """Count what was set aside: ``quarantined``, ``failed`` at the client, ``empty`` of data."""
    fates = [reply.fate for reply in bad]
    return MetricRecord({f"{prefix}{fate}": fates.count(fate) for fate in get_args(Fate)})
