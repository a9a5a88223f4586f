"""What a signal remembers of each client: a share that momentum moves towards what a round shows.

Adaptive Weighted Aggregation keeps two of them, p for the update direction and q for the loss.

Beyond the paper, time counts in rounds and not in visits: a client that was away catches up on the
rounds it missed with what it shows when it is back. With everybody present in every round this is
the paper's formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LARGEST_RATE = 1.0 - 1e-12
"""Momentum of a round is at most this, so that ln(1 − r) is finite."""

LARGEST_MISSED_SHARE = 5.0
"""What stands in for rounds that were missed is at most this many equal shares."""

LEAST_BROUGHT = 0.25
"""Participants bring at least this share of what N average clients would."""


@dataclass(frozen=True)
class ClientSignal:
    """What one signal remembers of one client.

    Attributes
    ----------
    share : float
        s_k, which is p_k or q_k in units where the average client has 1.
    momentum : float
        δ_k, in the same units.
    mass : float
        m_k, the total weight of the observations in `momentum`, in [0, 1]; δ_k / m_k is the
        bias-corrected momentum, as in Adam.
    log_kept, log_held : float
        L and H of the signal when the client was last there, see `SignalState`.
    """

    share: float
    momentum: float
    mass: float
    log_kept: float
    log_held: float


@dataclass(frozen=True)
class SignalState:
    """One signal's memory: every client ever seen, and how far time has gone.

    Attributes
    ----------
    clients : dict[int, ClientSignal]
        By client id. Clients that are away are untouched.
    first_size : float | None
        d̄₀ or ℓ̄₀, from the first round in which the size was positive.
    log_kept : float
        L = Σ_u ln(1 − r_u) over all rounds: e^L is what momentum keeps of the time before them.
    log_held : float
        H = −Σ_u ln(1 + M_u) from round 2 on, with M_u = 1 − e^L, the momentum's mass of a client
        that never missed a round: e^H is what a share holds of what it was before them.
    """

    clients: dict[int, ClientSignal] = field(default_factory=dict)
    first_size: float | None = None
    log_kept: float = 0.0
    log_held: float = 0.0


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
        """Return the state as JSON-ready nested dicts; a client is a list of its five numbers."""
        return {
            "rounds": self.rounds,
            "direction": _signal_to_dict(self.direction),
            "loss": _signal_to_dict(self.loss),
        }

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> WeightingState:
        """Rebuild a state from `to_dict`'s result.

        Raises
        ------
        ValueError
            If an entry is missing or is no finite number, with what is wrong and in which part, or
            the state is an earlier one, which counted visits.
        """
        if not isinstance(nested, Mapping) or not isinstance(nested.get("rounds"), int):
            raise ValueError("not a saved weighting state: it has no number of rounds")
        signals = (_signal_from_dict(nested.get(name), name) for name in ("direction", "loss"))
        return cls(nested["rounds"], *signals)


def _signal_to_dict(state: SignalState) -> dict[str, Any]:
    clients = {str(client): list(astuple(memory)) for client, memory in state.clients.items()}
    return {**vars(state), "clients": clients}


def _signal_from_dict(nested: Any, where: str) -> SignalState:
    if isinstance(nested, Mapping) and "clients" in nested and "log_kept" not in nested:
        raise ValueError(
            "its memory of the clients counts visits, as earlier versions did, and not rounds"
        )
    try:
        clients = {
            int(client): ClientSignal(*map(_finite, numbers))
            for client, numbers in nested["clients"].items()
        }
        first_size = None if nested["first_size"] is None else _finite(nested["first_size"])
        sums = _finite(nested["log_kept"]), _finite(nested["log_held"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a saved weighting state: {where}: {error!r}") from error
    return SignalState(clients, first_size, *sums)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def momentum_rate(beta: float, size: float, first_size: float | None) -> float:
    """Momentum of the round: β_dir = β · d̄ / d̄₀ or β_loss = β · ℓ̄ / ℓ̄₀, in [0, 1 − 1e-12].

    0 where the signal has never been positive, which leaves the momentum as it is.
    """
    if first_size is None or size <= 0:
        return 0.0
    return min(LARGEST_RATE, beta * (size / first_size))


def update_signal(
    state: SignalState,
    clients: Sequence[int],
    shares: Tensor,
    size: float,
    beta: float,
    first_round: bool,
) -> tuple[Tensor, float, SignalState]:
    """Move one signal by one round: δp ← (1−β_dir)·δp + β_dir·D, p ← normalise(p + δp).

    The same function serves q with E and β_loss. What the formula says of N clients that are always
    there is said here of any N participants. Absent clients are untouched.

    1. Time goes on for everybody: L ← L + ln(1 − r), and from round 2 on H ← H − ln(1 + M) with
       M = 1 − e^L.
    2. The participants bring P = max(Σ s_k, N/4); a newcomer counts as 1.
    3. Each shows o = P·D_k, and catches up on the rounds it missed, see `_caught_up`.
    4. Their new shares are scaled to sum to P again; x_k = s_k / P.

    `shares` are D_k or E_k of `clients`, shape (N,), float64; `size` is d̄ or ℓ̄, `beta` β.

    Returns
    -------
    tuple[Tensor, float, SignalState]
        x, which is p or q of the participants, shape (N,), float64, summing to 1; P, in units of
        the average client; and the new memory.
    """
    # Time that has passed: what momentum keeps of earlier rounds.
    first_size = state.first_size
    if first_size is None and size > 0:
        first_size = size
    rate = momentum_rate(beta, size, first_size)
    log_kept = state.log_kept + math.log1p(-rate)
    log_held = state.log_held
    if not first_round:
        log_held -= math.log1p(-math.expm1(log_kept))
    now = SignalState(state.clients, first_size, log_kept, log_held)

    # Each participant: one that is known catches up on the rounds it missed.
    count = len(clients)
    known = [state.clients.get(client) for client in clients]
    brought = sum(1.0 if memory is None else memory.share for memory in known)
    brought = max(brought, LEAST_BROUGHT * count)
    most = brought * LARGEST_MISSED_SHARE / count
    moved = []
    for memory, share in zip(known, shares.tolist(), strict=True):
        shown = brought * share
        tamed = min(max(shown, 0.0), most)
        if memory is not None:
            moved.append(_caught_up(memory, now, rate, shown, tamed))
        elif first_round:
            moved.append(_arrived(now, rate * shown, rate))
        else:
            moved.append(_arrived(now, rate * (tamed + 1.0), 2.0 * rate))

    # Together they keep what they brought: the others' shares stay.
    total = sum(memory.share for memory in moved)
    values = [memory.share / total if total > 0 else 1.0 / count for memory in moved]
    after = {
        client: replace(memory, share=value * brought)
        for client, memory, value in zip(clients, moved, values, strict=True)
    }
    next_state = replace(now, clients={**state.clients, **after})
    return torch.tensor(values, dtype=torch.float64), brought, next_state


def _caught_up(
    memory: ClientSignal, now: SignalState, rate: float, shown: float, tamed: float
) -> ClientSignal:
    """Bring a returning client's memory to this round; its share is not scaled yet.

    With c = 1 − e^(L − L_k), the part of momentum that time has replaced since its last visit:
    δ ← δ + c·(õ − δ) + r·(o − õ),  m ← m + c·(1 − m),  s ← T + (s − T)·e^(H − H_k),  T = δ / m.

    `shown` is o, and `tamed` is õ, which is o within bounds and stands in for missed rounds.
    """
    # As expm1: rates get tiny.
    replaced = -math.expm1(now.log_kept - memory.log_kept)
    momentum = memory.momentum + replaced * (tamed - memory.momentum) + rate * (shown - tamed)
    mass = memory.mass + replaced * (1.0 - memory.mass)
    target = momentum / mass if mass > 0 else memory.share
    share = target + (memory.share - target) * math.exp(now.log_held - memory.log_held)
    return ClientSignal(share, momentum, mass, now.log_kept, now.log_held)


def _arrived(now: SignalState, momentum: float, mass: float) -> ClientSignal:
    """Return a newcomer's memory: T = δ / m is its share; 1 where the round has no momentum."""
    share = momentum / mass if mass > 0 else 1.0
    return ClientSignal(share, momentum, mass, now.log_kept, now.log_held)
