"""FedPW with adjustment on the clients, once more: NumPy, double precision, one line a formula.

Written from ALGORITHM.md, sections 1 to 4, and from nothing else; slow, and sorts where the package
selects. Momentum is the paper's, so with adaptive weights clients may join late but not stay away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Arrays = dict[str, Vector]


@dataclass(frozen=True)
class Asked:
    """What a round asks its clients: r_k (None: nothing), and C (indices) and f by tensor."""

    rates: dict[int, float] | None
    members: dict[str, list[int]]
    factors: dict[str, float]


@dataclass
class Signal:
    """p, δp and d̄₀ of section 4 (or q, δq and ℓ̄₀)."""

    share: dict[int, float] = field(default_factory=dict)
    momentum: dict[int, float] = field(default_factory=dict)
    first: float | None = None

    def moved(
        self, clients: Sequence[int], shares: Vector, size: float, beta: float, first_round: bool
    ) -> Vector:
        count = len(clients)
        self.first = size if self.first is None else self.first
        rate = min(1.0, beta * size / self.first)
        returning = [self.momentum[client] for client in clients if client in self.momentum]
        mean = sum(returning) / len(returning) if returning else 0.0
        momentum = np.array([self.momentum.get(client, mean) for client in clients])
        momentum = (1 - rate) * momentum + rate * count * shares
        brought = np.array([self.share.get(client, 1.0) for client in clients])
        total = float(count) if first_round else float(brought.sum())
        before = np.zeros(count) if first_round else brought / total
        moved = before + momentum / count
        term: Vector = moved / moved.sum() if moved.sum() > 0 else np.full(count, 1 / count)
        for client, share, delta in zip(clients, term, momentum, strict=True):
            self.share[client], self.momentum[client] = total * share, delta
        return term


def entry_count(entries: int, rate: float) -> int:
    return math.floor(entries * rate + 1e-9)


def floored(losses: Vector) -> Vector:
    return np.asarray(np.maximum(losses, 1e-3 * losses.mean()), dtype=np.float64)


def masked(update: Vector, rate: float) -> tuple[Vector, float]:
    """Δ̃_k and m_k of one tensor, flat."""
    flat: Vector = update.reshape(-1).copy()
    smallest = np.argsort(np.abs(flat), kind="stable")[: entry_count(flat.size, rate)]
    magnitude = float(np.abs(flat[smallest]).mean()) if smallest.size else 0.0
    flat[smallest] = 0.0
    return flat, magnitude


def consensus_indices(updates: Sequence[Vector], count: int) -> list[int]:
    """C: the entries on which the unit-normalised columns agree most."""
    columns = np.array([update / (np.linalg.norm(update) or 1.0) for update in updates])
    squares = (columns**2).sum(axis=0)
    score = np.divide(
        columns.sum(axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0
    )
    return sorted(np.argsort(-score, kind="stable")[:count].tolist())


class ReferenceServer:
    """The server, and what its clients do to their updates.

    Parameters
    ----------
    trainable, buffers : Sequence[str]
        Names of the floating tensors; any other tensor is a counter.
    mean_rate, beta : float
        r̄ and β.
    adapt : bool
        Adaptive weights; else by number of examples.
    """

    def __init__(
        self,
        trainable: Sequence[str],
        buffers: Sequence[str],
        mean_rate: float,
        beta: float = 0.3,
        adapt: bool = True,
    ) -> None:
        self.trainable, self.buffers = trainable, buffers
        self.mean_rate, self.beta, self.adapt = mean_rate, beta, adapt
        self.rounds = 0
        self.losses: dict[int, float] = {}
        self.members: dict[str, list[int]] = {}
        self.factors: dict[str, float] = {}
        self.direction, self.loss = Signal(), Signal()
        self.weights: Vector = np.zeros(0)

    def ask(self, selected: Sequence[int]) -> Asked:
        if self.rounds == 0:
            return Asked(None, {}, {})
        rates = dict.fromkeys(selected, self.mean_rate)
        known = [client for client in selected if client in self.losses]
        if known:
            inverse = 1 / floored(np.array([self.losses[client] for client in known]))
            for client, share in zip(known, inverse / inverse.mean(), strict=True):
                rates[client] = min(1.0, self.mean_rate * float(share))
        return Asked(rates, dict(self.members), dict(self.factors))

    def aggregate(
        self,
        model: Mapping[str, Vector],
        trained: Mapping[int, Mapping[str, Vector]],
        losses: Mapping[int, float],
        examples: Mapping[int, float],
        asked: Asked,
    ) -> Arrays:
        """The next model, from the models as trained (before any adjustment) of those who reply."""
        clients = sorted(trained)
        floating = [*self.trainable, *self.buffers]
        updates: dict[str, list[Vector]] = {name: [] for name in floating}
        discarded: dict[str, list[float]] = {name: [] for name in floating}
        for client in clients:
            for name in floating:
                update = (model[name] - trained[client][name]).reshape(-1)
                magnitude = 0.0
                if asked.rates is not None:
                    update, magnitude = masked(update, asked.rates[client])
                    if name in asked.members:
                        update[asked.members[name]] *= asked.factors[name]
                updates[name].append(update)
                discarded[name].append(magnitude)

        self.weights = self._weights(clients, updates, losses, examples)
        result: Arrays = {}
        members: dict[str, list[int]] = {}
        factors: dict[str, float] = {}
        for name, start in model.items():
            if name not in floating:
                mean = sum(
                    weight * trained[client][name]
                    for weight, client in zip(self.weights, clients, strict=True)
                )
                result[name] = np.rint(mean)
                continue
            g = sum(
                weight * update for weight, update in zip(self.weights, updates[name], strict=True)
            )
            result[name] = start - np.reshape(g, start.shape)
            if asked.rates is None or name not in self.trainable:
                continue
            if not all(entry_count(start.size, asked.rates[client]) for client in clients):
                continue
            chosen = consensus_indices(updates[name], entry_count(start.size, self.mean_rate))
            unscaled = np.array(g)
            if name in asked.members:
                unscaled[asked.members[name]] /= asked.factors[name]
            m, a = np.mean(discarded[name]), np.abs(unscaled[chosen]).mean() if chosen else 0.0
            if a != 0 and m / a < 1 and m > 0:
                members[name], factors[name] = chosen, float(1 + m / a)
        if asked.rates is not None:
            self.members, self.factors = members, factors
        self.losses.update(losses)
        self.rounds += 1
        return result

    def _weights(
        self,
        clients: Sequence[int],
        updates: Mapping[str, Sequence[Vector]],
        losses: Mapping[int, float],
        examples: Mapping[int, float],
    ) -> Vector:
        count = len(clients)
        if not self.adapt:
            counts = np.array([examples[client] for client in clients])
            return np.asarray(counts / counts.sum())
        matrix = np.array(
            [np.concatenate([updates[name][k] for name in self.trainable]) for k in range(count)]
        )
        d = matrix @ matrix.sum(axis=0)
        loss = np.array([losses[client] for client in clients])
        first = self.rounds == 0
        p = self.direction.moved(clients, d / d.sum(), float(d.mean()) / count, self.beta, first)
        shares = floored(loss) / floored(loss).sum()
        q = self.loss.moved(clients, shares, float(loss.mean()), self.beta, first)
        if count == 1:
            return np.ones(1)
        spread_p, spread_q = p.std(ddof=1), q.std(ddof=1)
        mixed = (spread_p * p + spread_q * q) / (spread_p + spread_q)
        if spread_p + spread_q == 0:
            mixed = (p + q) / 2
        clipped = np.maximum(mixed, 0.0)
        return np.asarray(clipped / clipped.sum())
