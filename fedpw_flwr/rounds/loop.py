"""Flower's loop over the rounds, with checkpoints, observers and a first round of one's choice.

`Strategy.start` of Flower always begins with round 1. This loop calls the same methods of the
strategy in the same order, and begins after the newest checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.observers import Observer, numbers_of
from fedpw_flwr.rounds.rounds_left import RoundsLeft
from fedpw_flwr.rounds.run_state import run_identity
from fedpw_flwr.wire.records import identity_of

logger = logging.getLogger("flwr")

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


def run_rounds(
    strategy: Strategy,
    checkpoints: CheckpointStore | None,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int = 3,
    timeout: float = 3600,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: Evaluate | None = None,
    *,
    resume: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run a strategy as `Strategy.start` does, with checkpoints.

    Replies reach the strategy in the order of client id, so that sums do not depend on who was
    first.

    Parameters
    ----------
    strategy : Strategy
        A strategy that carries nothing from round to round, such as FedAvg, is `Stateful`, such as
        FedPW, or is one of Flower's server optimizers (FedAdam, FedAdagrad, FedYogi, FedAvgM). What
        others carry is not saved; a strategy that stands around another one has to pass on its
        ``saved_state``, ``restore_state`` and ``fingerprint``.
    checkpoints : CheckpointStore | None
        Where checkpoints are. None: there are none.
    grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        As in `Strategy.start`.
    resume : bool (default: False)
        Go on after the newest intact checkpoint; begin with the first round where there is none.
    fingerprint : Mapping[str, Any] | None (default: None)
        What else a run must keep when it goes on.
    observers : Sequence[Observer] (default: ())
        Told what each round was. Where one has a `stop_reason`, the run ends after that round, with
        its checkpoint.

    Returns
    -------
    Result
        The last model, and the metrics of all rounds, also those before a resume.

    Raises
    ------
    CheckpointError
        If there are checkpoints already and `resume` is False, if all are damaged, if the newest is
        that of another model or method, if one cannot be written, or if another process writes to
        the folder.
    """
    train_config = ConfigRecord() if train_config is None else train_config
    evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
    # What the run must keep when it goes on.
    identity = {
        **run_identity(strategy, initial_arrays),
        **(fingerprint or {}),
        "train_config": dict(train_config),
    }
    place = "" if checkpoints is None else f", checkpoints in {checkpoints.folder}"
    logger.info("Starting %s strategy%s", type(strategy).__name__, place)
    strategy.summary()
    run = _Run(
        *(strategy, checkpoints, observers, identity, grid, timeout, train_config),
        *(evaluate_config, evaluate_fn, Result(arrays=initial_arrays)),
    )
    run.play_all(num_rounds, resume)
    return run.result


@dataclass
class _Run(RoundsLeft):
    grid: Grid
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: Evaluate | None
    result: Result

    def play(self, server_round: int) -> None:
        if server_round > 0:
            self.train_and_evaluate(server_round)
        if self.evaluate_fn is not None:
            metrics = self.evaluate_fn(server_round, self.result.arrays)
            _keep(self.result.evaluate_metrics_serverapp, server_round, metrics)

    def numbers(self, server_round: int) -> dict[str, float]:
        return numbers_of(*(getattr(self.result, name).get(server_round) for name in _METRICS))

    def saved(self) -> tuple[ArrayRecord, Mapping[str, Any]]:
        kept = {name: getattr(self.result, name) for name in _METRICS}
        return self.result.arrays, {"metrics": kept}

    def take(self, arrays: ArrayRecord, state: Mapping[str, Any]) -> None:
        self.result.arrays = arrays
        for name in _METRICS:
            metrics = {int(key): MetricRecord(one) for key, one in state["metrics"][name].items()}
            getattr(self.result, name).update(metrics)

    def train_and_evaluate(self, server_round: int) -> None:
        """Let the clients train, step, and let them evaluate."""
        strategy, result = self.strategy, self.result
        # Train.
        messages = strategy.configure_train(
            server_round, result.arrays, self.train_config, self.grid
        )
        replies = self.exchange("train", server_round, list(messages))
        arrays, metrics = strategy.aggregate_train(server_round, replies)
        if arrays is not None:
            result.arrays = arrays
        for observer in self.observers:
            observer.on_step(server_round, arrays, metrics)
        _keep(result.train_metrics_clientapp, server_round, metrics)
        # Evaluate.
        messages = strategy.configure_evaluate(
            server_round, result.arrays, self.evaluate_config, self.grid
        )
        replies = self.exchange("evaluate", server_round, list(messages))
        metrics = strategy.aggregate_evaluate(server_round, replies)
        for observer in self.observers:
            observer.on_evaluation(server_round, metrics)
        _keep(result.evaluate_metrics_clientapp, server_round, metrics)

    def exchange(self, phase: str, server_round: int, messages: Sequence[Message]) -> list[Message]:
        """Send messages, and return what came back, in the order of client id."""
        for observer in self.observers:
            observer.on_messages(phase, server_round, messages)
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout))
        for observer in self.observers:
            observer.on_replies(phase, server_round, replies)
        return sorted(replies, key=_client_order)


def _client_order(reply: Message) -> tuple[bool, int]:
    """Order by client id; replies that state none come last, by node."""
    node = reply.metadata.src_node_id
    try:
        stated = identity_of(reply.content) if reply.has_content() else None
    except ValueError:
        stated = None
    return stated is None, node if stated is None else stated


def _keep(kept: dict[int, MetricRecord], server_round: int, metrics: MetricRecord | None) -> None:
    if metrics is not None:
        logger.info("\t└──> %s", metrics)
        kept[server_round] = metrics
