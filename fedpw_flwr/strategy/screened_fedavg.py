"""Flower's FedAvg on firmer ground: what FedPW and every baseline do alike in a round.

Nodes are sampled so that another run repeats it, and an evaluation reply that cannot be used costs
only itself. How updates are screened and weighted is each strategy's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import ClassVar, TypedDict, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedpw_flwr.rounds.faults import BadReply
from fedpw_flwr.rounds.metrics import alike_metrics, reply_counts
from fedpw_flwr.rounds.screening import Answer, EvaluateReply, answers_of_messages
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.strategy.sampling import NodeSampling

__all__ = ["FedAvgOptions", "MetricsAggregation", "ScreenedFedAvg"]

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


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
    train_metrics_aggr_fn: MetricsAggregation | None
    evaluate_metrics_aggr_fn: MetricsAggregation | None


class ScreenedFedAvg(FedAvg):
    """Sampling and evaluation of a strategy whose training is its own.

    Parameters
    ----------
    sampling : NodeSampling
        Chooses the nodes of each phase.
    **options : FedAvgOptions
        As in Flower's FedAvg.
    """

    metrics_prefix: ClassVar[str] = ""
    """Stands before the names of the strategy's own metrics."""

    def __init__(self, sampling: NodeSampling, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(**options)
        self.sampling = sampling
        self._asked_to_train: tuple[Message, ...] = ()
        self._asked_to_evaluate: tuple[Message, ...] | None = None

    @property
    @abstractmethod
    def standstill(self) -> Standstill:
        """How long the model has not changed."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds as FedAvg does, and say at the end if the last ones changed nothing."""
        result = super().start(
            *(grid, initial_arrays, num_rounds, timeout),
            *(train_config, evaluate_config, evaluate_fn),
        )
        self.standstill.log_at_end()
        return result

    def sampled(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample nodes for training, and write them Flower's message with the model."""
        with self.sampling.taking_part(self, "train", server_round, grid) as present:
            messages = list(super().configure_train(server_round, arrays, config, present))
        self._asked_to_train = tuple(messages)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for evaluation, as FedAvg; remember whom."""
        with self.sampling.taking_part(self, "evaluate", server_round, grid) as present:
            messages = tuple(super().configure_evaluate(server_round, arrays, config, present))
        self._asked_to_evaluate = messages
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the round's evaluation metrics over the replies that can be used.

        Returns
        -------
        MetricRecord | None
            The averaged metrics with the counts ``quarantined``, ``failed`` and ``empty`` (FedPW's
            names begin with ``fedpw-``); None where nobody was asked.
        """
        asked = self._asked_to_evaluate
        if asked is not None and not asked:
            return None
        good, bad = self._screened_evaluation(
            server_round,
            answers_of_messages(replies, asked or ()),
            None if asked is None else {message.metadata.dst_node_id for message in asked},
        )
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(reply_counts(bad, self.metrics_prefix))
        return metrics

    @abstractmethod
    def _screened_evaluation(
        self, server_round: int, answers: Iterable[Answer], asked: Collection[int] | None
    ) -> tuple[Sequence[EvaluateReply], Sequence[BadReply]]:
        """Separate the evaluation replies that can be used from those that cannot, and log them."""

    def _averaged_train_metrics(self, contents: Sequence[RecordDict]) -> MetricRecord:
        """Average what the usable training replies report."""
        alike = alike_metrics(contents, self.weighted_by_key)
        return self.train_metrics_aggr_fn(alike, self.weighted_by_key) if alike else MetricRecord()
