"""Which replies of a round are used: each alone, then against the others.

One broken client must cost its own reply and nothing else: not the run, not a mean, not the
method's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedpw_flwr.rounds.faults import BadReply, Fault, Kind, Project, refuse_shared_fault
from fedpw_flwr.rounds.identities import Identities
from fedpw_flwr.rounds.metrics import metric_shape
from fedpw_flwr.rounds.replies import (
    Answer,
    AskedRound,
    EvaluateReply,
    TrainReply,
    check_finite_metric,
    listed,
    needed_loss,
    non_negative_metric,
    only_metric_record,
    other_arrays,
    read_train_reply,
)
from fedpw_flwr.wire.adjustment import HIDES_UPDATES, NEEDS_DENSE
from fedpw_flwr.wire.records import OTHER_METRICS_RECORD, identity_of

Reply = TypeVar("Reply", TrainReply, EvaluateReply)


def screen_train_replies(
    answers: Iterable[Answer], asked: AskedRound, identities: Identities
) -> tuple[list[TrainReply], list[BadReply], frozenset[str]]:
    """Separate the training replies that can be aggregated from those that cannot.

    Returns the usable ones in the order of client id; the others; and in a first round the names of
    the arrays that none of at least two usable replies has: they are private to the clients and no
    longer part of the global model.

    Raises
    ------
    UnusableRepliesError
        If all replies of a first round have the same fault; `MissingLossError` where it is that
        they lack the loss. If all that are usable come from one client, but from several nodes.
    """
    answers = list(answers)
    client_of = identities.by_node()
    read = partial(read_train_reply, asked=asked, owners=identities.owners)
    good, bad = _judged(answers, client_of, asked.asked, "train", asked.project.examples_key, read)
    private = _private_arrays(good, asked.model) if asked.is_first else frozenset()
    complete, lacking = _complete_replies(good, [n for n in asked.model if n not in private])
    bad += lacking
    unique, duplicates = _one_reply_per_client(complete, identities, client_of)
    if asked.is_first:
        # Two of many may be one client that was restarted at another node.
        most = 2 * len(complete) >= len(asked.asked)
        shared = bad if not complete else _of_one_identity(complete) if most else []
        refuse_shared_fault(shared, asked.server_round, metric_names(answers), asked.project)
        if not unique:
            _refuse_incompatible_clients(bad)
    return unique, bad + duplicates, private if unique else frozenset()


def screen_evaluate_replies(
    answers: Iterable[Answer],
    asked: Collection[int] | None,
    identities: Identities,
    project: Project,
) -> tuple[list[EvaluateReply], list[BadReply]]:
    """Separate the evaluation replies whose metrics can be aggregated from those that cannot.

    Both are returned, the usable ones in the order of client id. The metric names (and lengths of
    lists) that most replies share are taken as right. `asked` is None where the nodes are not
    known, as in a strategy that sends its own messages.
    """
    examples_key = project.examples_key
    client_of = identities.by_node()

    def read(node_id: int, content: RecordDict, metrics: MetricRecord) -> EvaluateReply:
        loss = needed_loss(content, metrics, project)
        for key in metrics:
            check_finite_metric(metrics, key)
        if examples_key in metrics:
            non_negative_metric(metrics, examples_key)
        stated = identity_of(content)
        client = client_of.get(node_id, node_id) if stated is None else stated
        return EvaluateReply(node_id, client, content, loss)

    good, bad = _judged(answers, client_of, asked, "evaluate", examples_key, read)
    shaped = [(metric_shape(only_metric_record(reply.content)), reply) for reply in good]
    shapes = Counter(shape for shape, _ in shaped)
    usual = max(shapes, key=lambda one: (shapes[one], len(one), sorted(one)), default=frozenset())
    for shape, reply in shaped:
        if shape != usual:
            found, expected = sorted(dict(shape)), sorted(dict(usual))
            reason = f"its metrics {found} are not those of the other clients, {expected}"
            bad.append(BadReply(reply.node_id, reply.client, reason))
    alike = [reply for shape, reply in shaped if shape == usual]
    unique, duplicates = _one_reply_per_client(alike, identities, client_of)
    return unique, bad + duplicates


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
            metrics = only_metric_record(content)
            if metrics.get(examples_key) == 0:
                bad.append(BadReply(node_id, client, f"{examples_key} is 0", "empty"))
                continue
            good.append(read(node_id, content, metrics))
        except ValueError as error:
            kind = error.kind if isinstance(error, Fault) else ""
            stray = unasked or answer.late
            bad.append(BadReply(node_id, client, str(error), kind=kind, stray=stray))
    return good, bad


def _refuse_incompatible_clients(bad: Sequence[BadReply]) -> None:
    """Raise a RuntimeError where every client failed because of a mod in front of FedPW's."""
    words = (NEEDS_DENSE, HIDES_UPDATES)
    told = [reply for reply in bad if reply.fate != "empty"]
    if told and all(
        reply.fate == "failed" and any(word in reply.reason for word in words) for reply in told
    ):
        raise RuntimeError(f"no client can take part: {told[0].reason}")


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
        fault = other_arrays(reply.result.tensors, expected)
        if missing <= returned:
            lacking = f"it lacks the arrays {listed(missing)}, which other clients return"
            fault = Fault(lacking, Kind.DISAGREED)
        partial.append(BadReply(reply.node_id, reply.client, str(fault), kind=fault.kind))
    return complete, partial


def _of_one_identity(replies: Sequence[TrainReply]) -> list[BadReply]:
    """Return what is wrong with replies that all say they are the same client; none where not."""
    stated = {identity_of(reply.content) for reply in replies}
    if len(stated) > 1 or None in stated:
        return []
    reason = f"it says it is client {replies[0].client}"
    return [
        BadReply(reply.node_id, reply.client, reason, kind=Kind.ONE_IDENTITY) for reply in replies
    ]


def _one_reply_per_client(
    replies: Sequence[Reply], identities: Identities, client_of: Mapping[int, int]
) -> tuple[list[Reply], list[BadReply]]:
    """Keep one reply a client: the node's that had the identity first, else last, else the lowest.

    A node without authentication has another id after a restart, and its old one never comes back:
    where the first is there again, it is the true one. Where one node sent several, their content
    decides, never their order.
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


def metric_names(answers: Iterable[Answer]) -> set[str]:
    """Return the names of all metrics of replies, also of those that no MetricRecord takes."""
    names: set[str] = set()
    for answer in answers:
        content = RecordDict() if answer.content is None else answer.content
        others = content.config_records.get(OTHER_METRICS_RECORD, ())
        names.update(*content.metric_records.values(), others)
    return names
