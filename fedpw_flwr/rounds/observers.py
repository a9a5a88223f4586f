"""Who is told what a round was: recorders, profilers, watches.

Give observers to `run_rounds(..., observers=[...])`; they are called in their order. An observer
that raises ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, Message, MetricRecord


class Observer:
    """Told of each thing that happens in a run; override what you want to hear."""

    def on_begin(self, after: int | None) -> None:
        """Hear that a run goes on after a round; None where it begins."""

    def on_round(self, server_round: int) -> None:
        """Hear that a round begins."""

    def on_messages(self, phase: str, server_round: int, messages: Sequence[Message]) -> None:
        """Hear what is about to be sent to the clients, in the phase "train" or "evaluate"."""

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        """Hear what came back, before the strategy sees it."""

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        """Hear the next model and the round's training metrics."""

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Hear what the clients' evaluation gave."""

    def on_checkpoint(self, server_round: int) -> None:
        """Hear that the state after a round is on disk."""
