"""The figures that papers on fair federated learning report: what they are, of a run's rounds.

Two kinds of test judge the global model: every *domain's* test set (a domain is a source of data,
such as SVHN), and every *client's* own test images. In files a figure is known by a key such as
``accuracy.mnist``, ``domains.std`` or ``clients.worst_10``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from fedpw_flwr.lab.runs.records import RoundRecord

Basis = Literal["domains", "clients"]
"""Whom accuracies are compared between."""

ACCURACY = "accuracy."
DOMAIN_WEIGHT, CLIENT_WEIGHT = "domain_weight.", "client_weight."


@dataclass(frozen=True)
class Figure:
    """One figure of a round: its name in files, its name in tables, and what it measures."""

    key: str
    label: str
    unit: str = "%"  # or "points", a difference of percentages, or "°", degrees
    higher_is_better: bool = True
    tested: bool = False  # against a reference: the more are, the more seem to differ by chance
    printed: bool = False  # on the terminal, as papers do in their main tables


def accuracy_of(domain: str) -> Figure:
    """Return the figure that is the accuracy on a domain's test set."""
    return Figure(f"{ACCURACY}{domain}", domain)


def auc_of(domain: str) -> Figure:
    """Return the figure that is the area under the ROC curve on a domain's test set."""
    return Figure(f"auc.{domain}", domain)


MEAN_AUC = Figure("aucs.mean", "mean AUC", tested=True, printed=True)
POOLED_AUC = Figure("aucs.pooled", "pooled")
"""That of the test sets of all domains together: to tell the domains apart raises it, too."""

DOMAIN_FIGURES = (
    Figure("domains.mean", "AVG", tested=True, printed=True),
    Figure("domains.std", "STD", "points", higher_is_better=False, tested=True, printed=True),
    Figure("domains.worst", "worst", tested=True, printed=True),
)
"""Mean, standard deviation (ddof = 1) and lowest value of the accuracies over domains."""

CLIENT_FIGURES = (
    Figure("clients.mean", "mean", tested=True, printed=True),
    Figure("clients.std", "STD", "points", higher_is_better=False, tested=True, printed=True),
    Figure("clients.worst_5", "worst 5 %"),
    Figure("clients.worst_10", "worst 10 %", tested=True, printed=True),
    Figure("clients.worst_20", "worst 20 %"),
    Figure("clients.best_5", "best 5 %"),
    Figure("clients.best_10", "best 10 %", tested=True),
    Figure("clients.best_20", "best 20 %"),
    Figure("clients.angle", "angle", "°", higher_is_better=False, tested=True),
)
"""Those of `fedpw_flwr.fairness.FairnessReport` over the clients' accuracies."""


def history_of(records: Sequence[RoundRecord]) -> pd.DataFrame:
    """Return a run's figures by `Figure.key`, one row a round; round 0 is the initial model.

    Accuracies are in percent, standard deviations in points, angles in degrees. Weights are in
    units of the equal share 1/N of the round's N participants: ``domain_weight.DOMAIN``, the mean
    share of the domain's participants, and ``client_weight.largest``, ``median`` and ``smallest``.
    ``tested`` is 1 or, where ``runtime.evaluate_every`` passed a round over, 0.
    NaN where a round has no such figure. A column is missing where no round can have it: those over
    clients where none has test images, weights where no round recorded its clients, and all over
    domains but the mean where there is one domain.
    """
    rounds = pd.Index([record.round for record in records], name="round")
    rows = [_domains(record) | _clients(record) | _weights(record) for record in records]
    history = pd.DataFrame(rows, index=rounds, dtype=np.float64)
    one_domain = history.columns.str.startswith(ACCURACY).sum() == 1
    return history.drop(columns=[each.key for each in DOMAIN_FIGURES[1:]] if one_domain else [])


def _domains(record: RoundRecord) -> dict[str, float]:
    shares = {accuracy_of(domain).key: value for domain, value in record.accuracy.items()}
    shares |= {f"domains.{name}": value for name, value in vars(record.spread).items()}
    if record.auc is not None and record.pooled_auc is not None:
        shares |= {auc_of(domain).key: value for domain, value in record.auc.items()}
        shares[MEAN_AUC.key] = float(np.mean(list(record.auc.values())))
        shares[POOLED_AUC.key] = record.pooled_auc
    tested = float(bool(record.accuracy))
    return {"tested": tested, **{key: 100 * value for key, value in shares.items()}}


def _clients(record: RoundRecord) -> dict[str, float]:
    if record.client_accuracy is None:
        return {}
    report = record.client_fairness or {}
    scales = {figure.key: 1 if figure.unit == "°" else 100 for figure in CLIENT_FIGURES}
    return {
        key: scale * report.get(key.removeprefix("clients."), math.nan)
        for key, scale in scales.items()
    }


def _weights(record: RoundRecord) -> dict[str, float]:
    clients = record.clients
    if clients is None or not clients.weight:
        return {}
    # Times the number of participants, so that rounds of any size compare.
    shares = np.asarray(clients.weight_shares, dtype=np.float64) * len(clients.weight)
    domains = np.array(clients.domain)
    means = {domain: shares[domains == domain].mean() for domain in dict.fromkeys(clients.domain)}
    ends = {"largest": shares.max(), "median": np.median(shares), "smallest": shares.min()}
    of_domains = {f"{DOMAIN_WEIGHT}{domain}": mean for domain, mean in means.items()}
    return of_domains | {f"{CLIENT_WEIGHT}{name}": share for name, share in ends.items()}
