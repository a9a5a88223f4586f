"""The rounds that a run has left, under either API: who is told, when the state is saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.rounds.run_state import (
    check_checkpoint,
    newest_checkpoint,
    put_back,
    run_checkpoint,
)

logger = logging.getLogger("flwr")


@dataclass
class RoundsLeft(ABC):
    """A run as far as it is: `checkpoints` may be None, `identity` is what it must keep."""

    strategy: Any
    checkpoints: CheckpointStore | None
    observers: Sequence[Observer]
    identity: Mapping[str, Any]

    @abstractmethod
    def play(self, server_round: int) -> None:
        """Play one round; of round 0, which is before training, only the evaluation here."""

    @abstractmethod
    def numbers(self, server_round: int) -> dict[str, float]:
        """Return the figures of a round that is over, as from `numbers_of`."""

    @abstractmethod
    def saved(self) -> tuple[ArrayRecord, Mapping[str, Any]]:
        """Return the global model, and what the API keeps of the rounds so far."""

    @abstractmethod
    def take(self, arrays: ArrayRecord, state: Mapping[str, Any]) -> None:
        """Set both to what `saved` returned."""

    def play_all(self, num_rounds: int, resume: bool) -> None:
        """Play all rounds, or those after the newest checkpoint; raises as `run_rounds`."""
        checkpoints, after = self.checkpoints, None
        with nullcontext() if checkpoints is None else checkpoints.locked():
            if checkpoints is not None and (newest := newest_checkpoint(checkpoints, resume)):
                check_checkpoint(newest, self.identity, checkpoints, num_rounds)
                put_back(newest, self.strategy, self.take)
                after = newest.round
            # Who has not begun has nothing to end: a page of earlier rounds stays as it was.
            begun: list[Observer] = []
            stopped: str | None = None
            failure: BaseException | None = None
            try:
                for observer in self.observers:
                    observer.on_plan(num_rounds, self.identity)
                    observer.on_begin(after)
                    begun.append(observer)
                stopped = self._play_after(after, num_rounds)
            except BaseException as error:
                failure = error
            for observer in begun:
                # What one fails with is the run's failure for those after it.
                try:
                    observer.on_end(stopped, failure)
                except Exception as error:
                    if failure is not None:
                        logger.warning("%s failed at the end, too: %r", observer, error)
                    failure = failure or error
        if failure is not None:
            raise failure

    def _play_after(self, after: int | None, num_rounds: int) -> str | None:
        """Play the rounds that are left; return why an observer stopped the run, if one did."""
        server_round = after or 0
        if after is None:
            self.play(0)
            self._save(0)
        else:
            logger.info("\tGoing on after round %s of %s", after, num_rounds)
        for earlier in range(server_round + 1):
            stopped = self._tell_end(earlier)
        while stopped is None and server_round < num_rounds:
            server_round += 1
            logger.info("")
            logger.info("[ROUND %s/%s]", server_round, num_rounds)
            for observer in self.observers:
                observer.on_round(server_round)
            self.play(server_round)
            stopped = self._tell_end(server_round)
            last = num_rounds if stopped is None else server_round
            if self.checkpoints is not None and self.checkpoints.is_due(server_round, last):
                self._save(server_round)
        if stopped is not None:
            logger.info("Stopped after round %s of %s: %s", server_round, num_rounds, stopped)
        standstill = getattr(self.strategy, "standstill", None)
        if standstill is not None:
            standstill.log_at_end()
        return stopped

    def _tell_end(self, server_round: int) -> str | None:
        """Tell the observers of a round that is over; return why one wants no more, if one does."""
        numbers = self.numbers(server_round)
        for observer in self.observers:
            observer.on_round_end(server_round, numbers)
        reasons = (observer.stop_reason() for observer in self.observers)
        return next((reason for reason in reasons if reason is not None), None)

    def _save(self, server_round: int) -> None:
        """Write a checkpoint, where there are any."""
        if self.checkpoints is not None:
            state = (self.strategy, *self.saved(), self.identity)
            self.checkpoints.save(run_checkpoint(server_round, *state))
            for observer in self.observers:
                observer.on_checkpoint(server_round)
