"""What a reply must be before anything is computed with it.

One broken client must cost its own reply and nothing else: not the run, not a mean, not the
method's memory. Each reply of a round is looked at here, alone and against the global model; what
does not pass is set aside with a reason a person can act on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message, MetricRecord, MetricRecordValues, RecordDict
from torch import Tensor

from fedpw_flwr.algorithm import AppliedAdjustment, ClientResult
from fedpw_flwr.wire.adjustment import REPORT_KEY, AdjustmentReport, AdjustmentRequest
from fedpw_flwr.wire.arrays import ArrayTensors, PackedTensors
from fedpw_flwr.wire.identity import identity_of

__all__ = [
    "Answer",
    "BadReply",
    "EvaluateReply",
    "MissingLossError",
    "TrainReply",
    "all_finite",
    "answers_of_messages",
    "check_finite",
    "screen_evaluate_replies",
    "screen_train_replies",
    "without_uncounted",
]

LARGEST_NORM = 1e16
"""Tensors of a larger Euclidean norm are refused: their inner products overflow float32."""

LARGEST_COUNT = 2**53
"""Integers beyond it are refused: a mean in double precision does not hold them."""


class MissingLossError(ValueError):
    """No client of a round reported the training loss that FedPW weights clients by."""


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
class BadReply:
    """A reply that was set aside.

    Attributes
    ----------
    node_id : int
        Flower's id of the node that sent it.
    client : int
        The client's stable identity where it gave one, else the node id.
    reason : str
        What is wrong with it.
    failed : bool
        True where the client raised or was lost (Flower reports an error), False where it answered
        with something that cannot be used.
    """

    node_id: int
    client: int
    reason: str
    failed: bool = False


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


def screen_train_replies(
    answers: Iterable[Answer],
    asked: Mapping[int, AdjustmentRequest | None],
    owners: Mapping[int, int],
    global_model: Mapping[str, Tensor],
    loss_key: str | None,
    examples_key: str,
    *,
    homes: Mapping[int, int] | None = None,
    named: Mapping[int, int] | None = None,
    loss_was_reported: bool = False,
) -> tuple[list[TrainReply], list[BadReply]]:
    """Separate the training replies that can be aggregated from those that cannot.

    Parameters
    ----------
    answers : Iterable[Answer]
        Everything that came back in the round.
    asked : Mapping[int, AdjustmentRequest | None]
        The nodes that were asked to train, and what each was asked to do to its update.
    owners : Mapping[int, int]
        Which node answered last for a client identity; decides between two that claim the same.
    global_model : Mapping[str, Tensor]
        The model that was sent: names, shapes and dtypes that a reply must match.
    loss_key : str | None
        MetricRecord key of the mean training loss; None where no loss is needed.
    examples_key : str
        MetricRecord key of the number of training examples; a reply may lack it.
    homes : Mapping[int, int] | None (default: None)
        Which node answered first for a client identity; decides before `owners` does.
    named : Mapping[int, int] | None (default: None)
        Which client a node said it is, where it never answered; for the log.
    loss_was_reported : bool (default: False)
        Whether clients reported their loss in an earlier round: one that does not is broken then.

    Returns
    -------
    tuple[list[TrainReply], list[BadReply]]
        Usable replies in the order of client identity, and the others.

    Raises
    ------
    MissingLossError
        If replies came and every one of them lacks `loss_key`.
    """
    good: list[TrainReply] = []
    bad: list[BadReply] = []
    client_of = {**(named or {}), **{node: client for client, node in owners.items()}}
    answers = list(answers)
    came = [answer for answer in answers if answer.content is not None]
    for answer in answers:
        if answer.content is None:
            client = client_of.get(answer.node_id, answer.node_id)
            bad.append(BadReply(answer.node_id, client, answer.error, failed=True))
    for answer in came:
        client = client_of.get(answer.node_id, answer.node_id)
        reply = _screened(answer, client, asked, owners, global_model, loss_key, examples_key)
        if isinstance(reply, TrainReply):
            good.append(reply)
        else:
            bad.append(reply)
    due = None if loss_was_reported else loss_key
    told_nothing = due is not None and not any(_reports(answer, due) for answer in came)
    # A few that answer alone may be broken; of most it is how the project is written.
    if came and told_nothing and 2 * len(came) >= len(asked):
        raise MissingLossError(
            f"no client reported its training loss: FedPW weights clients by it and reads it from "
            f"the metric {loss_key!r}. Let every client's train function return it, for example\n"
            f'    MetricRecord({{"{loss_key}": mean_loss_over_all_batches, '
            f'"{examples_key}": len(trainset)}})\n'
            f"or, from a NumPyClient,\n"
            f'    return parameters, num_examples, {{"{loss_key}": mean_loss_over_all_batches}}\n'
            f'or name the metric your clients report: FedPW(train_loss_key="...")'
        )
    unique, duplicates = _one_reply_per_client(good, owners, homes or {}, client_of)
    return unique, bad + duplicates


def _screened(
    answer: Answer,
    client: int,
    asked: Mapping[int, AdjustmentRequest | None],
    owners: Mapping[int, int],
    global_model: Mapping[str, Tensor],
    loss_key: str | None,
    examples_key: str,
) -> TrainReply | BadReply:
    """Look at one reply; `client` is who is known to be at its node."""
    node_id, content = answer.node_id, answer.content
    assert content is not None
    try:
        stated = identity_of(content)
        client = client if stated is None else stated
        if node_id not in asked:
            raise ValueError("it was not asked to train in this round")
        if stated is not None and stated != node_id and owners.get(stated) == stated:
            raise ValueError(f"it says it is client {stated}, which is the id of another node")
        if answer.late:
            raise ValueError("it answers a message of an earlier round")
        metrics = _only_metric_record(content)
        if loss_key is not None and loss_key not in metrics:
            raise ValueError(f"its metrics lack the training loss {loss_key!r}")
        request = asked[node_id]
        report = _report(content, request, len(global_model))
        with np.errstate(all="ignore"):
            tensors = _checked_tensors(content, global_model, request, report)
        result = ClientResult(
            client=node_id if stated is None else stated,
            tensors=tensors,
            loss=None if loss_key is None else _non_negative(metrics, loss_key),
            num_examples=(
                _non_negative(metrics, examples_key) if examples_key in metrics else None
            ),
            applied=None if report is None else _applied(report, global_model),
        )
    except ValueError as error:
        return BadReply(node_id, client, str(error))
    return TrainReply(node_id, result, content, None if report is None else report.trainable)


def screen_evaluate_replies(
    answers: Iterable[Answer],
    asked: Collection[int] | None,
    owners: Mapping[int, int],
    examples_key: str,
    *,
    homes: Mapping[int, int] | None = None,
    named: Mapping[int, int] | None = None,
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
    owners : Mapping[int, int]
        Which node answered last for a client identity; names a node that failed.
    examples_key : str
        MetricRecord key of the number of examples.
    homes, named : Mapping[int, int] | None (default: None)
        As in `screen_train_replies`.

    Returns
    -------
    tuple[list[EvaluateReply], list[BadReply]]
        Usable replies in the order of client identity, and the others.
    """
    good: list[EvaluateReply] = []
    bad: list[BadReply] = []
    client_of = {**(named or {}), **{node: client for client, node in owners.items()}}
    for answer in answers:
        node_id, content = answer.node_id, answer.content
        client = client_of.get(node_id, node_id)
        if content is None:
            bad.append(BadReply(node_id, client, answer.error, failed=True))
            continue
        try:
            stated = identity_of(content)
            client = client if stated is None else stated
            if asked is not None and node_id not in asked:
                raise ValueError("it was not asked to evaluate in this round")
            if answer.late:
                raise ValueError("it answers a message of an earlier round")
            metrics = _only_metric_record(content)
            for key in metrics:
                _finite(metrics, key)
            if examples_key in metrics:
                _non_negative(metrics, examples_key)
        except ValueError as error:
            bad.append(BadReply(node_id, client, str(error)))
        else:
            good.append(EvaluateReply(node_id, client, content))

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

    unique, duplicates = _one_reply_per_client(good, owners, homes or {}, client_of)
    return unique, bad + duplicates


def _reports(answer: Answer, key: str) -> bool:
    records = () if answer.content is None else answer.content.metric_records.values()
    return any(key in record for record in records)


def _only_metric_record(content: RecordDict) -> MetricRecord:
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise ValueError(f"it holds {len(records)} MetricRecords instead of one")
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
        raise ValueError("it adjusted its update, which it was not asked to")
    if report.rate != request.rate:
        raise ValueError(f"it masked with the rate {report.rate}, asked was {request.rate}")
    if report.consensus_round != request.consensus_round:
        raise ValueError(
            f"it rescaled with the consensus of round {report.consensus_round}, sent was that of "
            f"round {request.consensus_round}"
        )
    if report.packed and request.upload != "packed":
        raise ValueError("it packed its update, which it was not asked to")
    return report


def _applied(report: AdjustmentReport, global_model: Mapping[str, Tensor]) -> AppliedAdjustment:
    discarded = dict(zip(global_model, report.discarded, strict=True))
    norms = {name: norm for name, norm in zip(global_model, report.norms, strict=False) if norm > 0}
    return AppliedAdjustment(report.rate, discarded, report.consensus_round, norms)


def _checked_tensors(
    content: RecordDict,
    global_model: Mapping[str, Tensor],
    request: AdjustmentRequest | None,
    report: AdjustmentReport | None,
) -> Mapping[str, Tensor]:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ValueError(f"it holds {len(records)} ArrayRecords instead of one")
    tensors = ArrayTensors(records[0])
    if set(tensors) != set(global_model):
        missing = sorted(set(global_model) - set(tensors))
        extra = sorted(set(tensors) - set(global_model))
        raise ValueError(f"its arrays are not the model's: missing {missing}, unknown {extra}")
    if request is not None and report is not None and report.packed:
        names = list(global_model)
        packed = {names[place] for place in report.packed}
        tensors = PackedTensors(records[0], packed, global_model, request.upload_dtype, report.rate)
    for name, expected in global_model.items():
        packed_update = tensors.packed_update(name)
        if packed_update is not None:
            # Of the model's shape and dtype by its header; unpacking it can wait, and so can its
            # norm where its largest value says enough.
            if packed_update.most_norm > LARGEST_NORM:
                check_norm(name, packed_update.norm())
            continue
        if expected.dtype == torch.float32 and _is_sound(tensors.ndarray(name), expected.shape):
            continue
        tensor = tensors[name]
        if tensor.shape != expected.shape:
            raise ValueError(
                f"tensor {name!r} has the shape {tuple(tensor.shape)} instead of "
                f"{tuple(expected.shape)}"
            )
        if tensor.dtype != expected.dtype:
            raise ValueError(f"tensor {name!r} is {tensor.dtype} instead of {expected.dtype}")
        check_finite(name, tensor)
    return tensors


def _is_sound(array: npt.NDArray[Any], shape: torch.Size) -> bool:
    """Say whether nothing is wrong with an array of float32; False where a closer look decides."""
    if array.dtype != np.float32 or array.shape != shape:
        return False
    flat = array.ravel(order="K")
    return float(flat.dot(flat)) <= LARGEST_NORM**2


def check_finite(name: str, tensor: Tensor) -> None:
    """Check a tensor in one pass: its squared norm is finite only if every entry is.

    Raises
    ------
    ValueError
        If an entry is not finite, or the norm is above `LARGEST_NORM`.
    """
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return
    if not tensor.is_floating_point():
        if not tensor.is_complex() and _reach(tensor) > LARGEST_COUNT:
            raise ValueError(
                f"tensor {name!r} holds integers beyond {LARGEST_COUNT}, which no counter reaches"
            )
        return
    flat = tensor.reshape(-1)
    if flat.dtype == torch.float16:
        flat = flat.float()
    if float(torch.dot(flat, flat)) <= LARGEST_NORM**2:
        return
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(f"tensor {name!r} holds values that are not finite (NaN or infinity)")
    check_norm(name, float(flat.double().norm()))


def _reach(integers: Tensor) -> int:
    return max(abs(int(integers.min())), abs(int(integers.max())))


def check_norm(name: str, norm: float) -> None:
    """Check the norm of a tensor, or of its update.

    Raises
    ------
    ValueError
        If it is above `LARGEST_NORM`.
    """
    if not norm <= LARGEST_NORM:
        raise ValueError(
            f"tensor {name!r} has the norm {norm:.1e}, which is above {LARGEST_NORM:.0e}: training "
            "has diverged"
        )


def all_finite(value: MetricRecordValues) -> bool:
    """Say whether a metric, a number or a list, is finite; integers no float can hold are not."""
    try:
        return all(
            math.isfinite(entry) for entry in (value if isinstance(value, list) else [value])
        )
    except OverflowError:
        return False


def _finite(metrics: MetricRecord, key: str) -> None:
    if not all_finite(metrics[key]):
        raise ValueError(f"its metric {key!r} is not finite: {metrics[key]!r}")


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
    replies: Sequence[Reply],
    owners: Mapping[int, int],
    homes: Mapping[int, int],
    client_of: Mapping[int, int],
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
        at_home = homes.get(reply.client) == reply.node_id
        owns = owners.get(reply.client) == reply.node_id
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
