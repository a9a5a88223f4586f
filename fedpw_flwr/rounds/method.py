"""What a method is to a round: FedPW, its ablations and every baseline are one.

Given the global model and the usable replies, a method says what the next model is. The `Driver`
does the rest alike for all methods: it checks, screens, identifies and records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord
from torch import Tensor

from fedpw_flwr.rounds.faults import BadReply
from fedpw_flwr.rounds.replies import TrainReply
from fedpw_flwr.wire.adjustment import AdjustmentRequest


@dataclass(frozen=True)
class Requests:
    """What nodes are asked for beside training: what each is to do to its update.

    Nodes that are missing have nothing to do. The configuration of each of the others holds its
    request and the `shared` entries.
    """

    by_node: Mapping[int, AdjustmentRequest] = field(default_factory=dict)
    shared: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a method makes of the replies of a round.

    `model` is the next global model; order, shapes and dtypes are those of the present one.
    `metrics` are what is recorded of the round, lists over the participants; `warnings` what the
    log is to say about single clients.
    """

    model: dict[str, Tensor]
    memory: Any
    metrics: MetricRecord
    warnings: Sequence[str] = ()


class Method(ABC):
    """How the next global model comes from the present one and the clients' replies."""

    @property
    def title(self) -> str:
        """The method's name in logs and errors."""
        return type(self).__name__

    train_loss_key: str
    """Metric under which clients report their mean training loss."""

    evaluate_loss_key: str = ""
    """Metric of federated evaluation that can take its place; "" where none can."""

    needs_evaluation = False
    """Whether an evaluation reply without it is broken."""

    needs_loss = False
    """Whether a reply without the training loss is broken."""

    needs_examples = False
    """Whether a reply without the number of examples is broken, where others have it."""

    asks_by_client = False
    """Whether what a node is asked for depends on which client it is."""

    keeps_sign = False
    """Whether no server optimizer may take an array below 0 that has no negative entry."""

    @property
    @abstractmethod
    def rounds_done(self) -> int:
        """Rounds that were aggregated so far."""

    @property
    def trainable(self) -> Sequence[str] | None:
        """Names of the trainable arrays; None where kinds and names of the arrays tell."""
        return None

    @abstractmethod
    def step(self, model: Mapping[str, Tensor], replies: Sequence[TrainReply]) -> Step:
        """Return the next model, from one reply or more, in the order of client id.

        Changes nothing: a step whose model is too large to go on from does not count.
        """

    @abstractmethod
    def remember(self, memory: Any) -> None:
        """Take the memory of a step: its round counts."""

    def requests(self, names: Sequence[str], clients: Mapping[int, int]) -> Requests:
        """Return what each node is to be asked for, from the model's names and client by node."""
        return Requests()

    def note_evaluation(self, losses: Mapping[int, float]) -> None:  # noqa: B027
        """Take the losses of an evaluation by client, where they are needed."""

    def screen(
        self, replies: Sequence[TrainReply], model: Mapping[str, Tensor]
    ) -> tuple[list[TrainReply], list[BadReply]]:
        """Set aside replies that this method alone cannot use."""
        return list(replies), []

    def leave_out(self, private: Collection[str]) -> None:  # noqa: B027
        """Forget arrays that clients keep to themselves: they leave the model."""

    @abstractmethod
    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what the method carries from round to round: JSON, and tensors by name."""

    @abstractmethod
    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set it to what `saved_memory` returned, among other keys.

        KeyError, TypeError, AttributeError or ValueError if it is not such a memory.
        """
