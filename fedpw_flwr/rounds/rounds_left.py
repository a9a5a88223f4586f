"""The rounds that a run has left, under either API: who is told, when the state is saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpw_flwr.rounds.checkpoints import Checkpoint, CheckpointStore
from fedpw_flwr.rounds.observers import Observer

logger = logging.getLogger("flwr")


@dataclass
class RoundsLeft(ABC):
    """A run as far as it is, and what it must keep; `checkpoints` is None where there are none."""

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
    def checkpoint(self, server_round: int) -> Checkpoint:
        """Return what a run needs to go on after a round."""

    def play_all(self, after: int | None, num_rounds: int) -> None:
        """Play the rounds after a round, or all; tell the observers also how the run ended."""
        try:
            stopped = self._play_all(after, num_rounds)
        except BaseException as error:
            for observer in self.observers:
                observer.on_end(None, error)
            raise
        for observer in self.observers:
            observer.on_end(stopped, None)

    def _play_all(self, after: int | None, num_rounds: int) -> str | None:
        for observer in self.observers:
            observer.on_plan(num_rounds, self.identity)
            observer.on_begin(after)
        # Begin, or go on where another process stopped.
        server_round = after or 0
        if after is None:
            self.play(0)
            self._save(0)
        else:
            logger.info("\tGoing on after round %s of %s", after, num_rounds)
        for earlier in range(server_round + 1):
            stopped = self._tell_end(earlier)
        # Play until the last round, or until an observer wants no more.
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
            self.checkpoints.save(self.checkpoint(server_round))
            for observer in self.observers:
                observer.on_checkpoint(server_round)
