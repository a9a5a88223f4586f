"""FedPW as a strategy of Flower's Message API: one line changed in an existing ServerApp.

A thin class over the algorithm: it asks Flower's FedAvg to sample and send, screens what comes
back, hands the usable replies to the server step, and turns the result into Flower's records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedpw_flwr.algorithm import (
    FedPWSettings,
    ServerStep,
    WeightingState,
    classify_tensors,
    server_step,
)
from fedpw_flwr.algorithm.settings import distinct_names
from fedpw_flwr.device import available_device
from fedpw_flwr.strategy.quarantine import (
    Asked,
    BadReply,
    TrainReply,
    check_finite,
    screen_evaluate_replies,
    screen_train_replies,
)
from fedpw_flwr.strategy.records import ArrayTensors, encode_arrays
from fedpw_flwr.strategy.reply_metrics import alike_metrics, round_metrics

__all__ = ["FedPW"]

logger = logging.getLogger("flwr")

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


class FedPW(FedAvg):
    """Fair federated learning by parameter adjustment and adaptive weights.

    Implementation of FedPW (Guan et al., "Rethinking Fair Federated Learning from Parameter and
    Client View", NeurIPS 2025). A drop-in for Flower's FedAvg: clients stay as they are, as long as
    their training replies report the mean training loss.

    A reply that cannot be used (not finite, wrong shape, missing loss, ...) costs only itself: it
    is dropped, logged with client and reason, and counted in the round's metrics.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        Sampling of nodes, as in Flower's FedAvg.
    weighted_by_key : str (default: "num-examples")
        MetricRecord key by which metrics are averaged, and the aggregation weight where
        `adapt_weights` is False. Equal weights where no reply has it.
    arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in Flower's FedAvg.
    avg_drop_rate : float (default: 0.3)
        r̄, the mean share of an update's entries that is masked, in [0, 1).
    beta : float (default: 0.3)
        β, base momentum of the weights, in (0, 1].
    train_loss_key : str (default: "train_loss")
        MetricRecord key under which clients report their mean training loss.
    clip_weights : bool (default: True)
        Never give a client a negative weight. False is the paper's formula.
    adjust_parameters : bool (default: True)
        Parameter Adjustment; False is the ablation without it.
    adapt_weights : bool (default: True)
        Adaptive Weighted Aggregation; False is the ablation without it. Both False is FedAvg.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable arrays. None: all floating arrays except BatchNorm's running
        statistics.
    device : str | torch.device | None (default: None)
        Where the server step runs; None takes CUDA when there is one.

    Raises
    ------
    ValueError
        If a setting is outside its range, or `device` is not there.
    TypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> from fedpw_flwr import FedPW
    >>> strategy = FedPW(fraction_train=1.0, min_available_nodes=4)
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        *,
        avg_drop_rate: float = 0.3,
        beta: float = 0.3,
        train_loss_key: str = "train_loss",
        clip_weights: bool = True,
        adjust_parameters: bool = True,
        adapt_weights: bool = True,
        trainable: Sequence[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.settings = FedPWSettings(
            avg_drop_rate=avg_drop_rate,
            beta=beta,
            clip_weights=clip_weights,
            adapt_weights=adapt_weights,
            adjust_parameters=adjust_parameters,
            trainable=None if trainable is None else distinct_names(trainable),
        )
        if not isinstance(train_loss_key, str) or not train_loss_key:
            raise ValueError(f"train_loss_key must name a metric, got {train_loss_key!r}")
        self.train_loss_key = train_loss_key
        self.device = available_device(device)
        self.state = WeightingState()
        self._global_arrays: ArrayRecord | None = None
        self._dtypes: dict[str, torch.dtype] = {}
        self._asked_to_train = Asked()
        self._asked_to_evaluate: Asked | None = None
        self._owners: dict[int, int] = {}
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )

    def summary(self) -> None:
        """Log the method's settings and those of FedAvg."""
        settings = self.settings
        trainable = settings.trainable
        lines = (
            "├──> FedPW settings:",
            f"│\t├── Adaptive weights: {'on' if settings.adapt_weights else 'off'}"
            f" | beta ({settings.beta:g}) | clip negative ({settings.clip_weights})",
            f"│\t├── Parameter adjustment: {'on' if settings.adjust_parameters else 'off'}"
            f" | average drop rate ({settings.avg_drop_rate:g})",
            f"│\t├── Training loss key: '{self.train_loss_key}'",
            "│\t├── Trainable arrays: "
            + ("all but running statistics" if trainable is None else f"{len(trainable)} named"),
            f"│\t└── Server step on: {self.device}",
        )
        for line in lines:
            logger.info("\t%s", line)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model, as FedAvg; remember what was sent to whom.

        Raises
        ------
        ValueError
            If `trainable` names an array the model does not have, or an array of the model cannot
            be decoded or is not finite.
        TypeError
            If the model holds complex arrays, or `trainable` names one that is not floating.
        """
        arrays = self._in_model_dtypes(arrays)
        model = ArrayTensors(arrays)
        classify_tensors({name: model[name].dtype for name in model}, self.settings.trainable)
        for name in model:
            try:
                check_finite(name, model[name])
            except ValueError as error:
                raise ValueError(f"the global model of round {server_round}: {error}") from error
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._global_arrays = arrays
        self._asked_to_train = Asked(tuple(messages))
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
            metrics with FedPW's own: parallel lists ``fedpw-client-id``, ``fedpw-weight``,
            ``fedpw-p``, ``fedpw-q``, ``fedpw-drop-rate``, ``fedpw-loss`` over the participants, and
            the numbers ``fedpw-loss-term-share``, ``fedpw-amplification``, ``fedpw-quarantined``,
            ``fedpw-failed``.

        Raises
        ------
        MissingLossError
            If replies came and none of them reports the training loss.
        RuntimeError
            If `configure_train` was not called before.
        """
        if self._global_arrays is None:
            raise RuntimeError(
                "aggregate_train was called before configure_train: FedPW needs the model that "
                "the clients started from"
            )
        if not self._asked_to_train.messages:
            return self._global_arrays.copy(), None
        global_model = ArrayTensors(self._global_arrays)
        needs_loss = self.settings.adapt_weights or self.settings.adjust_parameters
        good, bad = screen_train_replies(
            replies,
            asked=self._asked_to_train,
            owners=self._owners,
            global_model=global_model,
            loss_key=self.train_loss_key if needs_loss else None,
            examples_key=self.weighted_by_key,
        )
        if not self.settings.adapt_weights:
            good, uncounted = _without_uncounted(good, self.weighted_by_key)
            bad += uncounted
        self._log_replies("aggregate_train", server_round, len(good), bad)
        if not good:
            logger.warning(
                "aggregate_train: round %s has no reply that can be used; the model stays as it is",
                server_round,
            )
            return self._global_arrays.copy(), round_metrics(None, [], bad)

        step = server_step(
            global_model,
            [reply.result for reply in good],
            self.state,
            self.settings,
            self.device,
        )
        arrays = encode_arrays(step.model)
        metrics = self._train_metrics(good, step, bad)
        self.state = step.state
        self._owners.update({reply.result.client: reply.node_id for reply in good})
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for evaluation, as FedAvg; remember whom."""
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        self._asked_to_evaluate = Asked(tuple(messages))
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the round's evaluation metrics over the replies that can be used.

        Returns
        -------
        MetricRecord | None
            The averaged metrics with ``fedpw-quarantined`` and ``fedpw-failed``; None where nobody
            was asked.
        """
        if self._asked_to_evaluate is not None and not self._asked_to_evaluate.messages:
            return None
        good, bad = screen_evaluate_replies(
            replies, self._asked_to_evaluate, self._owners, self.weighted_by_key
        )
        self._log_replies("aggregate_evaluate", server_round, len(good), bad)
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(round_metrics(None, [], bad))
        return metrics

    def _in_model_dtypes(self, arrays: ArrayRecord) -> ArrayRecord:
        """Give the arrays the dtypes they had in the first round.

        A server optimizer on top of this strategy computes in float64 and turns counters into
        floats; clients answer in the model's own dtypes.
        """
        model = ArrayTensors(arrays)
        dtypes = {name: model[name].dtype for name in model}
        if self._dtypes.keys() != dtypes.keys():
            self._dtypes = dtypes
        if self._dtypes == dtypes:
            return arrays
        return encode_arrays(
            {
                name: (model[name] if dtype.is_floating_point else model[name].round()).to(dtype)
                for name, dtype in self._dtypes.items()
            }
        )

    def _train_metrics(
        self, good: list[TrainReply], step: ServerStep, bad: list[BadReply]
    ) -> MetricRecord:
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(round_metrics(step, [reply.result for reply in good], bad))
        return metrics

    def _log_replies(
        self, phase: str, server_round: int, usable: int, bad: Sequence[BadReply]
    ) -> None:
        failed = sum(reply.failed for reply in bad)
        logger.info(
            "%s: Received %s usable results, %s quarantined and %s failures",
            phase,
            usable,
            len(bad) - failed,
            failed,
        )
        for reply in bad:
            who = f"node {reply.node_id}"
            if reply.client != reply.node_id:
                who = f"client {reply.client} ({who})"
            logger.warning(
                "%s: round %s, %s %s: %s",
                phase,
                server_round,
                who,
                "failed" if reply.failed else "quarantined",
                reply.reason,
            )


def _without_uncounted(
    replies: list[TrainReply], examples_key: str
) -> tuple[list[TrainReply], list[BadReply]]:
    """Set aside replies without a number of examples where others have one."""
    counted = [reply for reply in replies if reply.result.num_examples is not None]
    if not counted:
        return replies, []
    reason = f"its metrics lack {examples_key!r}, which weights the clients"
    return counted, [
        BadReply(reply.node_id, reply.result.client, reason)
        for reply in replies
        if reply.result.num_examples is None
    ]
