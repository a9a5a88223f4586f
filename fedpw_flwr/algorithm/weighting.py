"""Adaptive Weighted Aggregation (AWA), the paper's client view: from signals to weights.

Two signals run side by side, the update direction and the training loss. Each keeps, for every
client, a share (p for the direction, q for the loss) that momentum moves towards the signal of the
round. The weights mix p and q by how far each spreads the clients apart, so agreeing updates lead
while directions differ, and weak clients gain when losses do. No phase is switched by hand.

Beyond the paper, shares survive partial participation and churn: they are kept for ever in units
where the average client has 1, and a round redistributes only what its participants brought.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ClientSignal",
    "MixedWeights",
    "SignalState",
    "WeightingState",
    "clip_negative_weights",
    "floored_losses",
    "loss_shares",
    "loss_size",
    "mix_terms",
    "momentum_rate",
    "update_signal",
]

LOSS_FLOOR = 1e-3
"""Losses enter quotients at no less than this share of the round's mean."""


@dataclass(frozen=True)
class ClientSignal:
    """What one signal remembers of one client.

    Attributes
    ----------
    share : float
        p_k or q_k, in units where the average client has 1.
    momentum : float
        δp_k or δq_k, in the same units.
    mass : float
        Total weight of the observations in `momentum`, in [0, 1]; `momentum / mass` is the
        bias-corrected momentum, as in Adam.
    """

    share: float
    momentum: float
    mass: float


@dataclass(frozen=True)
class SignalState:
    """One signal's memory: every client ever seen, and the signal's first size.

    Attributes
    ----------
    clients : dict[int, ClientSignal]
        By client identity. Clients that are away are untouched.
    first_size : float | None
        d̄₀ or ℓ̄₀, from the first round in which the size was positive.
    """

    clients: dict[int, ClientSignal] = field(default_factory=dict)
    first_size: float | None = None


@dataclass(frozen=True)
class WeightingState:
    """Everything AWA carries from round to round. Comparable by value, and plain JSON on disk.

    Attributes
    ----------
    rounds : int
        Rounds aggregated so far. 0 means that the next one is the paper's first round.
    direction, loss : SignalState
        Memory of the direction term (p) and of the loss term (q).
    """

    rounds: int = 0
    direction: SignalState = field(default_factory=SignalState)
    loss: SignalState = field(default_factory=SignalState)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-ready nested dicts (client identities become strings)."""
        nested = asdict(self)
        for signal in ("direction", "loss"):
            clients = nested[signal]["clients"]
            nested[signal]["clients"] = {str(client): value for client, value in clients.items()}
        return nested

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> WeightingState:
        """Rebuild a state from `to_dict`'s result.

        Raises
        ------
        ValueError
            If an entry is missing or is no finite number, with its place in the message.
        """
        rounds = _entry(nested, "rounds")
        if not isinstance(rounds, int) or rounds < 0:
            raise ValueError(f"not a saved weighting state: rounds is {rounds!r}")
        return cls(
            rounds=rounds,
            direction=_signal_from_dict(_entry(nested, "direction"), "direction"),
            loss=_signal_from_dict(_entry(nested, "loss"), "loss"),
        )


def _signal_from_dict(nested: Any, place: str) -> SignalState:
    clients = _entry(nested, "clients", place)
    if not isinstance(clients, Mapping):
        raise ValueError(f"not a saved weighting state: {place}.clients is no mapping")
    memories = {}
    for client, values in clients.items():
        where = f"{place}.clients.{client}"
        try:
            identity = int(client)
        except ValueError as error:
            raise ValueError(f"not a saved weighting state: {where} is no client") from error
        memories[identity] = ClientSignal(
            share=_number(values, "share", where),
            momentum=_number(values, "momentum", where),
            mass=_number(values, "mass", where),
        )
    unset = _entry(nested, "first_size", place) is None
    return SignalState(
        clients=memories, first_size=None if unset else _number(nested, "first_size", place)
    )


def _entry(nested: Any, key: str, place: str = "") -> Any:
    where = f"{place}.{key}" if place else key
    if not isinstance(nested, Mapping) or key not in nested:
        raise ValueError(f"not a saved weighting state: {where} is missing")
    return nested[key]


def _number(nested: Any, key: str, place: str) -> float:
    value = _entry(nested, key, place)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(
            f"not a saved weighting state: {place}.{key} is {value!r}, not a finite number"
        )
    return float(value)


def floored_losses(losses: Tensor) -> Tensor:
    """Raise losses to at least 1e-3 of their mean, so that a quotient by one stays bounded.

    Parameters
    ----------
    losses : Tensor
        ℓ_k ≥ 0, shape (N,), float64.

    Returns
    -------
    Tensor
        Shape (N,), all positive, scaled by the largest loss (only ratios matter); all ones where
        every loss is zero.
    """
    largest = losses.max()
    if largest <= 0:
        return torch.ones_like(losses)
    scaled = losses / largest
    return scaled.clamp(min=LOSS_FLOOR * float(scaled.mean()))


def loss_shares(losses: Tensor) -> Tensor:
    """Turn losses, shape (N,), into shares E_k = ℓ_k / Σ ℓ; equal shares where all are zero."""
    floored = floored_losses(losses)
    return floored / floored.sum()


def loss_size(losses: Tensor) -> float:
    """Size of a round's losses: ℓ̄ = mean_k ℓ_k, safe for losses near the largest double."""
    largest = float(losses.max())
    return largest * float((losses / largest).mean()) if largest > 0 else 0.0


def momentum_rate(beta: float, size: float, first_size: float | None) -> float:
    """Momentum of the round: β_dir = β · d̄ / d̄₀ or β_loss = β · ℓ̄ / ℓ̄₀, clamped to [0, 1].

    0 where the signal has never been positive, which leaves the momentum as it is.
    """
    if first_size is None or size <= 0:
        return 0.0
    return min(1.0, beta * (size / first_size))


def update_signal(
    state: SignalState,
    clients: Sequence[int],
    shares: Tensor,
    size: float,
    beta: float,
    first_round: bool,
) -> tuple[Tensor, SignalState]:
    """Move one signal by one round: δp ← (1−β_dir)·δp + β_dir·D, p ← normalise(p + δp).

    The same function serves q with E and β_loss. Only participants move; with partial
    participation P = Σ p_k over them is preserved, so a cohort keeps its history:

        x_k = normalise(p_k / P + δp_k / N),  δp_k ← (1−β_dir)·δp_k + β_dir·N·D_k,  p_k ← P·x_k

    Momentum that returns with different masses (clients that were away for different times) is
    first brought to the participants' mean mass: in a federation of identical clients the weights
    then stay equal however often each took part. With full participation every mass is the same
    and this changes nothing. A newcomer enters with p = 1 and the mean momentum of the
    returning participants, 0 where there are none.

    Parameters
    ----------
    state : SignalState
        Memory before the round; not modified.
    clients : Sequence[int]
        The N participants' identities.
    shares : Tensor
        D_k or E_k, shape (N,), float64, in the order of `clients`.
    size : float
        d̄ or ℓ̄ of the round.
    beta : float
        β, the base momentum.
    first_round : bool
        True in the first round of all, where the states start at 0.

    Returns
    -------
    tuple[Tensor, SignalState]
        x, the term's shares in this round (shape (N,), float64, sums to 1), and the new memory.
    """
    count = len(clients)
    first_size = state.first_size
    if first_size is None and size > 0:
        first_size = size
    rate = momentum_rate(beta, size, first_size)

    known = [state.clients.get(client) for client in clients]
    momentum, mass = _momentum_at_mean_mass(known)
    momentum = (1.0 - rate) * momentum + rate * count * shares
    mass = (1.0 - rate) * mass + rate

    total, before = float(count), torch.zeros(count, dtype=torch.float64)
    if not first_round:
        before = torch.tensor(
            [1.0 if memory is None else memory.share for memory in known], dtype=torch.float64
        )
        brought = float(before.sum())
        if brought > 0:
            total, before = brought, before / brought
        else:
            before = torch.full_like(before, 1.0 / count)
    term = _normalise(before + momentum / count)

    moved = {
        client: ClientSignal(share=total * share, momentum=delta, mass=mass)
        for client, share, delta in zip(clients, term.tolist(), momentum.tolist(), strict=True)
    }
    return term, SignalState(clients={**state.clients, **moved}, first_size=first_size)


def _momentum_at_mean_mass(known: Sequence[ClientSignal | None]) -> tuple[Tensor, float]:
    returning = [memory for memory in known if memory is not None and memory.mass > 0]
    if not returning:
        return torch.zeros(len(known), dtype=torch.float64), 0.0
    mass = sum(memory.mass for memory in returning) / len(returning)
    scaled = [
        memory.momentum * (mass / memory.mass) if memory is not None and memory.mass > 0 else None
        for memory in known
    ]
    mean = sum(value for value in scaled if value is not None) / len(returning)
    values = [mean if value is None else value for value in scaled]
    return torch.tensor(values, dtype=torch.float64), mass


def _normalise(values: Tensor) -> Tensor:
    total = values.sum()
    if total <= 0:
        return torch.full_like(values, 1.0 / values.numel())
    return values / total


@dataclass(frozen=True)
class MixedWeights:
    """Aggregation weights before clipping, and how much of them is fairness.

    Attributes
    ----------
    weights : Tensor
        λ, shape (N,), float64, sums to 1.
    loss_term_share : float
        σ_q / (σ_p + σ_q), in [0, 1]: the loss term's share in λ.
    """

    weights: Tensor
    loss_term_share: float


def mix_terms(direction_term: Tensor, loss_term: Tensor) -> MixedWeights:
    """Mix the terms by their spread: λ_k = (σ_p·p_k + σ_q·q_k) / (σ_p + σ_q).

    σ is the standard deviation over the N clients with ddof = 1. With one client, or where neither
    term spreads, λ is the mean of the two.

    Parameters
    ----------
    direction_term, loss_term : Tensor
        p and q of the round, shape (N,), float64, each summing to 1.
    """
    if direction_term.numel() < 2:
        return MixedWeights(torch.ones_like(direction_term), 0.5)
    spread_direction, spread_loss = float(direction_term.std()), float(loss_term.std())
    spread = spread_direction + spread_loss
    loss_share = spread_loss / spread if spread > 0 else 0.5
    weights = (1.0 - loss_share) * direction_term + loss_share * loss_term
    return MixedWeights(weights, loss_share)


def clip_negative_weights(weights: Tensor) -> Tensor:
    """Clip λ, shape (N,), at 0 and renormalise: no client is trained against."""
    clipped = weights.clamp(min=0.0)
    return clipped / clipped.sum()
