"""Flower's FedAvg on firmer ground: what FedPW and every baseline are behind the Message API.

`SampledFedAvg` draws nodes so that another run repeats it. `ScreenedFedAvg` plays its rounds with a
`Driver`: one broken client costs its own reply, and no bit depends on the order of replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Result
from torch import Tensor

from fedpw_flwr.rounds.driver import Driver
from fedpw_flwr.rounds.metrics import alike_metrics, reply_counts
from fedpw_flwr.rounds.replies import answers_of_messages
from fedpw_flwr.strategy.sampling import NodeSampling, Phase
from fedpw_flwr.strategy.step_on_top import Driven, StepOnTrained, stand_beside

_STEP_ON_TOP = (FedAdam, FedAdagrad, FedYogi, FedAvgM)
"""Flower's strategies that take a step on the aggregate of the class behind them."""


class SampledFedAvg(FedAvg):
    """Flower's FedAvg, with nodes that are waited for and drawn as `NodeSampling` does."""

    sampling: NodeSampling

    def choose_nodes(self, phase: Phase, server_round: int, grid: Grid) -> list[int]:
        """Wait for nodes, and return those that take part in a phase."""
        fraction, least = self.fraction_evaluate, self.min_evaluate_nodes
        if phase == "train":
            fraction, least = self.fraction_train, self.min_train_nodes
        if fraction == 0.0:
            return []
        return self.sampling.choose(
            grid, phase, server_round, fraction, least, self.min_available_nodes
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the nodes that train."""
        nodes = self.choose_nodes("train", server_round, grid)
        return self._messages("train", server_round, arrays, config, dict.fromkeys(nodes))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the nodes that evaluate."""
        nodes = self.choose_nodes("evaluate", server_round, grid)
        return self._messages("evaluate", server_round, arrays, config, dict.fromkeys(nodes))

    def _messages(
        self,
        phase: Phase,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        entries: Mapping[int, Mapping[str, bytes] | None],
    ) -> tuple[Message, ...]:
        """Write each node its message: model and configuration, with its own entries added."""
        if entries:
            config["server-round"] = server_round
        alike = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        messages = []
        for node, own in entries.items():
            content = alike
            if own:
                config_of_node = ConfigRecord({**config, **own})
                content = RecordDict({**alike, self.configrecord_key: config_of_node})
            messages.append(Message(content, node, phase))
        return tuple(messages)


class ScreenedFedAvg(Driven, SampledFedAvg):
    """A strategy whose rounds a `Driver` plays."""

    metrics_prefix: ClassVar[str] = ""
    """Stands before the names of the counts in the strategy's metrics."""

    def __init__(
        self, driver: Driver, sampling: NodeSampling, *positional: Any, **options: Any
    ) -> None:
        super().__init__(*positional, **options)
        self.driver = driver
        self.sampling = sampling
        self._asked_to_train: tuple[Message, ...] = ()
        self._asked_to_evaluate: tuple[Message, ...] | None = None

    def __init_subclass__(cls) -> None:
        """Refuse a strategy beside this one that would keep it from working, with a TypeError."""
        super().__init_subclass__()
        setting_up = {"configure_train", "configure_evaluate"}
        stand_beside(
            cls, ScreenedFedAvg, FedAvg, _STEP_ON_TOP, StepOnTrained, "aggregate_train", setting_up
        )

    def saved_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is carried from round to round: JSON, and tensors by name."""
        state, tensors = super().saved_state()
        return {**state, **self.sampling.saved_state()}, tensors

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set the strategy to what `saved_state` returned; ValueError if it is no such state."""
        super().restore_state(state, tensors)
        self.sampling.restore_state(state)

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

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round: send the model to the nodes that train, with what each is asked for.

        Raises as `Driver.begin`.
        """
        model, entries = self.driver.begin(
            server_round,
            arrays,
            lambda: self.choose_nodes("train", server_round, grid),
            lambda nodes: self.sampling.clients_at(grid, nodes),
        )
        self._asked_to_train = self._messages("train", server_round, model, config, entries)
        return self._asked_to_train

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish a round; raises as `Driver.finish`.

        Returns the next model (the current one where no reply can be used; in the first round
        without the arrays that no client returned), and the clients' averaged metrics, what the
        method records, and the counts ``quarantined``, ``failed`` and ``empty``.
        """
        finished = self.driver.finish(
            "aggregate_train",
            server_round,
            answers_of_messages(replies, self._asked_to_train),
            self.weighted_by_key,
        )
        arrays = self.handed_on(finished)
        if not self.driver.asked_nodes:
            return arrays, None
        self.sampling.note_replies({reply.node_id: reply.content for reply in finished.good})
        alike = alike_metrics([reply.content for reply in finished.good], self.weighted_by_key)
        metrics = MetricRecord()
        if alike:
            metrics = self.train_metrics_aggr_fn(alike, self.weighted_by_key)
        metrics.update(finished.metrics)
        metrics.update(reply_counts(finished.bad, self.metrics_prefix))
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the nodes that evaluate."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        self._asked_to_evaluate = tuple(messages)
        return self._asked_to_evaluate

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of the evaluation replies that can be used; add the same counts.

        None where nobody was asked. Raises as `Driver.screen_evaluation`.
        """
        asked = self._asked_to_evaluate
        if asked is not None and not asked:
            return None
        good, bad = self.driver.screen_evaluation(
            server_round,
            answers_of_messages(replies, asked or ()),
            None if asked is None else {message.metadata.dst_node_id for message in asked},
            self.weighted_by_key,
        )
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(reply_counts(bad, self.metrics_prefix))
        return metrics
