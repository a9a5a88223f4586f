"""What came back from a node, and what one reply must be before anything is computed with it.

Each reply is read here alone, against the message that it answers and the global model. What does
not pass raises a `Fault` with a reason a person can act on.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, MetricRecordValues, RecordDict
from torch import Tensor

from fedpw_flwr.algorithm import AppliedAdjustment, ClientResult
from fedpw_flwr.rounds.faults import Fault, Kind, Project
from fedpw_flwr.wire.adjustment import REPORT_KEY, AdjustmentReport, AdjustmentRequest
from fedpw_flwr.wire.arrays import ArrayTensors, PackedTensors
from fedpw_flwr.wire.records import OTHER_METRICS_RECORD, identity_of

_WORDS = {str: "a text", bytes: "bytes", bool: "a truth value"}
"""What a loss may be that no MetricRecord takes; anything else is a list."""

LARGEST_NORM = 1e16
"""Tensors of a larger Euclidean norm are refused: their inner products overflow float32."""


@dataclass(frozen=True)
class Answer:
    """What came back from one node, whichever of Flower's APIs carried it.

    `content` is None where the client failed, and `error` says why. `late` is True of what answers
    a message of an earlier round.
    """

    node_id: int
    content: RecordDict | None
    error: str = ""
    late: bool = False


def answers_of_messages(replies: Iterable[Message], asked: Sequence[Message]) -> list[Answer]:
    """Turn the replies of a round into answers to the messages that were `asked`.

    The grid gave these their ids when it sent them. They tell which node was lost: Flower reports
    its error as node 1's.
    """
    nodes = {
        message.metadata.message_id: message.metadata.dst_node_id
        for message in asked
        if message.metadata.message_id
    }
    answers = []
    for message in replies:
        metadata = message.metadata
        if message.has_error():
            node_id = nodes.get(metadata.reply_to_message_id, metadata.src_node_id)
            reason = f"error {message.error.code}: {message.error.reason}"
            answers.append(Answer(node_id, None, reason))
        else:
            late = bool(nodes) and metadata.reply_to_message_id not in nodes
            answers.append(Answer(metadata.src_node_id, message.content, late=late))
    return answers


@dataclass(frozen=True)
class TrainReply:
    """A training reply that passed, and what the algorithm needs of it.

    `trainable` are the indices of the trainable arrays, where the client says it was told.
    """

    node_id: int
    result: ClientResult
    content: RecordDict
    trainable: tuple[int, ...] | None = None

    @property
    def client(self) -> int:
        """Return the client id."""
        return self.result.client


@dataclass(frozen=True)
class EvaluateReply:
    """An evaluation reply that passed."""

    node_id: int
    client: int
    content: RecordDict
    loss: float | None = None


@dataclass(frozen=True)
class AskedRound:
    """A round of training as it was asked for: what its replies are held against.

    `asked` has the nodes that were asked to train, and what each was to do to its update. A reply
    matches the names, shapes and dtypes of `model`. `is_first` is True where no round was
    aggregated before: what all its replies share is the project's, and which arrays the clients
    return is settled in it.
    """

    server_round: int
    asked: Mapping[int, AdjustmentRequest | None]
    model: Mapping[str, Tensor]
    project: Project
    is_first: bool


def read_train_reply(
    node_id: int,
    content: RecordDict,
    metrics: MetricRecord,
    asked: AskedRound,
    owners: Mapping[int, int],
) -> TrainReply:
    """Read a training reply; what it lacks of the arrays is looked at later in a first round."""
    stated = identity_of(content)
    if stated is not None and stated != node_id and owners.get(stated) == stated:
        raise Fault(f"it says it is client {stated}, which is the id of another node")
    examples_key = asked.project.examples_key
    loss = needed_loss(content, metrics, asked.project)
    tensors, report = _checked_tensors(content, asked, asked.asked[node_id])
    result = ClientResult(
        client=node_id if stated is None else stated,
        tensors=tensors,
        loss=loss,
        num_examples=non_negative_metric(metrics, examples_key)
        if examples_key in metrics
        else None,
        applied=None if report is None else _applied(report, _in_order(asked.model, tensors)),
    )
    return TrainReply(node_id, result, content, None if report is None else report.trainable)


def only_metric_record(content: RecordDict) -> MetricRecord:
    """Return the one MetricRecord that a reply must have."""
    records = list(content.metric_records.values())
    if len(records) != 1:
        reason = f"it holds {len(records)} MetricRecords instead of one"
        raise Fault(reason, Kind.RECORDS if records else Kind.METRICLESS)
    return records[0]


def _report(
    content: RecordDict, request: AdjustmentRequest | None, arrays: int
) -> AdjustmentReport | None:
    """Read what a client says it did to its update; it must be what it was asked to do."""
    record = content.config_records.get(REPORT_KEY)
    if record is None or REPORT_KEY not in record:
        return None
    report = AdjustmentReport.decode(record[REPORT_KEY], arrays)
    if request is None:
        raise Fault("it adjusted its update, which it was not asked to")
    if report.rate != request.rate:
        raise Fault(f"it masked with the rate {report.rate}, asked was {request.rate}")
    if report.consensus_round != request.consensus_round:
        raise Fault(
            f"it rescaled with the consensus of round {report.consensus_round}, sent was that of "
            f"round {request.consensus_round}"
        )
    if report.packed and request.upload != "packed":
        raise Fault("it packed its update, which it was not asked to")
    return report


def _applied(report: AdjustmentReport, names: Sequence[str]) -> AppliedAdjustment:
    discarded = dict(zip(names, report.discarded, strict=True))
    norms = {name: norm for name, norm in zip(names, report.norms, strict=False) if norm > 0}
    return AppliedAdjustment(rate=report.rate, discarded=discarded, norms=norms)


@np.errstate(all="ignore")
def _checked_tensors(
    content: RecordDict, asked: AskedRound, request: AdjustmentRequest | None
) -> tuple[ArrayTensors, AdjustmentReport | None]:
    """Look at a reply's arrays, and read what was done to them."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise Fault(f"it holds {len(records)} ArrayRecords instead of one", Kind.RECORDS)
    (arrays,) = records
    names = _in_order(asked.model, arrays)
    complete = len(names) == len(asked.model)
    if len(names) < len(arrays) or not names or not (asked.is_first or complete):
        raise other_arrays(arrays, asked.model)
    report = _report(content, request, len(names))
    # Places in a report, and in packed updates, are among the arrays that came.
    model = asked.model if complete else {name: asked.model[name] for name in names}
    tensors = ArrayTensors(arrays, model)
    if request is not None and report is not None and report.packed:
        packed = {names[index] for index in report.packed}
        tensors = PackedTensors(arrays, packed, model, request.upload_dtype, report.rate)
    for name in names:
        _check_tensor(name, tensors, asked.model[name])
    return tensors, report


def _in_order(model: Iterable[str], names: Collection[str]) -> list[str]:
    """Return those of the names that the model has, in its order."""
    return [name for name in model if name in names]


def other_arrays(found: Iterable[str], expected: Iterable[str]) -> Fault:
    """Return the fault of arrays with other names than the model's."""
    found, expected = set(found), set(expected)
    odd = f"missing {listed(expected - found)}, unknown {listed(found - expected)}"
    return Fault(f"its arrays are not the model's: {odd}", Kind.ARRAYS)


def listed(names: Collection[str], most: int = 20) -> str:
    """Return names as a message has them: not all of very many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{sorted(names)[:most]}{more}"


def _check_tensor(name: str, tensors: ArrayTensors, expected: Tensor) -> None:
    packed_update = tensors.packed_update(name)
    if packed_update is not None:
        # Of the model's shape and dtype by its header; unpacking it can wait, and so can its norm
        # where its largest value says enough.
        if packed_update.most_norm > LARGEST_NORM:
            check_norm(name, packed_update.norm())
        return
    # Before anything is cast, which takes memory.
    array = tensors.ndarray(name)
    if array.shape != expected.shape:
        reason = f"tensor {name!r} has the shape {array.shape} instead of {tuple(expected.shape)}"
        raise Fault(reason, Kind.SHAPES)
    if expected.dtype == torch.float32 and array.dtype == np.float32:
        # The usual case. Models have many small arrays, and making a tensor of each takes longer.
        _check_array(name, array)
        return
    tensor = tensors[name]
    if tensor.dtype != expected.dtype:
        raise Fault(f"tensor {name!r} is {tensor.dtype} instead of {expected.dtype}", Kind.DTYPES)
    check_finite(name, tensor)


@np.errstate(all="ignore")
def check_finite(name: str, tensor: Tensor) -> None:
    """Raise a `Fault` if an entry is not finite, or the norm is above `LARGEST_NORM`."""
    if tensor.numel() > 0 and tensor.is_floating_point():
        _check_array(name, tensor.numpy())


def _check_array(name: str, array: npt.NDArray[Any]) -> None:
    """Check floats in one pass: the squared norm is finite only if every entry is."""
    # Not copied, in whichever order it lies.
    flat = array.ravel(order="K")
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    if float(flat.dot(flat)) <= LARGEST_NORM**2:
        return
    if not np.isfinite(flat).all():
        reason = f"tensor {name!r} holds values that are not finite (NaN or infinity)"
        raise Fault(reason, Kind.NOT_FINITE)
    check_norm(name, float(np.linalg.norm(flat.astype(np.float64))))


def check_norm(name: str, norm: float) -> None:
    """Raise a `Fault` if the norm of a tensor, or of its update, is above `LARGEST_NORM`."""
    if not norm <= LARGEST_NORM:
        reason = f"tensor {name!r} has the norm {norm:.1e}, which is above {LARGEST_NORM:.0e}"
        raise Fault(f"{reason}: training has diverged", Kind.NOT_FINITE)


def needed_loss(content: RecordDict, metrics: MetricRecord, project: Project) -> float | None:
    """Read ℓ_k, where it is needed; what is wrong with it may be so on all clients."""
    if not project.needs_loss:
        return None
    key = project.loss_key
    others = content.config_records.get(OTHER_METRICS_RECORD, ConfigRecord())
    if key not in metrics and key not in others:
        raise Fault(f"its metrics lack the {project.loss_name} {key!r}", Kind.LOSSLESS)
    value = metrics[key] if key in metrics else others[key]
    if key not in metrics or isinstance(value, list):
        told = f"{_WORDS.get(type(value), 'a list')} ({reprlib.repr(value)})"
        raise Fault(f"its metric {key!r} is {told}, not a number", Kind.NOT_A_NUMBER)
    try:
        return non_negative_metric(metrics, key)
    except ValueError as error:
        kind = Kind.BELOW_ZERO if all_finite(metrics[key]) else Kind.NOT_FINITE
        raise Fault(str(error), kind) from error


def check_finite_metric(metrics: MetricRecord, key: str) -> None:
    """Refuse a metric that is not finite."""
    if not all_finite(metrics[key]):
        raise ValueError(f"its metric {key!r} is not finite: {metrics[key]!r}")


def non_negative_metric(metrics: MetricRecord, key: str) -> float:
    """Return a metric that is one finite number, 0 or more."""
    value = metrics[key]
    if isinstance(value, list):
        raise ValueError(f"its metric {key!r} is a list, not a number")
    if not all_finite(value) or value < 0:
        raise ValueError(f"its metric {key!r} is {value!r}, not a finite, non-negative number")
    return float(value)


def all_finite(value: MetricRecordValues) -> bool:
    """Return True for a finite metric, number or list; integers no float can hold are not."""
    try:
        return all(map(math.isfinite, value if isinstance(value, list) else [value]))
    except OverflowError:
        return False
