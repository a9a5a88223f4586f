"""ALGORITHM.md section 4's memory of clients in plain NumPy, written apart from the package.

One array entry a client of the population: share s, momentum δ, mass m, and L and H at the last
visit, all of them NaN for a client that was never there.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class ReferenceSignal:
    """One signal, p or q."""

    def __init__(self, population: int, beta: float = 0.3) -> None:
        self.beta = beta
        self.first_size = 0.0
        self.rounds = 0
        self.L = self.H = 0.0
        self.s, self.d, self.m, self.L_k, self.H_k = np.full((5, population), np.nan)

    def step(self, there: NDArray[np.int64], shares: Numbers, size: float) -> Numbers:
        """Play a round of these clients, and return x."""
        count = len(there)
        self.rounds += 1
        if self.first_size == 0.0:
            self.first_size = size
        r = min(1 - 1e-12, self.beta * size / self.first_size) if size > 0 else 0.0
        self.L += np.log1p(-r)
        if self.rounds > 1:
            self.H -= np.log1p(1 - np.exp(self.L))

        s, d, m = self.s[there], self.d[there], self.m[there]
        new = np.isnan(s)
        total = max(np.where(new, 1.0, s).sum(), count / 4)
        o, tamed = total * shares, total * np.clip(shares, 0, 5 / count)

        c = -np.expm1(self.L - self.L_k[there])
        d_back, m_back = d + c * (tamed - d) + r * (o - tamed), m + c * (1 - m)
        d_new, m_new = (r * o, r) if self.rounds == 1 else (r * (tamed + 1), 2 * r)
        d, m = np.where(new, d_new, d_back), np.where(new, m_new, m_back)
        with np.errstate(invalid="ignore", divide="ignore"):
            target = np.where(m > 0, d / m, np.where(new, 1.0, s))
        held = np.exp(self.H - self.H_k[there])
        s = np.where(new, target, target + (s - target) * held)

        s = s * total / s.sum() if s.sum() > 0 else np.full(count, total / count)
        self.s[there], self.d[there], self.m[there] = s, d, m
        self.L_k[there], self.H_k[there] = self.L, self.H
        return s / total
