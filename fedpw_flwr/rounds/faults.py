"""What can be wrong with a reply, and what to do where all replies of a round have it.

One client that answers oddly is broken, and costs its own reply. Where all of them answer oddly in
the same way, nobody is: the project is written so, and each round would be lost. That is an error
in the first round, and it says what to change.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Fate = Literal["quarantined", "failed", "empty"]
"""What becomes of a reply that is set aside."""


class Kind(StrEnum):
    """Faults that all clients of a project may well have."""

    LOSSLESS = "no loss"
    METRICLESS = "no MetricRecord"
    NOT_A_NUMBER = "a loss that is not one number"
    BELOW_ZERO = "a negative loss"
    NOT_FINITE = "a loss or arrays that are not finite, or far too large"
    ONE_IDENTITY = "the same client id"
    RECORDS = "not just one ArrayRecord and one MetricRecord"
    ARRAYS = "other arrays than the model's"
    DISAGREED = "other arrays than those of other clients"
    SHAPES = "an array of another shape than the model's"
    DTYPES = "an array of another dtype than the model's"


_SAME_MODEL = (
    "Begin with the arrays that the clients return, in their names, order, shapes and kinds: for a "
    "PyTorch model initial_arrays=ArrayRecord(model.state_dict()) on the server and "
    "ArrayRecord(model.state_dict()) in the train function, from models built alike"
)

_ONE_OF_EACH = (
    "Let the train function return one of each:\n"
    '    RecordDict({{"arrays": ArrayRecord(...), "metrics": MetricRecord(...)}})'
)

_UNEVALUATED = (
    "{method} reads it from the metric {loss_key!r}: let every client's evaluate function return "
    'it, or name the metric your clients report: {method}(evaluate_loss_key="...")'
)

_FROM_EVALUATION = (
    ', or take the loss of the clients\' evaluation, a round late: {method}(loss_source="evaluate")'
)

_REMEDIES: dict[str, str] = {
    Kind.LOSSLESS: (
        "{method} weights clients by it and reads it from the metric {loss_key!r}. Let every "
        "client's train function return it, for example\n"
        '    MetricRecord({{"{loss_key}": mean_loss_over_all_batches, '
        '"{examples_key}": len(trainset)}})\n'
        "or, from a NumPyClient,\n"
        '    return parameters, num_examples, {{"{loss_key}": mean_loss_over_all_batches}}\n'
        'or name the metric your clients report: {method}(train_loss_key="...")'
    ),
    Kind.NOT_A_NUMBER: (
        "Let the {task} function report one number, the mean over all local batches:\n"
        '    MetricRecord({{"{loss_key}": sum(losses) / len(losses), ...}})\n'
        "or, from a NumPyClient,\n"
        '    return parameters, num_examples, {{"{loss_key}": sum(losses) / len(losses)}}'
    ),
    Kind.BELOW_ZERO: (
        "{method} weights clients by their losses and takes none below 0. Log-likelihoods, ELBOs, "
        "rewards and some contrastive losses are. Let the {task} function report another measure "
        "that falls to 0 as training succeeds (a cross-entropy, a squared error), and name it: "
        '{method}({task}_loss_key="...")'
    ),
    Kind.NOT_FINITE: (
        "Training diverges on every client, or divides by the length of an empty list: print the "
        "loss in the {task} function, lower the learning rate, check the data, or skip what is not "
        "finite in the mean under {loss_key!r}"
    ),
    Kind.ONE_IDENTITY: (
        "One of them would train and the others be left out. Give each client a number of its own, "
        "for instance its partition:\n"
        '    ConfigRecord({{"client-id": context.node_config["partition-id"]}})\n'
        "or, from a NumPyClient,\n"
        '    FedPWClient(client, client_id=context.node_config["partition-id"])'
    ),
    Kind.METRICLESS: _ONE_OF_EACH,
    Kind.RECORDS: _ONE_OF_EACH,
    Kind.ARRAYS: _SAME_MODEL,
    Kind.DISAGREED: (
        "Clients may keep arrays to themselves, but all of them the same ones: let every client's "
        "train function return arrays of the same names"
    ),
    Kind.SHAPES: (
        f"{_SAME_MODEL}. A single number () is not an array of one, (1,): numpy.reshape turns "
        "one into the other"
    ),
    Kind.DTYPES: (
        f"{_SAME_MODEL}. Floating arrays are cast to the model's dtype; integers are not: give "
        "initial_arrays those that the clients have, with astype"
    ),
}


class UnusableRepliesError(ValueError):
    """Replies of a run cannot be used for a reason that is no single client's."""


class MissingLossError(UnusableRepliesError):
    """No client of a round reported the training loss that the method weights clients by."""


class Fault(ValueError):
    """What is wrong with one reply: what arrived and what should have, and its `Kind` if any."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class BadReply:
    """A reply that was set aside.

    `client` is the client id where it gave one, else the node id. Its fate is "failed" where the
    client raised or was lost (Flower reports an error), "empty" where it has no data, which is no
    fault, and "quarantined" where it answered with something that cannot be used. `kind` is its
    fault's `Kind`, if any; `stray` is True of what is no answer to this round's message.
    """

    node_id: int
    client: int
    reason: str
    fate: Fate = "quarantined"
    kind: str = ""
    stray: bool = False


@dataclass(frozen=True)
class Project:
    """The names by which a project calls things, for what its errors tell it to change.

    `method` is the strategy's name, the keys are those of a MetricRecord. A reply without the loss
    is broken where `needs_loss` is set; a reply may lack the number of examples. `task` is what was
    asked of the clients, `can_evaluate` whether the method may take the loss from evaluation.
    """

    method: str
    loss_key: str
    examples_key: str
    needs_loss: bool = True
    task: Literal["train", "evaluate"] = "train"
    can_evaluate: bool = False

    @property
    def loss_name(self) -> str:
        """What the loss is called in messages."""
        return "training loss" if self.task == "train" else "evaluation loss"

    def remedy(self, kind: str) -> str:
        """Return what to change where all clients have a fault of a kind; "" for a client's own."""
        text = _REMEDIES.get(kind, "")
        if kind == Kind.LOSSLESS and self.task == "evaluate":
            text = _UNEVALUATED
        elif kind == Kind.LOSSLESS and self.can_evaluate:
            text += _FROM_EVALUATION
        return text.format(**vars(self))


def refuse_shared_fault(
    bad: Sequence[BadReply], server_round: int, reported: Collection[str], project: Project
) -> None:
    """Raise `UnusableRepliesError` where all replies of two nodes or more have one kind of fault.

    It is a `MissingLossError` where they lack the loss.
    """
    broken = [reply for reply in bad if reply.fate == "quarantined" and not reply.stray]
    kinds = {reply.kind for reply in broken}
    if project.needs_loss and Kind.METRICLESS in kinds:
        kinds = kinds - {Kind.METRICLESS} | {Kind.LOSSLESS}
    if len({reply.node_id for reply in broken}) < 2 or len(kinds) > 1 or kinds == {""}:
        return
    (kind,) = kinds
    if kind == Kind.LOSSLESS:
        raise MissingLossError(
            f"no client reported its {project.loss_name} in round {server_round}; "
            f"{_arrived(project, sorted(set(reported) - {project.examples_key}))} "
            f"{project.remedy(kind)}"
        )
    first = min(broken, key=lambda reply: reply.node_id)
    raise UnusableRepliesError(
        f"all {len(broken)} replies of round {server_round} have {kind}, so it is how the project "
        f"is written and not a client's fault. From node {first.node_id} came: {first.reason}. "
        f"{project.remedy(kind)}"
    )


def _arrived(project: Project, reported: list[str]) -> str:
    """Return which metrics came in place of the loss, and which of them may be it."""
    if not reported:
        return "no metrics arrived."
    told = f"the metrics that arrived are {reported}"
    words = {
        name: re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        for name in reported
    }

    own_words: tuple[str, ...] = ("train",)
    others: tuple[str, ...] = ("val", "eval", "test")
    if project.task == "evaluate":
        own_words, others = others, own_words

    def rank(name: str) -> tuple[bool, bool, bool, float]:
        likeness = difflib.SequenceMatcher(None, name, project.loss_key).ratio()
        of_task = any(word.startswith(own_words) for word in words[name])
        return not name.lower().endswith("loss"), not of_task, words[name] != ["loss"], -likeness

    own = [name for name in reported if not any(word.startswith(others) for word in words[name])]
    alike = difflib.get_close_matches(project.loss_key, own, n=max(1, len(own)))
    meant = [name for name in own if name.lower().endswith("loss") or name in alike]
    if not meant:
        return f"{told}."
    return f"{told}: did you mean {project.task}_loss_key={min(meant, key=rank)!r}?"
