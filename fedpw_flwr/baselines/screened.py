"""What the strategies that FedPW is compared with have in common: everything but their weights.

A comparison is only one of methods if the rest is the same. Replies are screened, summed and
recorded here as FedPW's are: one broken client costs its own reply and nothing else, no bit depends
on the order in which replies came, and a run goes on from a checkpoint as if it had not stopped.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, kinds_of, moved_tensors
from fedpw_flwr.strategy.attendance import Attendance
from fedpw_flwr.strategy.draws import Draws, Phase, all_of, share_of
from fedpw_flwr.strategy.quarantine import (
    BadReply,
    MissingLossError,
    TrainReply,
    all_finite,
    answers_of_messages,
    check_finite,
    screen_evaluate_replies,
    screen_train_replies,
)
from fedpw_flwr.strategy.reply_metrics import alike_metrics
from fedpw_flwr.strategy.roll_call import RollCall
from fedpw_flwr.strategy.server_rounds import log_replies
from fedpw_flwr.wire.arrays import ArrayTensors, take_as_arrays

__all__ = ["FedAvgOptions", "ScreenedStrategy"]

logger = logging.getLogger("flwr")


class FedAvgOptions(TypedDict, total=False):
    """Options of Flower's FedAvg, which every strategy here passes on."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None
    evaluate_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None


class ScreenedStrategy(FedAvg):
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
        super().__init__(**options)
        self.train_loss_key = train_loss_key
        self.asks_identities = False
        """Whether nodes are asked who they are, where some are drawn: by a run with checkpoints,
        because clients that cannot answer log an error."""
        self.draws = Draws()
        """Draws the clients of a round."""
        self._roll_call = RollCall()
        self.rounds = 0
        """Rounds that were aggregated so far."""
        self._owners: dict[int, int] = {}
        self._homes: dict[int, int] = {}
        self._global_arrays: ArrayRecord | None = None
        self._asked_to_train: tuple[Message, ...] = ()
        self._asked_to_evaluate: tuple[Message, ...] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters, by name, as JSON can hold them."""
        return {}

    @abstractmethod
    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Say what each client counts in this round. Changes nothing.

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
            "owners": {str(client): node for client, node in self._owners.items()},
            "homes": {str(client): node for client, node in self._homes.items()},
            "seed": self.draws.seed,
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
            owners = {int(client): int(node) for client, node in state["owners"].items()}
            homes = {int(client): int(node) for client, node in state["homes"].items()}
            draws = Draws(state["seed"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved state of {type(self).__name__}: {error!r}") from error
        self.rounds, self._owners, self._homes = rounds, owners, homes
        self.draws = draws

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
            If an array of the model cannot be decoded or is not finite.
        TypeError
            If the model holds complex arrays.
        """
        model = ArrayTensors(arrays)
        kinds_of(model)
        for name in model:
            try:
                check_finite(name, model[name])
            except ValueError as error:
                raise ValueError(f"the global model of round {server_round}: {error}") from error
        with self._drawn(grid, "train", server_round) as drawn:
            messages = tuple(super().configure_train(server_round, arrays, config, drawn))
        self._global_arrays = arrays
        self._asked_to_train = messages
        return messages

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
            and the counts ``quarantined`` and ``failed``.

        Raises
        ------
        MissingLossError
            If the method needs losses, replies came, and none of them reports one.
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
        global_model = ArrayTensors(self._global_arrays)
        replies = list(replies)
        good, bad = self._screened(replies, global_model)
        stepped, good, overgrown = self._step(good, global_model)
        bad += overgrown
        log_replies("aggregate_train", server_round, len(good), bad)
        _log_silent(server_round, self._asked_to_train, replies)
        if stepped is None:
            logger.warning(
                "aggregate_train: round %s has no reply that can be used; the model stays as it is",
                server_round,
            )
            return self._global_arrays.copy(), self._metrics((), (), bad)
        model, weights, memory = stepped
        arrays = take_as_arrays(model)
        self.remember(memory)
        self.rounds += 1
        for reply in good:
            self._owners[reply.client] = reply.node_id
            self._homes.setdefault(reply.client, reply.node_id)
        return arrays, self._metrics(good, weights.step, bad)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for evaluation, as FedAvg; remember whom."""
        with self._drawn(grid, "evaluate", server_round) as drawn:
            messages = tuple(super().configure_evaluate(server_round, arrays, config, drawn))
        self._asked_to_evaluate = messages
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the round's evaluation metrics over the replies that can be used.

        Returns
        -------
        MetricRecord | None
            The averaged metrics with ``quarantined`` and ``failed``; None where nobody was asked.
        """
        asked = self._asked_to_evaluate
        if asked is not None and not asked:
            return None
        good, bad = screen_evaluate_replies(
            answers_of_messages(replies, asked or ()),
            None if asked is None else {message.metadata.dst_node_id for message in asked},
            self._owners,
            self.weighted_by_key,
            homes=self._homes,
        )
        log_replies("aggregate_evaluate", server_round, len(good), bad)
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(_counts(bad))
        return metrics

    @contextmanager
    def _drawn(self, grid: Grid, phase: Phase, server_round: int) -> Iterator[Grid]:
        """Draw nodes for a phase of a round, as many as Flower does."""
        fraction, least = share_of(self, phase)
        if fraction in (0.0, 1.0):
            yield grid
            return
        # For ever, as Flower does.
        nodes = Attendance(None, "stop").wait(
            grid.get_node_ids, max(self.min_available_nodes, least)
        )
        size = max(int(len(nodes) * fraction), least)
        ordered = self._roll_call.ordered(grid, nodes) if self.asks_identities else sorted(nodes)
        drawn = self.draws.draw(phase, server_round, ordered, size)
        logger.info("configure_%s: Drew %s nodes (out of %s)", phase, size, len(nodes))
        with all_of(grid, self, phase, drawn) as listed:
            yield listed

    def _screened(
        self, replies: Iterable[Message], global_model: ArrayTensors
    ) -> tuple[list[TrainReply], list[BadReply]]:
        """Separate the replies that can be aggregated from those that cannot."""
        try:
            good, bad = screen_train_replies(
                answers_of_messages(replies, self._asked_to_train),
                asked={message.metadata.dst_node_id: None for message in self._asked_to_train},
                owners=self._owners,
                global_model=global_model,
                loss_key=self.train_loss_key if self.needs_loss else None,
                examples_key=self.weighted_by_key,
                homes=self._homes,
                loss_was_reported=self.rounds > 0,
            )
        except MissingLossError as error:
            raise MissingLossError(
                f"{type(self).__name__} weights clients by their mean training loss, and no client "
                f"reports the metric {self.train_loss_key!r}: let the clients return it, or name "
                f"the one they report with train_loss_key"
            ) from error
        uncounted = [reply for reply in good if reply.result.num_examples is None]
        if self.needs_examples and uncounted and len(uncounted) < len(good):
            reason = f"its metrics lack {self.weighted_by_key!r}, which weights the clients"
            bad += [BadReply(reply.node_id, reply.client, reason) for reply in uncounted]
            good = [reply for reply in good if reply.result.num_examples is not None]
        return good, bad

    def _step(
        self, good: list[TrainReply], global_model: ArrayTensors
    ) -> tuple[
        tuple[dict[str, Tensor], RoundWeights, Any] | None, list[TrainReply], list[BadReply]
    ]:
        """Aggregate; set aside a reply that would make a model no next round could begin with."""
        overgrown: list[BadReply] = []
        with torch.no_grad():
            while good:
                results = [reply.result for reply in good]
                weights, memory = self.weigh(global_model, results)
                model: dict[str, Tensor] = {}
                for name, tensor in moved_tensors(global_model, results, weights):
                    if _too_large(name, tensor):
                        break
                    model[name] = tensor
                else:
                    return (model, weights, memory), good, overgrown
                start = global_model[name].double()
                largest = max(
                    good, key=lambda reply: float((reply.result.tensors[name] - start).norm())
                )
                reason = f"with it, tensor {name!r} of the next model would be too large"
                overgrown.append(BadReply(largest.node_id, largest.client, reason))
                good = [reply for reply in good if reply is not largest]
        return None, good, overgrown

    def _metrics(
        self, good: Sequence[TrainReply], weights: Sequence[float], bad: Sequence[BadReply]
    ) -> MetricRecord:
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        if good:
            metrics["client-id"] = [reply.client for reply in good]
            metrics["client-weight"] = list(weights)
            losses = [_reported(reply.content, self.train_loss_key) for reply in good]
            known = [loss for loss in losses if loss is not None]
            if len(known) == len(losses):
                metrics["client-loss"] = known
        metrics.update(_counts(bad))
        return metrics


def _log_silent(server_round: int, asked: Sequence[Message], replies: Sequence[Message]) -> None:
    """Name the nodes of which nothing came back before the round ended."""
    answered = {answer.node_id for answer in answers_of_messages(replies, asked)}
    for node in sorted({message.metadata.dst_node_id for message in asked} - answered):
        logger.warning("aggregate_train: round %s, node %s did not answer", server_round, node)


def _too_large(name: str, tensor: Tensor) -> bool:
    try:
        check_finite(name, tensor)
    except ValueError:
        return True
    return False


def _reported(content: RecordDict, key: str) -> float | None:
    """Return a number that a client reports; None where it does not, or it is not finite."""
    (metrics,) = content.metric_records.values()
    value = metrics.get(key)
    if not isinstance(value, int | float) or not all_finite(value):
        return None
    return float(value)


def _counts(bad: Sequence[BadReply]) -> MetricRecord:
    failed = sum(reply.failed for reply in bad)
    return MetricRecord({"quarantined": len(bad) - failed, "failed": failed})
