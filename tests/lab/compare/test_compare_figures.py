"""A run's rounds become the figures that papers report."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.compare.figures import CLIENT_FIGURES, history_of
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord


def history(
    *accuracies: dict[str, float],
    client_accuracy: list[float] | None = None,
    clients: tuple[ClientFigures | None, ...] = (),
) -> pd.DataFrame:
    """The figures of rounds of which the first is round 1."""
    records = [
        RoundRecord(
            number,
            1.0,
            accuracy,
            dict.fromkeys(accuracy, 1.0),
            clients=clients[number - 1] if clients else None,
            client_accuracy=client_accuracy,
        )
        for number, accuracy in enumerate(accuracies, start=1)
    ]
    return history_of(records)


def test_figures_over_clients_are_those_of_the_fairness_report() -> None:
    accuracy = np.linspace(0.2, 0.9, 20).tolist()
    last = history({"a": 0.5}, client_accuracy=accuracy).iloc[-1]
    for name, value in fairness_report(accuracy).to_dict().items():
        if name not in ("clients", "worst", "best", "jain_index", "entropy"):
            scale = 1 if name == "angle" else 100
            assert last[f"clients.{name}"] == pytest.approx(scale * value), name


def test_a_client_without_a_figure_makes_the_clients_figures_unknown() -> None:
    last = history({"a": 0.5}, client_accuracy=[0.5, math.nan]).iloc[-1]
    assert all(math.isnan(last[figure.key]) for figure in CLIENT_FIGURES)
    assert not any(key.startswith("clients.") for key in history({"a": 0.5}))


def test_weights_are_shares_relative_to_the_equal_share_of_the_round() -> None:
    four = ClientFigures([0, 1, 2, 3], ["a", "a", "b", "b"], [0.4, 0.3, 0.2, 0.1])
    two = ClientFigures([0, 2], ["a", "b"], [0.5, 0.5])
    one = ClientFigures([0], ["a"], [1.0])
    # Weights that also say how far the server steps, and a server that does not.
    short = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.03, 0.01, 0.01])
    nothing = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.0, 0.0, 0.0])
    clients = (None, four, two, one, short, nothing)
    found = history(*[{"a": 0.1, "b": 0.1}] * 6, clients=clients)
    unknown = math.nan
    for name, shares in {
        "domain_weight.a": [unknown, 1.4, 1.0, 1.0, 1.2, unknown],
        "domain_weight.b": [unknown, 0.6, 1.0, unknown, 0.6, unknown],
        "client_weight.largest": [unknown, 1.6, 1.0, 1.0, 1.8, unknown],
        "client_weight.smallest": [unknown, 0.4, 1.0, 1.0, 0.6, unknown],
    }.items():
        np.testing.assert_allclose(found[name], shares, err_msg=name)
