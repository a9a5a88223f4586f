"""Flower's legacy server, with checkpoints, observers and a first round of one's choice."""

from __future__ import annotations

import logging
import timeit
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.server import ClientManager, History, Server
from flwr.server.strategy import Strategy

from fedpw_flwr.legacy.answers import as_metrics, as_parameters, named_arrays
from fedpw_flwr.legacy.client_manager import OrderedClientManager
from fedpw_flwr.legacy.strategy import FedPW
from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.observers import numbers_of
from fedpw_flwr.rounds.rounds_left import RoundsLeft
from fedpw_flwr.rounds.run_state import run_identity

logger = logging.getLogger("flwr")


class CheckpointedServer(Server):
    """A `flwr.server.Server` that saves every round and can go on where another one stopped.

    It tells the strategy's observers of each round, and stops where one of them wants it.

    Flower's client manager draws from the clients in the order in which they came. With
    `OrderedClientManager` a run that trains only some of them in a round goes on bit by bit, too.

    Give it to ``ServerAppComponents(server=...)``; its strategy is asked for the same things in the
    same order as by Flower's.

    Parameters
    ----------
    client_manager : ClientManager
        As in Flower's Server, for example ``OrderedClientManager()``.
    strategy : Strategy
        As in Flower's Server, for example `fedpw_flwr.legacy.FedPW`.
    checkpoint_dir : str | Path | None (default: None)
        Folder for checkpoints: model, state of the strategy, history and random state. None: none.
    checkpoint_every : int (default: 1)
        Rounds between two checkpoints.
    resume : bool (default: False)
        Go on after the newest intact checkpoint, and begin where there is none yet. False refuses a
        folder that holds checkpoints.

    Examples
    --------
    >>> from fedpw_flwr.legacy import CheckpointedServer, FedPW, OrderedClientManager
    >>> server = CheckpointedServer(
    ...     client_manager=OrderedClientManager(), strategy=FedPW(), checkpoint_dir="checkpoints"
    ... )
    """

    def __init__(
        self,
        *,
        client_manager: ClientManager,
        strategy: Strategy,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> None:
        super().__init__(client_manager=client_manager, strategy=strategy)
        if checkpoint_dir is None and resume:
            raise ValueError("resume=True needs checkpoint_dir, the folder of the checkpoints")
        self.checkpoints = None
        if checkpoint_dir is not None:
            self.checkpoints = CheckpointStore(checkpoint_dir, every=checkpoint_every)
        self.resume = resume
        if isinstance(strategy, FedPW):
            strategy.in_our_server = True

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Run the rounds that are left; `CheckpointError` as in `run_rounds`.

        Returns losses and metrics of all rounds, also those before a resume, and the seconds it
        took.
        """
        begun = timeit.default_timer()
        self.parameters = self._get_initial_parameters(server_round=0, timeout=timeout)
        identity = run_identity(self.strategy, named_arrays(self.parameters, ()))
        observers = getattr(self.strategy, "observers", ())
        run = _Run(self.strategy, self.checkpoints, observers, identity, self, timeout, History())
        run.play_all(num_rounds, self.resume)
        return run.history, timeit.default_timer() - begun


@dataclass
class _Run(RoundsLeft):
    server: CheckpointedServer
    timeout: float | None
    history: History

    def play(self, server_round: int) -> None:
        if server_round > 0:
            self.train(server_round)
        evaluated = self.strategy.evaluate(server_round, parameters=self.server.parameters)
        if evaluated is not None:
            loss, metrics = evaluated
            logger.info("round %s: loss %s, metrics %s", server_round, loss, metrics)
            self.history.add_loss_centralized(server_round, loss)
            self.history.add_metrics_centralized(server_round, metrics)
        if server_round > 0:
            self.evaluate(server_round)

    def train(self, server_round: int) -> None:
        """Let the clients train, and step."""
        trained = self.server.fit_round(server_round=server_round, timeout=self.timeout)
        parameters, metrics, _ = trained or (None, None, None)
        if parameters:
            self.server.parameters = parameters
        if metrics is not None:
            self.history.add_metrics_distributed_fit(server_round, metrics)
        for observer in self.observers:
            arrays = named_arrays(parameters, ()) if parameters else None
            observer.on_step(server_round, arrays, as_metrics(metrics))

    def evaluate(self, server_round: int) -> None:
        """Let the clients evaluate."""
        evaluated = self.server.evaluate_round(server_round=server_round, timeout=self.timeout)
        loss, metrics, _ = evaluated or (None, {}, None)
        if loss is not None:
            self.history.add_loss_distributed(server_round, loss)
            self.history.add_metrics_distributed(server_round, metrics)
        for observer in self.observers:
            told = None if loss is None else as_metrics({"loss": loss, **metrics})
            observer.on_evaluation(server_round, told)

    def numbers(self, server_round: int) -> dict[str, float]:
        history = self.history
        metrics: tuple[Mapping[str, Any], ...] = (
            history.metrics_distributed_fit,
            {**history.metrics_distributed, "loss": history.losses_distributed},
            {**history.metrics_centralized, "loss": history.losses_centralized},
        )
        of_round = (
            {name: dict(pairs).get(server_round) for name, pairs in told.items()}
            for told in metrics
        )
        return numbers_of(*map(as_metrics, of_round))

    def saved(self) -> tuple[ArrayRecord, Mapping[str, Any]]:
        manager = self.server.client_manager()
        draws = manager.saved_draws() if isinstance(manager, OrderedClientManager) else None
        reported = {"draws": draws, "history": vars(self.history)}
        return named_arrays(self.server.parameters, ()), reported

    def take(self, arrays: ArrayRecord, state: Mapping[str, Any]) -> None:
        self.server.parameters = as_parameters(arrays)
        manager = self.server.client_manager()
        if isinstance(manager, OrderedClientManager) and state["draws"] is not None:
            manager.restore_draws(state["draws"])
        for name in vars(self.history):
            setattr(self.history, name, _with_pairs(state["history"][name]))


def _with_pairs(told: Any) -> Any:
    """Return a history's lists, as JSON has them, with pairs of round and value."""
    if isinstance(told, dict):
        return {key: _with_pairs(values) for key, values in told.items()}
    return [tuple(pair) for pair in told]
