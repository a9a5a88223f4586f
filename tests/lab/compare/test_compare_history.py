"""A run's rounds become the figures that papers report."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.compare.figures import CLIENT_FIGURES
from fedpw_flwr.lab.compare.history import history_of
from fedpw_flwr.lab.compare.statistics import Window
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord


def record(
    number: int,
    accuracy: dict[str, float],
    client_accuracy: list[float] | None = None,
    clients: ClientFigures | None = None,
) -> RoundRecord:
    return RoundRecord(
        number,
        1.0,
        accuracy,
        dict.fromkeys(accuracy, 1.0),
        clients=clients,
        client_accuracy=client_accuracy,
    )


def last_rounds(history: pd.DataFrame, count: int) -> pd.Series:
    """The figures over the last rounds of a run."""
    runs = Window(count).of(pd.concat({("fedpw", 0): history}, names=["method", "seed"]))
    return runs.loc["fedpw", 0]


def test_figures_over_domains_are_mean_std_with_ddof_1_and_worst_in_percent() -> None:
    history = history_of([record(0, {"a": 0.1, "b": 0.1}), record(1, {"a": 0.9, "b": 0.5})])
    assert history.iloc[-1]["accuracy.a"] == pytest.approx(90)
    assert history.iloc[-1]["domains.mean"] == pytest.approx(70)
    assert history.iloc[-1]["domains.std"] == pytest.approx(math.sqrt(2 * 20**2))
    assert history.iloc[-1]["domains.worst"] == pytest.approx(50)


def test_one_domain_has_a_mean_and_no_spread() -> None:
    history = history_of([record(1, {"only": 0.4})])
    assert history.iloc[-1]["domains.mean"] == pytest.approx(40)
    assert "domains.std" not in history


def test_figures_over_clients_are_those_of_the_fairness_report() -> None:
    accuracy = np.linspace(0.2, 0.9, 20).tolist()
    report = fairness_report(accuracy)
    history = history_of([record(1, {"a": 0.5}, accuracy)])
    assert history.iloc[-1]["clients.mean"] == pytest.approx(100 * report.mean)
    assert history.iloc[-1]["clients.std"] == pytest.approx(100 * report.std)
    assert history.iloc[-1]["clients.worst_5"] == pytest.approx(20)
    assert history.iloc[-1]["clients.worst_10"] == pytest.approx(100 * np.mean(accuracy[:2]))
    assert history.iloc[-1]["clients.best_20"] == pytest.approx(100 * np.mean(accuracy[-4:]))
    assert history.iloc[-1]["clients.angle"] == pytest.approx(report.angle)


def test_a_client_without_a_figure_makes_the_clients_figures_unknown() -> None:
    history = history_of([record(1, {"a": 0.5}, [0.5, math.nan])])
    assert all(math.isnan(history.iloc[-1][figure.key]) for figure in CLIENT_FIGURES)


def test_a_run_without_client_tests_has_no_clients_figures() -> None:
    history = history_of([record(1, {"a": 0.5})])
    assert not any(key.startswith("clients.") for key in history)


def test_the_initial_model_is_no_part_of_the_last_rounds() -> None:
    rounds = [record(number, {"a": 0.1 * number}) for number in range(4)]
    history = history_of(rounds)
    assert last_rounds(history, 2)["domains.mean"] == pytest.approx(25)
    assert last_rounds(history, 5)["domains.mean"] == pytest.approx(20)


def test_an_unknown_round_makes_the_mean_of_the_last_rounds_unknown() -> None:
    history = history_of([record(1, {"a": 0.5}), record(2, {"a": math.nan})])
    assert math.isnan(last_rounds(history, 5)["domains.mean"])
    assert math.isnan(history.iloc[-1]["domains.mean"])


def test_weights_that_say_how_far_the_server_steps_are_drawn_as_shares() -> None:
    short = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.03, 0.01, 0.01])
    nothing = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.0, 0.0, 0.0])
    history = history_of(
        [
            record(number, {"a": 0.1, "b": 0.1}, clients=clients)
            for number, clients in enumerate((short, nothing), start=1)
        ]
    )
    np.testing.assert_allclose(history["domain_weight.a"], [1.2, math.nan])
    np.testing.assert_allclose(history["domain_weight.b"], [0.6, math.nan])
    np.testing.assert_allclose(history["client_weight.largest"], [1.8, math.nan])
    np.testing.assert_allclose(history["client_weight.smallest"], [0.6, math.nan])


def test_weights_are_relative_to_the_equal_share_of_the_round() -> None:
    four = ClientFigures([0, 1, 2, 3], ["a", "a", "b", "b"], [0.4, 0.3, 0.2, 0.1])
    two = ClientFigures([0, 2], ["a", "b"], [0.5, 0.5])
    one = ClientFigures([0], ["a"], [1.0])
    rounds = [record(0, {"a": 0.1, "b": 0.1})]
    rounds += [
        record(number, {"a": 0.1, "b": 0.1}, clients=clients)
        for number, clients in enumerate((four, two, one), start=1)
    ]
    history = history_of(rounds)
    np.testing.assert_allclose(history["domain_weight.a"], [math.nan, 1.4, 1.0, 1.0])
    np.testing.assert_allclose(history["domain_weight.b"], [math.nan, 0.6, 1.0, math.nan])
    np.testing.assert_allclose(history["client_weight.largest"], [math.nan, 1.6, 1.0, 1.0])
    np.testing.assert_allclose(history["client_weight.smallest"], [math.nan, 0.4, 1.0, 1.0])
