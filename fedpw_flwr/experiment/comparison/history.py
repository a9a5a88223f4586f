"""A run's figures round by round, as arrays: all that tables and pictures need of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpw_flwr.experiment.comparison.figures import CLIENT_FIGURES, DOMAIN_FIGURES, accuracy_of
from fedpw_flwr.experiment.records import ClientFigures, RoundRecord
from fedpw_flwr.fairness import fairness_report

__all__ = ["History"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class History:
    """Figures of every recorded round of a run.

    Attributes
    ----------
    rounds : FloatArray
        Numbers of the R rounds, ascending, shape (R,); 0 is the initial model.
    domains : tuple[str, ...]
        Names of the domains, in the order recorded.
    figures : Mapping[str, FloatArray]
        By `Figure.key`, each of shape (R,): accuracies in percent, standard deviations in points,
        angles in degrees. NaN where a round has no such figure. A key is missing where no round
        can have it: those over clients where no client has test pictures, and all over domains but
        the mean where there is one domain.
    domain_weights : Mapping[str, FloatArray]
        Mean share of a domain's participants in the round's aggregation weights, shape (R,), in
        units of the equal share 1/N; NaN where none of them took part. Empty where no round
        recorded its clients.
    client_weights : Mapping[str, FloatArray]
        ``"largest"``, ``"median"`` and ``"smallest"`` share of a round's participants, likewise.
    """

    rounds: FloatArray
    domains: tuple[str, ...]
    figures: Mapping[str, FloatArray]
    domain_weights: Mapping[str, FloatArray]
    client_weights: Mapping[str, FloatArray]

    @classmethod
    def of_rounds(cls, records: Sequence[RoundRecord]) -> History:
        """Compute the figures of rounds that were recorded in this order."""
        domains = tuple(dict.fromkeys(domain for record in records for domain in record.accuracy))
        return cls(
            rounds=np.array([record.round for record in records], dtype=np.float64),
            domains=domains,
            figures=_over_domains(records, domains) | _over_clients(records),
            domain_weights=_domain_weights(records),
            client_weights=_client_weights(records),
        )

    def last_round(self, key: str) -> float:
        """Return a figure after the last round; NaN where the run has no such figure."""
        values = self.figures.get(key)
        return math.nan if values is None or not len(values) else float(values[-1])

    def mean_of_last(self, key: str, count: int) -> float:
        """Return a figure's mean over the last `count` trained rounds, fewer where there are fewer.

        The initial model (round 0) is no trained round. NaN if one of these rounds has no figure.
        """
        values = self.figures.get(key)
        if values is None:
            return math.nan
        trained = values[self.rounds > 0] if (self.rounds > 0).any() else values
        return float(trained[-count:].mean()) if len(trained) else math.nan

    def first_reached(self, key: str, target: float) -> int | None:
        """Return the first round in which a figure is at or above the target; None if none is.

        The initial model (round 0) reached nothing by training.
        """
        values = self.figures.get(key)
        if values is None:
            return None
        reached = np.flatnonzero((values >= target) & (self.rounds > 0))
        return int(self.rounds[reached[0]]) if reached.size else None


def _over_domains(records: Sequence[RoundRecord], domains: Sequence[str]) -> dict[str, FloatArray]:
    figures = {
        accuracy_of(domain).key: np.array(
            [100 * record.accuracy.get(domain, math.nan) for record in records]
        )
        for domain in domains
    }
    spreads = [record.spread for record in records]
    for figure in DOMAIN_FIGURES[: None if len(domains) > 1 else 1]:
        name = figure.key.removeprefix("domains.")
        figures[figure.key] = np.array([100 * getattr(spread, name) for spread in spreads])
    return figures


def _over_clients(records: Sequence[RoundRecord]) -> dict[str, FloatArray]:
    if all(record.client_accuracy is None for record in records):
        return {}
    rows = [_of_clients(record.client_accuracy) for record in records]
    return {
        figure.key: np.array([row[place] for row in rows])
        for place, figure in enumerate(CLIENT_FIGURES)
    }


def _of_clients(accuracy: Sequence[float] | None) -> list[float]:
    # A client without a figure makes all of them unknown: leaving it out would report a better
    # worst client than there was.
    if not accuracy or not all(map(math.isfinite, accuracy)):
        return [math.nan] * len(CLIENT_FIGURES)
    report = fairness_report(accuracy).to_dict()
    return [
        report[figure.key.removeprefix("clients.")] * (1 if figure.unit == "°" else 100)
        for figure in CLIENT_FIGURES
    ]


def _domain_weights(records: Sequence[RoundRecord]) -> dict[str, FloatArray]:
    taking_part = [record.clients for record in records]
    domains = dict.fromkeys(
        domain for clients in taking_part if clients is not None for domain in clients.domain
    )
    weights = {domain: np.full(len(records), math.nan) for domain in domains}
    for row, clients in enumerate(taking_part):
        if clients is None:
            continue
        shares = _relative_to_equal(clients)
        for domain in set(clients.domain):
            of_domain = [name == domain for name in clients.domain]
            weights[domain][row] = float(shares[of_domain].mean())
    return weights


def _client_weights(records: Sequence[RoundRecord]) -> dict[str, FloatArray]:
    if all(record.clients is None for record in records):
        return {}
    weights = {name: np.full(len(records), math.nan) for name in ("largest", "median", "smallest")}
    for row, record in enumerate(records):
        if record.clients is None or not record.clients.weight:
            continue
        shares = _relative_to_equal(record.clients)
        weights["largest"][row] = shares.max()
        weights["median"][row] = np.median(shares)
        weights["smallest"][row] = shares.min()
    return weights


def _relative_to_equal(clients: ClientFigures) -> FloatArray:
    """Return shares times the number of participants, so that rounds of any size compare."""
    return np.asarray(clients.weight_shares, dtype=np.float64) * len(clients.weight)
