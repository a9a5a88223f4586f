"""Who is told what a round was: recorders, profilers, watches; each may ask the run to stop.

Give observers to ``FedPW(observers=[...])`` of either API, or for any other strategy to
`run_rounds`; they are called in their order. An observer that raises ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord


class Observer:
    """Told of each thing that happens in a run; override what you want to hear.

    Under the legacy API `on_messages` and `on_replies` are not called: it has no messages.
    """

    def on_plan(self, num_rounds: int, settings: Mapping[str, Any]) -> None:
        """Hear first how many rounds the run is to have, and what it must keep when it goes on."""

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

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Hear that a round is over, and its figures as from `numbers_of`; 0 is before training.

        Where a run goes on, the rounds that it had are told once more, right after `on_begin`.
        """

    def stop_reason(self) -> str | None:
        """Return why the run is to stop after this round; None where it is to go on."""
        return None

    def on_checkpoint(self, server_round: int) -> None:
        """Hear that the state after a round is on disk."""

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        """Hear that the run is over: why it was stopped or what it failed with, if it was.

        Whatever an observer raises here, the others hear of the end, and those after it what it
        raised, if the run had not failed before.
        """


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C or a signal ended a run, also where its workers heard it first."""
    return error is not None and not isinstance(error.__cause__ or error, Exception)


def numbers_of(
    train: Mapping[str, Any] | None,
    evaluate: Mapping[str, Any] | None,
    server: Mapping[str, Any] | None,
) -> dict[str, float]:
    """Return the figures of a round by name; those that are not finite are left out.

    ``train/NAME`` and ``evaluate/NAME`` are what the clients' training and evaluation gave, NAME
    what `evaluate_fn` did. Lists beside a list of client ids are taken apart: ``fedpw-weight``, of
    the clients of ``fedpw-client-id``, is ``weight/client_3`` and so on.
    """
    numbers: dict[str, float] = {}
    for kind, given in (("train/", train), ("evaluate/", evaluate), ("", server)):
        metrics = given or {}
        for name, value in metrics.items():
            if not isinstance(value, list):
                numbers[f"{kind}{name}"] = value
                continue
            prefix, _, figure = name.partition("-")
            clients = metrics.get(f"{prefix}-client-id", metrics.get("client-id"))
            if isinstance(clients, list) and clients is not value and len(clients) == len(value):
                each = zip(clients, value, strict=True)
                numbers |= {f"{figure or name}/client_{client}": one for client, one in each}
    return {name: float(number) for name, number in numbers.items() if math.isfinite(number)}
