"""What is recorded of a round of FedPW, and what the log says about single clients."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import MetricRecord

from fedpw_flwr.algorithm import ServerStep


def recorded(step: ServerStep, reported: Mapping[int, float | None]) -> MetricRecord:
    """Return FedPW's own metrics of a round, lists running over the participants."""
    metrics = MetricRecord()
    metrics["fedpw-client-id"] = list(step.clients)
    metrics["fedpw-weight"] = list(step.weights.weights)
    if step.weights.direction_term is not None and step.weights.loss_term is not None:
        metrics["fedpw-p"] = list(step.weights.direction_term)
        metrics["fedpw-q"] = list(step.weights.loss_term)
    metrics["fedpw-drop-rate"] = list(step.drop_rates or (0.0,) * len(step.clients))
    losses = [loss for client in step.clients if (loss := reported[client]) is not None]
    if len(losses) == len(step.clients):
        metrics["fedpw-loss"] = losses
    metrics["fedpw-bounded"] = len(step.bounded)
    if step.weights.loss_term_share is not None:
        metrics["fedpw-loss-term-share"] = step.weights.loss_term_share
    factors = step.amplification.values()
    metrics["fedpw-amplification"] = sum(factors) / len(factors) if factors else 1.0
    return metrics


def warnings_of(step: ServerStep, reported: Mapping[int, float | None]) -> list[str]:
    """Name the clients whose loss or weight was out of bounds."""
    found = []
    weights = step.weights
    for client, loss, weight, unbounded in zip(
        step.clients, step.losses, weights.weights, weights.unbounded, strict=True
    ):
        told = reported[client]
        if told is not None and told != loss:
            found.append(
                f"client {client} reports the loss {told:g}, which is too far from the median of "
                f"the round and counts as {loss:g} (max_loss_ratio)"
            )
        if weight < unbounded:
            found.append(
                f"client {client} would have the weight {unbounded:.3f} and gets {weight:.3f} "
                "(max_weight)"
            )
    return found
