"""What the strategies that FedPW is compared with have in common: everything but their weights.

A comparison is only one of methods if the rest is the same. Replies are screened, summed and
recorded here as FedPW's are: one broken client costs its own reply and nothing else, no bit depends
on the order in which replies came, and a run goes on from a checkpoint as if it had not stopped.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult, classify_tensors
from fedpw_flwr.baselines.averaging import RoundWeights, moved_tensors
from fedpw_flwr.rounds.faults import BadReply, Project
from fedpw_flwr.rounds.global_model import check_model, without_private
from fedpw_flwr.rounds.identities import Identities
from fedpw_flwr.rounds.metrics import reply_counts
from fedpw_flwr.rounds.overgrown import step_without_overgrown, too_large
from fedpw_flwr.rounds.screening import (
    Answer,
    AskedRound,
    EvaluateReply,
    TrainReply,
    all_finite,
    answers_of_messages,
    screen_evaluate_replies,
    screen_train_replies,
    without_uncounted,
)
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import FedAvgOptions, ScreenedFedAvg
from fedpw_flwr.wire.arrays import ArrayTensors, take_as_arrays

__all__ = ["FedAvgOptions", "ScreenedStrategy"]

logger = logging.getLogger("flwr")


class ScreenedStrategy(ScreenedFedAvg):
    """A strategy that says what each client counts in a round; the rest is done here.

    Parameters
    ----------
    train_loss_key : str (default: "train_loss")
        MetricRecord key under which clients report their mean training loss.
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    ValueError
        If `train_loss_key` names nothing.
    """

    needs_loss: ClassVar[bool] = False
    """Whether a reply without the training loss is broken."""

    needs_examples: ClassVar[bool] = False
    """Whether a reply without the number of examples is broken, where others have it."""

    def __init__(
        self, *, train_loss_key: str = "train_loss", **options: Unpack[FedAvgOptions]
    ) -> None:
        if not isinstance(train_loss_key, str) or not train_loss_key:
            raise ValueError(f"train_loss_key must name a metric, got {train_loss_key!r}")
        super().__init__(NodeSampling(), **options)
        self.train_loss_key = train_loss_key
        self.rounds = 0
        """Rounds that were aggregated so far."""
        self.identities = Identities()
        self._standstill = Standstill()
        self._global_arrays: ArrayRecord | None = None

    @property
    def standstill(self) -> Standstill:
        """How long the model has not changed."""
        return self._standstill

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters, by name, as JSON can hold them."""
        return {}

    @abstractmethod
    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Return what each client counts in this round. Changes nothing.

        Parameters
        ----------
        global_model : Mapping[str, Tensor]
            w.
        results : Sequence[ClientResult]
            The usable results, at least one, in the order of client identity.

        Returns
        -------
        tuple[RoundWeights, Any]
            The weights, and the method's memory after the round; None where it has none.
        """

    def remember(self, memory: Any) -> None:
        """Take the memory that `weigh` returned: its round counts."""

    def saved_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return everything that is carried from round to round: JSON, and tensors by name."""
        return {
            "rounds": self.rounds,
            **self.identities.to_dict(),
            **self.sampling.saved_state(),
        }, {}

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set the strategy to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        try:
            rounds = int(state["rounds"])
            identities = Identities.from_dict(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved state of {type(self).__name__}: {error!r}") from error
        self.rounds, self.identities = rounds, identities
        self.sampling.restore_state(state)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return {"train_loss_key": self.train_loss_key, **self.settings}

    def summary(self) -> None:
        """Log the method's settings and those of FedAvg."""
        logger.info("\t├──> %s settings:", type(self).__name__)
        for name, value in self.settings.items():
            logger.info("\t│\t├── %s (%s)", name, value)
        logger.info("\t│\t└── Training loss key: '%s'", self.train_loss_key)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model, as FedAvg.

        Raises
        ------
        ValueError
            If no array of the model is floating, or one cannot be decoded or is not finite.
        TypeError
            If the model holds complex arrays.
        """
        classify_tensors(ArrayTensors(arrays))
        check_model(arrays, server_round)
        self._global_arrays = arrays
        return self.sampled(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the round's training replies into the next model.

        Parameters
        ----------
        server_round : int
            Flower's round number, for the log.
        replies : Iterable[Message]
            Replies to the messages of `configure_train`, in any order.

        Returns
        -------
        tuple[ArrayRecord | None, MetricRecord | None]
            The next model (the current one where no reply can be used), and the clients' averaged
            metrics with the parallel lists ``client-id``, ``client-weight`` (c_k: what each update
            was multiplied by before they were summed) and ``client-loss`` (where all report it),
            and the counts ``quarantined``, ``failed`` and ``empty``. In the first round the next
            model is without the arrays that no client returned.

        Raises
        ------
        UnusableRepliesError
            If all replies of the first round have the same fault (`MissingLossError`: the method
            needs losses, and none reports one), or three rounds from the start had none that can be
            used.
        RuntimeError
            If `configure_train` was not called before.
        """
        if self._global_arrays is None:
            raise RuntimeError(
                f"aggregate_train was called before configure_train: {type(self).__name__} needs "
                "the model that the clients started from"
            )
        if not self._asked_to_train:
            return self._global_arrays.copy(), None
        nodes = dict.fromkeys(message.metadata.dst_node_id for message in self._asked_to_train)
        answers = answers_of_messages(replies, self._asked_to_train)
        project = Project(
            *(type(self).__name__, self.train_loss_key, self.weighted_by_key), self.needs_loss
        )
        is_first = self.rounds == 0
        asked = AskedRound(
            server_round, nodes, ArrayTensors(self._global_arrays), project, is_first
        )
        good, bad, private = screen_train_replies(answers, asked, self.identities)
        if self.needs_examples:
            good, uncounted = without_uncounted(good, self.weighted_by_key)
            bad += uncounted
        self._global_arrays = without_private(self._global_arrays, private)
        global_model = ArrayTensors(self._global_arrays)
        stepped, good, overgrown = step_without_overgrown(
            good, global_model, lambda replies: self._attempt(replies, global_model)
        )
        bad += overgrown
        self.identities.log_replies("aggregate_train", server_round, len(good), bad)
        self.identities.log_silent("aggregate_train", server_round, nodes, answers)
        if stepped is None:
            silent = len(nodes.keys() - {answer.node_id for answer in answers})
            self._standstill.add(
                *("aggregate_train", server_round, bad, silent),
                from_start=is_first,
                project=project,
            )
            return self._global_arrays.copy(), self._metrics((), (), bad)
        model, weights, memory = stepped
        arrays = take_as_arrays(model)
        self.remember(memory)
        self.rounds += 1
        self._standstill = Standstill()
        self.identities.note("aggregate_train", server_round, good)
        self.sampling.note_replies({reply.node_id: reply.content for reply in good})
        return arrays, self._metrics(good, weights.step, bad)

    def _screened_evaluation(
        self, server_round: int, answers: Iterable[Answer], asked: Collection[int] | None
    ) -> tuple[Sequence[EvaluateReply], Sequence[BadReply]]:
        good, bad = screen_evaluate_replies(answers, asked, self.identities, self.weighted_by_key)
        self.identities.log_replies("aggregate_evaluate", server_round, len(good), bad)
        return good, bad

    def _attempt(
        self, good: Sequence[TrainReply], global_model: ArrayTensors
    ) -> tuple[tuple[dict[str, Tensor], RoundWeights, Any], str | None]:
        """Aggregate as far as the first tensor that no next round could begin with."""
        results = [reply.result for reply in good]
        model: dict[str, Tensor] = {}
        with torch.no_grad():
            weights, memory = self.weigh(global_model, results)
            for name, tensor in moved_tensors(global_model, results, weights):
                if too_large(name, tensor):
                    return (model, weights, memory), name
                model[name] = tensor
        return (model, weights, memory), None

    def _metrics(
        self, good: Sequence[TrainReply], weights: Sequence[float], bad: Sequence[BadReply]
    ) -> MetricRecord:
        metrics = self._averaged_train_metrics([reply.content for reply in good])
        if good:
            metrics["client-id"] = [reply.client for reply in good]
            metrics["client-weight"] = list(weights)
            losses = [_reported(reply.content, self.train_loss_key) for reply in good]
            known = [loss for loss in losses if loss is not None]
            if len(known) == len(losses):
                metrics["client-loss"] = known
        metrics.update(reply_counts(bad))
        return metrics


def _reported(content: RecordDict, key: str) -> float | None:
    """Return a number that a client reports; None where it does not, or it is not finite."""
    (metrics,) = content.metric_records.values()
    value = metrics.get(key)
    if not isinstance(value, int | float) or not all_finite(value):
        return None
    return float(value)
