"""Flower's legacy server, with a checkpoint after every round and a first round of one's choice."""

from __future__ import annotations

import logging
import timeit
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.server import ClientManager, History, Server
from flwr.server.strategy import Strategy

from fedpw_flwr.legacy.answers import as_parameters, named_arrays
from fedpw_flwr.legacy.client_manager import OrderedClientManager
from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.run_state import (
    check_checkpoint,
    newest_checkpoint,
    put_back,
    run_checkpoint,
    run_identity,
)

logger = logging.getLogger("flwr")


class CheckpointedServer(Server):
    """A `flwr.server.Server` that saves every round and can go on where another one stopped.

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
    checkpoint_dir : str | Path
        Folder for checkpoints: model, state of the strategy, history and random state.
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
        checkpoint_dir: str | Path,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> None:
        super().__init__(client_manager=client_manager, strategy=strategy)
        self.checkpoints = CheckpointStore(checkpoint_dir, every=checkpoint_every)
        self.resume = resume

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Run the rounds that are left.

        Returns
        -------
        tuple[History, float]
            Losses and metrics of all rounds, also those before a resume, and the seconds it took.

        Raises
        ------
        CheckpointError
            If there are checkpoints already and `resume` is False, if all are damaged, if the
            newest is that of another model or method, if one cannot be written, or if another
            process writes to the folder.
        """
        begun, history = timeit.default_timer(), History()
        with self.checkpoints.locked():
            self._run(num_rounds, timeout, history)
        standstill = getattr(self.strategy, "standstill", None)
        if standstill is not None:
            standstill.log_at_end()
        return history, timeit.default_timer() - begun

    def _run(self, num_rounds: int, timeout: float | None, history: History) -> None:
        first, newest = 1, newest_checkpoint(self.checkpoints, self.resume)
        self.parameters = self._get_initial_parameters(server_round=0, timeout=timeout)
        identity = run_identity(self.strategy, named_arrays(self.parameters, ()))
        if newest is None:
            self._evaluate_centrally(0, history)
            self._save(0, history, identity)
        else:
            check_checkpoint(newest, identity, self.checkpoints, num_rounds)
            arrays = put_back(newest, self.strategy, lambda state: self._take(state, history))
            self.parameters = as_parameters(arrays)
            first = newest.round + 1
            logger.info("Going on after round %s of %s", newest.round, num_rounds)
        for server_round in range(first, num_rounds + 1):
            logger.info("")
            logger.info("[ROUND %s]", server_round)
            trained = self.fit_round(server_round=server_round, timeout=timeout)
            if trained is not None:
                parameters, metrics, _ = trained
                if parameters:
                    self.parameters = parameters
                history.add_metrics_distributed_fit(server_round, metrics)
            self._evaluate_centrally(server_round, history)
            evaluated = self.evaluate_round(server_round=server_round, timeout=timeout)
            if evaluated is not None and evaluated[0] is not None:
                history.add_loss_distributed(server_round, evaluated[0])
                history.add_metrics_distributed(server_round, evaluated[1])
            if self.checkpoints.is_due(server_round, num_rounds):
                self._save(server_round, history, identity)

    def _evaluate_centrally(self, server_round: int, history: History) -> None:
        evaluated = self.strategy.evaluate(server_round, parameters=self.parameters)
        if evaluated is not None:
            loss, metrics = evaluated
            logger.info("round %s: loss %s, metrics %s", server_round, loss, metrics)
            history.add_loss_centralized(server_round, loss)
            history.add_metrics_centralized(server_round, metrics)

    def _save(self, server_round: int, history: History, identity: dict[str, Any]) -> None:
        manager = self.client_manager()
        reported = {
            "draws": manager.saved_draws() if isinstance(manager, OrderedClientManager) else None,
            "history": vars(history),
        }
        arrays = named_arrays(self.parameters, ())
        self.checkpoints.save(
            run_checkpoint(server_round, self.strategy, arrays, reported, identity)
        )

    def _take(self, state: Mapping[str, Any], history: History) -> None:
        """Go on with the draws and the history of a checkpoint."""
        manager = self.client_manager()
        if isinstance(manager, OrderedClientManager) and state["draws"] is not None:
            manager.restore_draws(state["draws"])
        for name in vars(history):
            setattr(history, name, _with_pairs(state["history"][name]))


def _with_pairs(told: Any) -> Any:
    """Return a history's lists, as JSON has them, with pairs of round and value."""
    if isinstance(told, dict):
        return {key: _with_pairs(values) for key, values in told.items()}
    return [tuple(pair) for pair in told]
