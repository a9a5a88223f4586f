"""FedPW once more: ALGORITHM.md, sections 1 to 4, in NumPy and double precision.

Written from the contract and from nothing else: no import of the package, nor of PyTorch. Slow, and
it sorts where the package selects. `Server` plays rounds; the functions before it are the formulas,
in the order of the sections. Matrices are (N, n): a row for each client, in the order of client id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

RUNNING_STATISTIC = re.compile(
    r"\b(running_mean|running_var|moving_mean|moving_variance)$|\bbatch_stats\b"
)


@dataclass(frozen=True)
class Settings:
    """r̄, β and what section 4 lets a user switch; None takes a bound away."""

    avg_drop_rate: float = 0.3
    beta: float = 0.3
    clip_weights: bool = True
    adapt_weights: bool = True
    adjust_parameters: bool = True
    max_weight: float | None = 3.0
    max_loss_ratio: float | None = 10.0
    trainable: tuple[str, ...] | None = None


# --- Tensors ------------------------------------------------------------------------------------


def buffer_names(model: Arrays) -> set[str]:
    """Running statistics: by name, or by their places in a list without names."""
    names = list(model)
    if names != [str(index) for index in range(len(names))]:
        return {name for name in names if RUNNING_STATISTIC.search(name)}
    found: set[str] = set()
    for mean, variance, count in zip(names, names[1:], names[2:], strict=False):
        floating = all(model[name].dtype.kind == "f" for name in (mean, variance))
        vectors = model[mean].shape == model[variance].shape and model[mean].ndim == 1
        if floating and vectors and model[count].ndim == 0 and model[count].dtype.kind in "iu":
            found |= {mean, variance}
    return found


def trainable_names(model: Arrays, named: Collection[str] | None) -> list[str]:
    chosen = set(model) - buffer_names(model) if named is None else set(named)
    return [name for name in model if name in chosen and model[name].dtype.kind == "f"]


# --- Section 1 and section 4's bounds: weights --------------------------------------------------


def directions(updates: Mapping[str, Numbers], trainable: Collection[str]) -> Numbers:
    """d_k = ⟨Δ_k, Σ_j Δ_j⟩."""
    parts = [updates[name] @ updates[name].sum(axis=0) for name in trainable]
    return np.asarray(sum(parts), dtype=np.float64)


def direction_signal(d: Numbers) -> tuple[Numbers, float]:
    """D_k and d̄; equal shares and 0 where the updates cancel."""
    if d.sum() <= 1e-12 * np.abs(d).sum():
        return np.full(len(d), 1 / len(d)), 0.0
    return d / d.sum(), float(d.mean()) / len(d)


def floored(losses: Numbers) -> Numbers:
    """Losses as they enter a quotient; equal ones where all are zero."""
    if not losses.any():
        return np.ones(len(losses))
    return np.asarray(np.maximum(losses, 1e-3 * losses.mean()))


def loss_signal(losses: Numbers) -> tuple[Numbers, float]:
    """E_k and ℓ̄."""
    return floored(losses) / floored(losses).sum(), float(losses.mean())


def bounded_losses(losses: Numbers, ratio: float | None) -> Numbers:
    """A loss counts within a factor of the round's median."""
    median = float(np.median(losses))
    return losses if ratio is None else np.clip(losses, median / ratio, median * ratio)


class Signal:
    """The memory of one signal, p or q: time counts in rounds.

    `clients` has s, δ, m, and L and H at the last visit, of each client ever seen.
    """

    def __init__(self, beta: float = 0.3) -> None:
        self.beta = beta
        self.first_size = 0.0
        self.rounds = 0
        self.L = self.H = 0.0
        self.clients: dict[int, Numbers] = {}
        self.brought = 0.0

    def step(
        self, there: Sequence[int] | NDArray[np.int64], shares: Numbers, size: float
    ) -> Numbers:
        """Play a round of these clients, and return x."""
        count = len(there)
        self.rounds += 1
        if self.first_size == 0.0:
            self.first_size = size
        r = min(1 - 1e-12, self.beta * size / self.first_size) if size > 0 else 0.0
        self.L += math.log1p(-r)
        if self.rounds > 1:
            self.H -= math.log1p(-math.expm1(self.L))

        never = np.full(5, np.nan)
        s, d, m, L_k, H_k = np.array([self.clients.get(int(k), never) for k in there]).T
        new = np.isnan(s)
        P = max(np.where(new, 1.0, s).sum(), count / 4)
        o, tamed = P * shares, P * np.clip(shares, 0, 5 / count)

        c = -np.expm1(self.L - L_k)
        d_back, m_back = d + c * (tamed - d) + r * (o - tamed), m + c * (1 - m)
        d_new, m_new = (r * o, r) if self.rounds == 1 else (r * (tamed + 1), 2 * r)
        d, m = np.where(new, d_new, d_back), np.where(new, m_new, m_back)
        with np.errstate(invalid="ignore", divide="ignore"):
            T = np.where(m > 0, d / m, np.where(new, 1.0, s))
        s = np.where(new, T, T + (s - T) * np.exp(self.H - H_k))

        s = s * P / s.sum() if s.sum() > 0 else np.full(count, P / count)
        for k, *remembered in zip(there, s, d, m, strict=True):
            self.clients[int(k)] = np.array([*remembered, self.L, self.H])
        self.brought = float(P)
        return np.asarray(s / P)


def mixed(p: Numbers, q: Numbers) -> Numbers:
    """λ_k = (σ_p·p_k + σ_q·q_k) / (σ_p + σ_q)."""
    if len(p) == 1:
        return np.ones(1)
    sigma_p, sigma_q = p.std(ddof=1), q.std(ddof=1)
    if sigma_p + sigma_q == 0:
        return (p + q) / 2
    return np.asarray((sigma_p * p + sigma_q * q) / (sigma_p + sigma_q))


def clipped(weights: Numbers) -> Numbers:
    """No client is trained against."""
    positive = np.maximum(weights, 0.0)
    return np.asarray(positive / positive.sum())


def bounded_weights(weights: Numbers, most: float | None) -> Numbers:
    """λ_k ≤ most / N, the rest shared in proportion (equally by those that all have 0)."""
    if most is None:
        return weights
    limit = most / len(weights)
    at_limit = np.zeros(len(weights), dtype=bool)
    bounded = weights
    while (bounded > limit * (1 + 1e-12)).any():
        at_limit |= bounded > limit * (1 + 1e-12)
        others = np.where(at_limit, 0.0, weights)
        if not others.any():
            others = np.where(at_limit, 0.0, 1.0)
        left = 1 - at_limit.sum() * limit
        bounded = np.where(at_limit, limit, others * left / others.sum())
    return bounded


def relative_losses(losses: Numbers, brought: float) -> Numbers:
    """u_k = (ℓ_k / ℓ̄)·P_q/N."""
    ratio = losses / losses.mean() if losses.any() else np.ones(len(losses))
    return ratio * brought / len(losses)


# --- Section 2: parameter adjustment ------------------------------------------------------------


def drop_rates(losses: Numbers, mean_rate: float) -> Numbers:
    """r_k = min(1, r̄ · (1/ℓ_k) / mean_j(1/ℓ_j))."""
    inverse = 1 / floored(losses)
    return np.asarray(np.minimum(1.0, mean_rate * inverse / inverse.mean()))


def entry_count(entries: int, rate: float) -> int:
    """⌊n·r⌋."""
    return min(entries, math.floor(entries * rate + 1e-9))


def masked(update: Numbers, rate: float) -> tuple[Numbers, float]:
    """Δ̃_k and m_k of one tensor, flat."""
    smallest = np.argsort(np.abs(update), kind="stable")[: entry_count(update.size, rate)]
    kept = update.copy()
    kept[smallest] = 0.0
    return kept, float(np.abs(update[smallest]).mean()) if smallest.size else 0.0


def scores(updates: Numbers) -> Numbers:
    """(Σ_k x_kj)² / Σ_k x_kj² in 16 significant bits, with x_k = Δ̃_k / ‖Δ̃_k‖."""
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    x = np.divide(updates, norms, out=np.zeros_like(updates), where=norms > 0)
    squares = (x**2).sum(axis=0)
    score = np.divide(x.sum(axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
    mantissa, exponent = np.frexp(score)
    return np.asarray(np.ldexp(np.floor(mantissa * 2**16 + 0.5), exponent - 16))


def consensus_set(score: Numbers, count: int) -> NDArray[np.bool_]:
    """C: the entries of largest score, ties by lower index."""
    members = np.zeros(len(score), dtype=bool)
    members[np.argsort(-score, kind="stable")[:count]] = True
    return members


def factor(g: Numbers, members: NDArray[np.bool_], m: float) -> float:
    """f = 1 + m/a with a = mean_{j∈C} |g_j|, if a ≠ 0 and m/a < 1."""
    a = float(np.abs(g[members]).mean()) if members.any() else 0.0
    return 1 + m / a if a != 0 and m / a < 1 else 1.0


# --- Section 3: the clients adjust --------------------------------------------------------------


@dataclass(frozen=True)
class Agreed:
    """C and f of one tensor."""

    members: NDArray[np.bool_]
    factor: float


@dataclass(frozen=True)
class Asked:
    """What a round asks its clients for: r_k (None: nothing), and C and f by tensor."""

    rates: Mapping[int, float] | None = None
    consensus: Mapping[str, Agreed] = field(default_factory=dict)


def adjusted(
    w: Numbers, w_k: Numbers, rate: float, agreed: Agreed | None, keep_sign: bool
) -> tuple[Numbers, float]:
    """What a client does to one tensor of its update: Δ̃_k with f on C, and m_k."""
    update, magnitude = masked(w - w_k, rate)
    if agreed is not None:
        rescaled = np.where(agreed.members, agreed.factor * update, update)
        if keep_sign and (w >= 0).all() and (w_k >= 0).all():
            rescaled = np.where(w - rescaled < 0, update, rescaled)
        update = rescaled
    return update, magnitude


# --- A round ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """One client's w_k, ℓ_k and number of examples."""

    model: Arrays
    loss: float
    examples: float = 1.0


@dataclass(frozen=True)
class Step:
    """What a round gives; lists run over the clients, ascending. p and q: None without AWA."""

    clients: list[int]
    model: dict[str, NDArray[Any]]
    weights: Numbers
    p: Numbers | None
    q: Numbers | None
    losses: Numbers
    relative_losses: Numbers
    rates: Numbers | None
    factors: dict[str, float]


class Server:
    """Plays rounds. `asked` says what the clients adjust themselves; None: the server adjusts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rounds = 0
        self.direction, self.loss = Signal(settings.beta), Signal(settings.beta)
        self.relative_losses: dict[int, float] = {}
        self.consensus: dict[str, Agreed] = {}

    def ask(self, selected: Sequence[int]) -> Asked:
        """What the clients that were selected are to do to their updates."""
        if self.rounds == 0:
            return Asked()
        rates = dict.fromkeys(selected, self.settings.avg_drop_rate)
        known = [k for k in selected if k in self.relative_losses]
        if known:
            u = np.array([self.relative_losses[k] for k in known])
            u = bounded_losses(u, self.settings.max_loss_ratio)
            shares = drop_rates(u, self.settings.avg_drop_rate).tolist()
            rates |= dict(zip(known, shares, strict=True))
        return Asked(rates, dict(self.consensus))

    def step(self, model: Arrays, replies: Mapping[int, Reply], asked: Asked | None = None) -> Step:
        """Aggregate models as they were trained, before any adjustment."""
        settings, clients = self.settings, sorted(replies)
        trainable = trainable_names(model, settings.trainable)
        floating = [name for name, array in model.items() if array.dtype.kind == "f"]
        w = {name: model[name].astype(np.float64).reshape(-1) for name in floating}
        trained = {
            name: np.array([replies[k].model[name] for k in clients], dtype=np.float64).reshape(
                len(clients), -1
            )
            for name in floating
        }
        losses = np.array([replies[k].loss for k in clients])
        losses = bounded_losses(losses, settings.max_loss_ratio)
        rates = self._rates(clients, losses, asked)

        updates = {name: w[name] - trained[name] for name in floating}
        magnitudes = {name: np.zeros(len(clients)) for name in floating}
        if asked is not None and rates is not None:
            for name in floating:
                agreed = asked.consensus.get(name)
                for row, rate in enumerate(rates):
                    updates[name][row], magnitudes[name][row] = adjusted(
                        w[name], trained[name][row], rate, agreed, settings.clip_weights
                    )
        weights, p, q = self._weigh(clients, updates, trainable, losses, replies)
        if asked is None and rates is not None:
            for name in floating:
                for row, rate in enumerate(rates):
                    updates[name][row], magnitudes[name][row] = masked(updates[name][row], rate)

        after: dict[str, NDArray[Any]] = {}
        found: dict[str, Agreed] = {}
        for name, array in model.items():
            if name not in w:
                counters = np.array([replies[k].model[name] for k in clients], dtype=np.float64)
                after[name] = np.rint(np.tensordot(weights, counters, 1)).astype(array.dtype)
                continue
            g = plain = weights @ updates[name]
            if name in trainable and rates is not None:
                agreed = None if asked is None else asked.consensus.get(name)
                found[name] = self._agreed(updates[name], g, magnitudes[name], rates, agreed)
                if asked is None:
                    g = np.where(found[name].members, found[name].factor * g, g)
            moved = w[name] - g
            if settings.clip_weights and (w[name] >= 0).all() and (trained[name] >= 0).all():
                moved = np.where(moved < 0, w[name] - plain, moved)
            after[name] = moved.reshape(array.shape)

        factors = {name: agreed.factor for name, agreed in found.items()}
        if asked is not None and rates is not None:
            self.consensus = {name: each for name, each in found.items() if each.factor > 1}
        self.rounds += 1
        u = relative_losses(losses, self.loss.brought)
        self.relative_losses |= dict(zip(clients, u.tolist(), strict=True))
        return Step(clients, after, weights, p, q, losses, u, rates, factors)

    def _rates(self, clients: list[int], losses: Numbers, asked: Asked | None) -> Numbers | None:
        if not self.settings.adjust_parameters:
            return None
        if asked is not None:
            return None if asked.rates is None else np.array([asked.rates[k] for k in clients])
        return drop_rates(losses, self.settings.avg_drop_rate) if self.rounds else None

    def _weigh(
        self,
        clients: list[int],
        updates: Mapping[str, Numbers],
        trainable: Collection[str],
        losses: Numbers,
        replies: Mapping[int, Reply],
    ) -> tuple[Numbers, Numbers | None, Numbers | None]:
        q = self.loss.step(clients, *loss_signal(losses))
        if not self.settings.adapt_weights:
            examples = np.array([replies[k].examples for k in clients])
            return examples / examples.sum(), None, None
        p = self.direction.step(clients, *direction_signal(directions(updates, trainable)))
        weights = mixed(p, q)
        if self.settings.clip_weights:
            weights = clipped(weights)
        return bounded_weights(weights, self.settings.max_weight), p, q

    def _agreed(
        self,
        updates: Numbers,
        g: Numbers,
        magnitudes: Numbers,
        rates: Numbers,
        sent: Agreed | None,
    ) -> Agreed:
        """C and f of one tensor; the f that was sent is divided out of g on the C that was sent."""
        entries = len(g)
        if not all(entry_count(entries, rate) for rate in rates):
            return Agreed(np.zeros(entries, dtype=bool), 1.0)
        members = consensus_set(scores(updates), entry_count(entries, self.settings.avg_drop_rate))
        unscaled = g if sent is None else np.where(sent.members, g / sent.factor, g)
        return Agreed(members, factor(unscaled, members, float(magnitudes.mean())))
