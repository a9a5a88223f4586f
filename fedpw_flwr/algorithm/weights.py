"""Adaptive Weighted Aggregation (AWA), the paper's client view: where a loss becomes a weight.

Two signals run side by side, the update direction and the training loss, each with its `memory`.
The weights mix their shares p and q by how far each spreads the clients apart, so agreeing updates
lead while directions differ, and weak clients gain when losses do. No phase is switched by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpw_flwr.algorithm.bounds import bounded_weights, floored_losses
from fedpw_flwr.algorithm.client_step import ClientResult
from fedpw_flwr.algorithm.direction import direction_shares, direction_size
from fedpw_flwr.algorithm.memory import WeightingState, update_signal
from fedpw_flwr.algorithm.settings import FedPWSettings


@dataclass(frozen=True)
class RoundWeights:
    """Aggregation weights of a round and where they come from; lists run over the clients.

    Attributes
    ----------
    weights : tuple[float, ...]
        λ_k, summing to 1.
    unbounded : tuple[float, ...]
        λ_k before `max_weight` bounded them.
    direction_term, loss_term : tuple[float, ...] | None
        Shares p_k and q_k; None where weights are not adapted.
    loss_term_share : float | None
        σ_q / (σ_p + σ_q); None where weights are not adapted.
    """

    weights: tuple[float, ...]
    unbounded: tuple[float, ...]
    direction_term: tuple[float, ...] | None = None
    loss_term: tuple[float, ...] | None = None
    loss_term_share: float | None = None


def weigh(
    results: Sequence[ClientResult],
    losses: Tensor,
    directions: Callable[[], list[float]],
    state: WeightingState,
    settings: FedPWSettings,
) -> tuple[RoundWeights, WeightingState, tuple[float, ...] | None]:
    """Adaptive Weighted Aggregation, or weights by number of examples where it is off.

    `directions` computes d_k, and is called where they are needed. Returns the weights, the memory
    after the round, and the relative losses u_k.
    """
    rounds, first_round = state.rounds + 1, state.rounds == 0
    clients = [result.client for result in results]
    relative, loss_state = None, state.loss
    if settings.adapt_weights or settings.adjust_parameters:
        # Without adaptive weights, too: drop rates compare losses of different rounds by it.
        loss_term, brought, loss_state = update_signal(
            state.loss, clients, loss_shares(losses), loss_size(losses), settings.beta, first_round
        )
        relative = tuple(relative_losses(losses, brought).tolist())
    if not settings.adapt_weights:
        by_examples = weights_by_examples(results)
        next_state = replace(state, rounds=rounds, loss=loss_state)
        return RoundWeights(by_examples, by_examples), next_state, relative

    found = torch.tensor(directions(), dtype=torch.float64)
    direction_term, _, direction_state = update_signal(
        state.direction,
        clients,
        direction_shares(found),
        direction_size(found),
        settings.beta,
        first_round,
    )
    weights, loss_term_share = mix_terms(direction_term, loss_term)
    if settings.clip_weights:
        weights = clip_negative_weights(weights)
    return (
        RoundWeights(
            weights=bounded_weights(weights.tolist(), settings.max_weight),
            unbounded=tuple(weights.tolist()),
            direction_term=tuple(direction_term.tolist()),
            loss_term=tuple(loss_term.tolist()),
            loss_term_share=loss_term_share,
        ),
        WeightingState(rounds=rounds, direction=direction_state, loss=loss_state),
        relative,
    )


def loss_shares(losses: Tensor) -> Tensor:
    """Turn losses, shape (N,), into shares E_k = ℓ_k / Σ ℓ; equal shares where all are zero."""
    floored = floored_losses(losses)
    return floored / floored.sum()


def loss_size(losses: Tensor) -> float:
    """Size of a round's losses: ℓ̄ = mean_k ℓ_k, safe for losses near the largest double."""
    largest = float(losses.max())
    return largest * float((losses / largest).mean()) if largest > 0 else 0.0


def relative_losses(losses: Tensor, brought: float) -> Tensor:
    """Make losses, shape (N,), comparable with other rounds': u_k = (ℓ_k / ℓ̄) · P_q / N.

    P_q are the shares of the loss term that the participants brought: u_k is in units where the
    average client has 1. P_q / N where every loss is 0.
    """
    largest = float(losses.max())
    scaled = losses / largest if largest > 0 else torch.ones_like(losses)
    return scaled * (brought / float(scaled.sum()))


def mix_terms(direction_term: Tensor, loss_term: Tensor) -> tuple[Tensor, float]:
    """Mix p and q, shape (N,), by their spread: λ_k = (σ_p·p_k + σ_q·q_k) / (σ_p + σ_q).

    σ is the standard deviation over the N clients with ddof = 1. With one client, or where neither
    term spreads, λ is the mean of the two. Returns λ before clipping, and the loss term's share in
    it, σ_q / (σ_p + σ_q).
    """
    if direction_term.numel() < 2:
        return torch.ones_like(direction_term), 0.5
    spread_direction, spread_loss = float(direction_term.std()), float(loss_term.std())
    spread = spread_direction + spread_loss
    loss_share = spread_loss / spread if spread > 0 else 0.5
    return (1.0 - loss_share) * direction_term + loss_share * loss_term, loss_share


def clip_negative_weights(weights: Tensor) -> Tensor:
    """Clip λ, shape (N,), at 0 and renormalise: no client is trained against."""
    clipped = weights.clamp(min=0.0)
    return clipped / clipped.sum()


def weights_by_examples(results: Sequence[ClientResult]) -> tuple[float, ...]:
    """Weight by number of examples; equally where no result has one or all are zero."""
    counts = [result.num_examples for result in results]
    known = [count for count in counts if count is not None]
    if known and len(known) < len(counts):
        missing = [result.client for result in results if result.num_examples is None]
        raise ValueError(
            f"clients {missing} report no number of examples while others do: every client must "
            "report it, or none"
        )
    total = sum(known)
    if total <= 0:
        return tuple(1.0 / len(counts) for _ in counts)
    if total == float("inf"):
        known = [count / max(known) for count in known]
        total = sum(known)
    return tuple(count / total for count in known)
