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


def test_figures_over_domains_are_mean_std_with_ddof_1_and_worst_in_percent() -> None:
    last = history({"a": 0.1, "b": 0.1}, {"a": 0.9, "b": 0.5}).iloc[-1]
    assert last["accuracy.a"] == pytest.approx(90)
    assert last["domains.mean"] == pytest.approx(70)
    assert last["domains.std"] == pytest.approx(math.sqrt(2 * 20**2))
    assert last["domains.worst"] == pytest.approx(50)


def test_one_domain_has_a_mean_and_no_spread() -> None:
    found = history({"only": 0.4})
    assert found.iloc[-1]["domains.mean"] == pytest.approx(40)
    assert "domains.std" not in found


def test_figures_over_clients_are_those_of_the_fairness_report() -> None:
    accuracy = np.linspace(0.2, 0.9, 20).tolist()
    report = fairness_report(accuracy)
    last = history({"a": 0.5}, client_accuracy=accuracy).iloc[-1]
    assert last["clients.mean"] == pytest.approx(100 * report.mean)
    assert last["clients.std"] == pytest.approx(100 * report.std)
    assert last["clients.worst_5"] == pytest.approx(20)
    assert last["clients.worst_10"] == pytest.approx(100 * np.mean(accuracy[:2]))
    assert last["clients.best_20"] == pytest.approx(100 * np.mean(accuracy[-4:]))
    assert last["clients.angle"] == pytest.approx(report.angle)


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
