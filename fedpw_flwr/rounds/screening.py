"""What a reply must be before anything is computed with it.

One broken client must cost its own reply and nothing else: not the run, not a mean, not the
method's memory. Each reply of a round is looked at here, alone and against the global model; what
does not pass is set aside with a reason a person can act on.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, MetricRecordValues, RecordDict
from torch import Tensor

from fedpw_flwr.algorithm import AppliedAdjustment, ClientResult
from fedpw_flwr.rounds.faults import (
    ARRAYS,
    BELOW_ZERO,
    DISAGREED,
    DTYPES,
    LOSSLESS,
    METRICLESS,
    NOT_A_NUMBER,
    NOT_FINITE,
    ONE_IDENTITY,
    RECORDS,
    SHAPES,
    BadReply,
    Fault,
    Project,
    refuse_shared_fault,
)
from fedpw_flwr.wire.adjustment import REPORT_KEY, AdjustmentReport, AdjustmentRequest
from fedpw_flwr.wire.arrays import ArrayTensors, PackedTensors
from fedpw_flwr.wire.records import OTHER_METRICS_RECORD, identity_of

if TYPE_CHECKING:
    from fedpw_flwr.rounds.identities import Identities

__all__ = [
    "Answer",
    "AskedRound",
    "EvaluateReply",
    "TrainReply",
    "all_finite",
    "answers_of_messages",
    "check_finite",
    "screen_evaluate_replies",
    "screen_train_replies",
    "without_uncounted",
]

_WORDS = {str: "a text", bytes: "bytes", bool: "a truth value"}
"""What a loss may be that no MetricRecord takes; anything else is a list."""

LARGEST_NORM = 1e16
"""Tensors of a larger Euclidean norm are refused: their inner products overflow float32."""


@dataclass(frozen=True)
class Answer:
    """What came back from one node, whichever of Flower's APIs carried it.

    Attributes
    ----------
    node_id : int
        Flower's id of the node.
    content : RecordDict | None
        The reply's records; None where the client failed.
    error : str
        Why it failed.
    late : bool
        Whether it answers a message of an earlier round.
    """

    node_id: int
    content: RecordDict | None
    error: str = ""
    late: bool = False


def answers_of_messages(replies: Iterable[Message], asked: Sequence[Message]) -> list[Answer]:
    """Turn the replies of a round into answers.

    Parameters
    ----------
    replies : Iterable[Message]
        Everything the grid returned.
    asked : Sequence[Message]
        The round's messages; the grid gave them their ids when it sent them. They tell which node
        was lost: Flower reports its error as node 1's.
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

    `trainable` are the places of the trainable arrays, where the client says it was told.
    """

    node_id: int
    result: ClientResult
    content: RecordDict
    trainable: tuple[int, ...] | None = None

    @property
    def client(self) -> int:
        """Return the client's stable identity."""
        return self.result.client


@dataclass(frozen=True)
class EvaluateReply:
    """An evaluation reply that passed."""

    node_id: int
    client: int
    content: RecordDict


Reply = TypeVar("Reply", TrainReply, EvaluateReply)


@dataclass(frozen=True)
class AskedRound:
    """A round of training as it was asked for: what its replies are held against.

    Attributes
    ----------
    server_round : int
        Flower's round number.
    asked : Mapping[int, AdjustmentRequest | None]
        The nodes that were asked to train, and what each was asked to do to its update.
    model : Mapping[str, Tensor]
        The model that was sent: names, shapes and dtypes that a reply must match.
    project : Project
        The names by which the project calls things.
    is_first : bool
        Whether no round was aggregated before: what all its replies share is the project's, and
        which arrays the clients return is settled in it.
    """

    server_round: int
    asked: Mapping[int, AdjustmentRequest | None]
    model: Mapping[str, Tensor]
    project: Project
    is_first: bool


def screen_train_replies(
    answers: Iterable[Answer], asked: AskedRound, identities: Identities
) -> tuple[list[TrainReply], list[BadReply], frozenset[str]]:
    """Separate the training replies that can be aggregated from those that cannot.

    Parameters
    ----------
    answers : Iterable[Answer]
        Everything that came back in the round.
    asked : AskedRound
        What they are held against.
    identities : Identities
        Who answered from where; decides between two that claim to be the same client.

    Returns
    -------
    tuple[list[TrainReply], list[BadReply], frozenset[str]]
        Usable replies in the order of client identity; the others; and in a first round the names
        of the arrays that none of at least two usable replies has: they are private to the clients
        and no longer part of the global model.

    Raises
    ------
    UnusableRepliesError
        If all replies of a first round have the same fault; `MissingLossError` where it is that
        they lack the loss. If all that are usable come from one client, but from several nodes.
    """
    answers = list(answers)
    client_of = identities.by_node()

    def read(node_id: int, content: RecordDict, metrics: MetricRecord) -> TrainReply:
        return _train_reply(node_id, content, metrics, asked, identities)

    good, bad = _judged(answers, client_of, asked.asked, "train", asked.project.examples_key, read)
    private = _private_arrays(good, asked.model) if asked.is_first else frozenset()
    complete, partial = _complete_replies(good, [n for n in asked.model if n not in private])
    bad += partial
    unique, duplicates = _one_reply_per_client(complete, identities, client_of)
    if asked.is_first:
        reported = {name for answer in answers for name in _metric_names(answer)}
        # Two of many may be one client that was restarted at another node.
        most = 2 * len(complete) >= len(asked.asked)
        shared = bad if not complete else _of_one_identity(complete) if most else []
        refuse_shared_fault(shared, asked.server_round, reported, asked.project)
    return unique, bad + duplicates, private if unique else frozenset()


def _private_arrays(replies: Sequence[TrainReply], model: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names that no reply of at least two clients has; none where nothing would stay."""
    returned = set().union(*(reply.result.tensors for reply in replies))
    something = any(model[name].is_floating_point() for name in returned)
    if len({reply.client for reply in replies}) < 2 or not something:
        return frozenset()
    return frozenset(model) - returned


def _complete_replies(
    replies: Sequence[TrainReply], expected: Collection[str]
) -> tuple[list[TrainReply], list[BadReply]]:
    """Set aside replies that lack arrays which belong to the model."""
    returned = set().union(*(reply.result.tensors for reply in replies))
    complete: list[TrainReply] = []
    partial: list[BadReply] = []
    for reply in replies:
        missing = set(expected).difference(reply.result.tensors)
        if not missing:
            complete.append(reply)
            continue
        fault = _other_arrays(reply.result.tensors, expected)
        if missing <= returned:
            lacking = f"it lacks the arrays {_listed(missing)}, which other clients return"
            fault = Fault(lacking, DISAGREED)
        partial.append(BadReply(reply.node_id, reply.client, str(fault), kind=fault.kind))
    return complete, partial


def _of_one_identity(replies: Sequence[TrainReply]) -> list[BadReply]:
    """Return what is wrong with replies that all say they are the same client; none where not."""
    stated = {identity_of(reply.content) for reply in replies}
    if len(stated) > 1 or None in stated:
        return []
    return [
        BadReply(
            reply.node_id, reply.client, f"it says it is client {reply.client}", kind=ONE_IDENTITY
        )
        for reply in replies
    ]


def _train_reply(
    node_id: int,
    content: RecordDict,
    metrics: MetricRecord,
    asked: AskedRound,
    identities: Identities,
) -> TrainReply:
    """Read a training reply; what it lacks of the arrays is looked at later in a first round."""
    stated = identity_of(content)
    if stated is not None and stated != node_id and identities.owners.get(stated) == stated:
        raise Fault(f"it says it is client {stated}, which is the id of another node")
    loss_key, examples_key = asked.project.loss_key, asked.project.examples_key
    loss = _loss(content, metrics, loss_key) if asked.project.needs_loss else None
    tensors, report = _checked_tensors(content, asked, asked.asked[node_id])
    result = ClientResult(
        client=node_id if stated is None else stated,
        tensors=tensors,
        loss=loss,
        num_examples=_non_negative(metrics, examples_key) if examples_key in metrics else None,
        applied=None if report is None else _applied(report, _in_order(asked.model, tensors)),
    )
    return TrainReply(node_id, result, content, None if report is None else report.trainable)


def screen_evaluate_replies(
    answers: Iterable[Answer],
    asked: Collection[int] | None,
    identities: Identities,
    examples_key: str,
) -> tuple[list[EvaluateReply], list[BadReply]]:
    """Separate the evaluation replies whose metrics can be aggregated from those that cannot.

    The metric names (and lengths of lists) that most replies share are taken as right.

    Parameters
    ----------
    answers : Iterable[Answer]
        Everything that came back in the round.
    asked : Collection[int] | None
        The nodes that were asked to evaluate; None where they are not known, as in a strategy that
        sends its own.
    identities : Identities
        As in `screen_train_replies`.
    examples_key : str
        MetricRecord key of the number of examples.

    Returns
    -------
    tuple[list[EvaluateReply], list[BadReply]]
        Usable replies in the order of client identity, and the others.
    """
    client_of = identities.by_node()

    def read(node_id: int, content: RecordDict, metrics: MetricRecord) -> EvaluateReply:
        for key in metrics:
            _finite(metrics, key)
        if examples_key in metrics:
            _non_negative(metrics, examples_key)
        stated = identity_of(content)
        client = client_of.get(node_id, node_id) if stated is None else stated
        return EvaluateReply(node_id, client, content)

    good, bad = _judged(answers, client_of, asked, "evaluate", examples_key, read)
    shapes = Counter(_metric_shape(reply.content) for reply in good)
    if len(shapes) > 1:
        usual = max(shapes, key=lambda shape: (shapes[shape], len(shape), sorted(shape)))
        odd = [reply for reply in good if _metric_shape(reply.content) != usual]
        good = [reply for reply in good if _metric_shape(reply.content) == usual]
        expected = sorted(key for key, _ in usual)
        for reply in odd:
            found = sorted(key for key, _ in _metric_shape(reply.content))
            reason = f"its metrics {found} are not those of the other clients, {expected}"
            bad.append(BadReply(reply.node_id, reply.client, reason))

    unique, duplicates = _one_reply_per_client(good, identities, client_of)
    return unique, bad + duplicates


def _judged(
    answers: Iterable[Answer],
    client_of: Mapping[int, int],
    asked: Collection[int] | None,
    task: str,
    examples_key: str,
    read: Callable[[int, RecordDict, MetricRecord], Reply],
) -> tuple[list[Reply], list[BadReply]]:
    """Look at each answer alone; what `read` makes of it, or raises, is what it is."""
    good: list[Reply] = []
    bad: list[BadReply] = []
    for answer in answers:
        node_id, content = answer.node_id, answer.content
        client = client_of.get(node_id, node_id)
        if content is None:
            bad.append(BadReply(node_id, client, answer.error, "failed"))
            continue
        unasked = asked is not None and node_id not in asked
        try:
            stated = identity_of(content)
            client = client if stated is None else stated
            if unasked:
                raise Fault(f"it was not asked to {task} in this round")
            if answer.late:
                raise Fault("it answers a message of an earlier round")
            metrics = _only_metric_record(content)
            if metrics.get(examples_key) == 0:
                bad.append(BadReply(node_id, client, f"{examples_key} is 0", "empty"))
                continue
            good.append(read(node_id, content, metrics))
        except ValueError as error:
            kind = error.kind if isinstance(error, Fault) else ""
            stray = unasked or answer.late
            bad.append(BadReply(node_id, client, str(error), kind=kind, stray=stray))
    return good, bad


def _metric_names(answer: Answer) -> Iterable[str]:
    """Return the names of all metrics of a reply, also of those that no MetricRecord takes."""
    content = RecordDict() if answer.content is None else answer.content
    for record in content.metric_records.values():
        yield from record
    yield from content.config_records.get(OTHER_METRICS_RECORD, ())


def _only_metric_record(content: RecordDict) -> MetricRecord:
    records = list(content.metric_records.values())
    if len(records) != 1:
        reason = f"it holds {len(records)} MetricRecords instead of one"
        raise Fault(reason, RECORDS if records else METRICLESS)
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
    return AppliedAdjustment(report.rate, discarded, report.consensus_round, norms)


def _checked_tensors(
    content: RecordDict, asked: AskedRound, request: AdjustmentRequest | None
) -> tuple[ArrayTensors, AdjustmentReport | None]:
    """Look at a reply's arrays, and read what was done to them."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise Fault(f"it holds {len(records)} ArrayRecords instead of one", RECORDS)
    (arrays,) = records
    names = _in_order(asked.model, arrays)
    complete = len(names) == len(asked.model)
    if len(names) < len(arrays) or not names or not (asked.is_first or complete):
        raise _other_arrays(arrays, asked.model)
    report = _report(content, request, len(names))
    # Places in a report, and in packed updates, are among the arrays that came.
    model = asked.model if complete else {name: asked.model[name] for name in names}
    tensors = ArrayTensors(arrays, model)
    if request is not None and report is not None and report.packed:
        packed = {names[place] for place in report.packed}
        tensors = PackedTensors(arrays, packed, model, request.upload_dtype, report.rate)
    with np.errstate(all="ignore"):
        for name in names:
            _check_tensor(name, tensors, asked.model[name])
    return tensors, report


def _in_order(model: Iterable[str], names: Collection[str]) -> list[str]:
    """Return those of the names that the model has, in its order."""
    return [name for name in model if name in names]


def _other_arrays(found: Iterable[str], expected: Iterable[str]) -> Fault:
    found, expected = set(found), set(expected)
    missing, unknown = _listed(expected - found), _listed(found - expected)
    return Fault(f"its arrays are not the model's: missing {missing}, unknown {unknown}", ARRAYS)


def _listed(names: Collection[str], most: int = 20) -> str:
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
    if expected.dtype == torch.float32 and _is_sound(tensors.ndarray(name), expected.shape):
        return
    # Before anything is cast, which takes memory.
    shape = tensors.ndarray(name).shape
    if shape != expected.shape:
        reason = f"tensor {name!r} has the shape {shape} instead of {tuple(expected.shape)}"
        raise Fault(reason, SHAPES)
    tensor = tensors[name]
    if tensor.dtype != expected.dtype:
        raise Fault(f"tensor {name!r} is {tensor.dtype} instead of {expected.dtype}", DTYPES)
    check_finite(name, tensor)


def _is_sound(array: npt.NDArray[Any], shape: torch.Size) -> bool:
    """Return True for a sound array of float32; False where a closer look has to decide."""
    if array.dtype != np.float32 or array.shape != shape:
        return False
    flat = array.ravel(order="K")
    return float(flat.dot(flat)) <= LARGEST_NORM**2


def check_finite(name: str, tensor: Tensor) -> None:
    """Check a tensor in one pass: its squared norm is finite only if every entry is.

    Raises
    ------
    Fault
        If an entry is not finite, or the norm is above `LARGEST_NORM`.
    """
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return
    flat = tensor.reshape(-1)
    if flat.dtype == torch.float16:
        flat = flat.float()
    if float(torch.dot(flat, flat)) <= LARGEST_NORM**2:
        return
    if not bool(torch.isfinite(flat).all()):
        reason = f"tensor {name!r} holds values that are not finite (NaN or infinity)"
        raise Fault(reason, NOT_FINITE)
    check_norm(name, float(flat.double().norm()))


def check_norm(name: str, norm: float) -> None:
    """Check the norm of a tensor, or of its update.

    Raises
    ------
    Fault
        If it is above `LARGEST_NORM`.
    """
    if not norm <= LARGEST_NORM:
        reason = f"tensor {name!r} has the norm {norm:.1e}, which is above {LARGEST_NORM:.0e}"
        raise Fault(f"{reason}: training has diverged", NOT_FINITE)


def all_finite(value: MetricRecordValues) -> bool:
    """Return True for a finite metric, number or list; integers no float can hold are not."""
    try:
        return all(
            math.isfinite(entry) for entry in (value if isinstance(value, list) else [value])
        )
    except OverflowError:
        return False


def _finite(metrics: MetricRecord, key: str) -> None:
    if not all_finite(metrics[key]):
        raise ValueError(f"its metric {key!r} is not finite: {metrics[key]!r}")


def _loss(content: RecordDict, metrics: MetricRecord, key: str) -> float:
    """Read ℓ_k; what is wrong with it may be so on all clients."""
    others = content.config_records.get(OTHER_METRICS_RECORD, ConfigRecord())
    if key not in metrics and key not in others:
        raise Fault(f"its metrics lack the training loss {key!r}", LOSSLESS)
    value = metrics[key] if key in metrics else others[key]
    if key not in metrics or isinstance(value, list):
        told = f"{_WORDS.get(type(value), 'a list')} ({reprlib.repr(value)})"
        raise Fault(f"its metric {key!r} is {told}, not a number", NOT_A_NUMBER)
    try:
        return _non_negative(metrics, key)
    except ValueError as error:
        raise Fault(str(error), BELOW_ZERO if all_finite(metrics[key]) else NOT_FINITE) from error


def _non_negative(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    if isinstance(value, list):
        raise ValueError(f"its metric {key!r} is a list, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"its metric {key!r} is {value!r}, not a finite, non-negative number")
    return number


def _metric_shape(content: RecordDict) -> frozenset[tuple[str, int]]:
    metrics = _only_metric_record(content)
    return frozenset(
        (key, len(value) if isinstance(value, list) else -1) for key, value in metrics.items()
    )


def _one_reply_per_client(
    replies: Sequence[Reply], identities: Identities, client_of: Mapping[int, int]
) -> tuple[list[Reply], list[BadReply]]:
    """Keep one reply a client: the node's that had the identity first, else last, else the lowest.

    A node without authentication has another id after a restart, and its old one never comes back:
    where the first is there again, it is the true one.

    Where one node sent several, their content decides, never their order.
    """
    answers = Counter((reply.client, reply.node_id) for reply in replies)

    def precedence(reply: Reply) -> tuple[int, bool, bool, int, str]:
        # Hashing a whole reply is only worth it where there is something to decide.
        several = answers[reply.client, reply.node_id] > 1
        digest = reply.content.object_id if several else ""
        at_home = identities.homes.get(reply.client) == reply.node_id
        owns = identities.owners.get(reply.client) == reply.node_id
        return reply.client, not at_home, not owns, reply.node_id, digest

    unique: dict[int, Reply] = {}
    duplicates: list[BadReply] = []
    for reply in sorted(replies, key=precedence):
        if reply.client in unique:
            reason = f"a second reply of client {reply.client} in one round"
            known = client_of.get(reply.node_id, reply.client)
            if known != reply.client:
                reason = f"it says it is client {reply.client}: {reason}"
            duplicates.append(BadReply(reply.node_id, known, reason))
        else:
            unique[reply.client] = reply
    return list(unique.values()), duplicates


def without_uncounted(
    replies: list[TrainReply], examples_key: str
) -> tuple[list[TrainReply], list[BadReply]]:
    """Set aside replies without a number of training examples, where others have one."""
    counted = [reply for reply in replies if reply.result.num_examples is not None]
    if not counted:
        return replies, []
    reason = f"its metrics lack {examples_key!r}, which weights the clients"
    return counted, [
        BadReply(reply.node_id, reply.result.client, reason)
        for reply in replies
        if reply.result.num_examples is None
    ]
