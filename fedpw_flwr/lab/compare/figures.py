"""The figures that papers on fair federated learning report, and what they are called.

Two kinds of test judge the global model: every *domain's* test set (a domain is a source of data,
such as SVHN), and every *client's* own test images. In files a figure is known by a key such as
``accuracy.mnist``, ``domains.std`` or ``clients.worst_10``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CLIENT_FIGURES", "DOMAIN_FIGURES", "Basis", "Figure", "accuracy_of"]

Basis = Literal["domains", "clients"]
"""Whom accuracies are compared between."""


@dataclass(frozen=True)
class Figure:
    """One figure of a round.

    Attributes
    ----------
    key : str
        Its name in files.
    label : str
        Its name in tables.
    unit : str
        ``"%"``; ``"points"``, a difference of percentages; or ``"°"``, degrees.
    higher_is_better : bool
        Whether the best method is the one with the highest value, or the one with the lowest.
    """

    key: str
    label: str
    unit: str = "%"
    higher_is_better: bool = True


def accuracy_of(domain: str) -> Figure:
    """Return the figure that is the accuracy on a domain's test set."""
    return Figure(f"accuracy.{domain}", domain)


DOMAIN_FIGURES = (
    Figure("domains.mean", "AVG"),
    Figure("domains.std", "STD", "points", higher_is_better=False),
    Figure("domains.worst", "worst"),
)
"""Mean, standard deviation (ddof = 1) and lowest value of the accuracies over domains."""

CLIENT_FIGURES = (
    Figure("clients.mean", "mean"),
    Figure("clients.std", "STD", "points", higher_is_better=False),
    Figure("clients.worst_5", "worst 5 %"),
    Figure("clients.worst_10", "worst 10 %"),
    Figure("clients.worst_20", "worst 20 %"),
    Figure("clients.best_5", "best 5 %"),
    Figure("clients.best_10", "best 10 %"),
    Figure("clients.best_20", "best 20 %"),
    Figure("clients.angle", "angle", "°", higher_is_better=False),
)
"""Those of `fedpw_flwr.fairness.FairnessReport` over the clients' accuracies."""
