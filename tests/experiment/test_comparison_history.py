"""A run's rounds become the figures that papers report."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpw_flwr.experiment.comparison.figures import CLIENT_FIGURES
from fedpw_flwr.experiment.comparison.history import History
from fedpw_flwr.experiment.records import ClientFigures, RoundRecord
from fedpw_flwr.fairness import fairness_report


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


def test_figures_over_domains_are_mean_std_with_ddof_1_and_worst_in_percent() -> None:
    history = History.of_rounds([record(0, {"a": 0.1, "b": 0.1}), record(1, {"a": 0.9, "b": 0.5})])
    assert history.last_round("accuracy.a") == pytest.approx(90)
    assert history.last_round("domains.mean") == pytest.approx(70)
    assert history.last_round("domains.std") == pytest.approx(math.sqrt(2 * 20**2))
    assert history.last_round("domains.worst") == pytest.approx(50)


def test_one_domain_has_a_mean_and_no_spread() -> None:
    history = History.of_rounds([record(1, {"only": 0.4})])
    assert history.last_round("domains.mean") == pytest.approx(40)
    assert "domains.std" not in history.figures
    assert math.isnan(history.last_round("domains.std"))


def test_figures_over_clients_are_those_of_the_fairness_report() -> None:
    accuracy = np.linspace(0.2, 0.9, 20).tolist()
    report = fairness_report(accuracy)
    history = History.of_rounds([record(1, {"a": 0.5}, accuracy)])
    assert history.last_round("clients.mean") == pytest.approx(100 * report.mean)
    assert history.last_round("clients.std") == pytest.approx(100 * report.std)
    assert history.last_round("clients.worst_5") == pytest.approx(20)
    assert history.last_round("clients.worst_10") == pytest.approx(100 * np.mean(accuracy[:2]))
    assert history.last_round("clients.best_20") == pytest.approx(100 * np.mean(accuracy[-4:]))
    assert history.last_round("clients.angle") == pytest.approx(report.angle)


def test_a_client_without_a_figure_makes_the_clients_figures_unknown() -> None:
    history = History.of_rounds([record(1, {"a": 0.5}, [0.5, math.nan])])
    assert all(math.isnan(history.last_round(figure.key)) for figure in CLIENT_FIGURES)


def test_a_run_without_client_tests_has_no_clients_figures() -> None:
    history = History.of_rounds([record(1, {"a": 0.5})])
    assert not any(key.startswith("clients.") for key in history.figures)


def test_the_initial_model_is_no_part_of_the_last_rounds() -> None:
    rounds = [record(number, {"a": 0.1 * number}) for number in range(4)]
    history = History.of_rounds(rounds)
    assert history.mean_of_last("domains.mean", 2) == pytest.approx(25)
    assert history.mean_of_last("domains.mean", 5) == pytest.approx(20)


def test_an_unknown_round_makes_the_mean_of_the_last_rounds_unknown() -> None:
    history = History.of_rounds([record(1, {"a": 0.5}), record(2, {"a": math.nan})])
    assert math.isnan(history.mean_of_last("domains.mean", 5))
    assert math.isnan(history.last_round("domains.mean"))


def test_a_target_is_reached_by_the_first_round_at_or_above_it() -> None:
    rounds = [record(number, {"a": value}) for number, value in enumerate((0.1, 0.5, 0.75, 0.5))]
    history = History.of_rounds(rounds)
    assert history.first_reached("domains.mean", 50.0) == 1
    assert history.first_reached("domains.mean", 75.0) == 2
    assert history.first_reached("domains.mean", 75.1) is None


def test_the_initial_model_reaches_no_target() -> None:
    history = History.of_rounds([record(number, {"a": 0.5}) for number in range(3)])
    assert history.first_reached("domains.mean", 40.0) == 1


def test_weights_that_say_how_far_the_server_steps_are_drawn_as_shares() -> None:
    short = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.03, 0.01, 0.01])
    nothing = ClientFigures([0, 1, 2], ["a", "a", "b"], [0.0, 0.0, 0.0])
    history = History.of_rounds(
        [
            record(number, {"a": 0.1, "b": 0.1}, clients=clients)
            for number, clients in enumerate((short, nothing), start=1)
        ]
    )
    np.testing.assert_allclose(history.domain_weights["a"], [1.2, math.nan])
    np.testing.assert_allclose(history.domain_weights["b"], [0.6, math.nan])
    np.testing.assert_allclose(history.client_weights["largest"], [1.8, math.nan])
    np.testing.assert_allclose(history.client_weights["smallest"], [0.6, math.nan])


def test_weights_are_relative_to_the_equal_share_of_the_round() -> None:
    four = ClientFigures([0, 1, 2, 3], ["a", "a", "b", "b"], [0.4, 0.3, 0.2, 0.1])
    two = ClientFigures([0, 2], ["a", "b"], [0.5, 0.5])
    one = ClientFigures([0], ["a"], [1.0])
    rounds = [record(0, {"a": 0.1, "b": 0.1})]
    rounds += [
        record(number, {"a": 0.1, "b": 0.1}, clients=clients)
        for number, clients in enumerate((four, two, one), start=1)
    ]
    history = History.of_rounds(rounds)
    np.testing.assert_allclose(history.domain_weights["a"], [math.nan, 1.4, 1.0, 1.0])
    np.testing.assert_allclose(history.domain_weights["b"], [math.nan, 0.6, 1.0, math.nan])
    np.testing.assert_allclose(history.client_weights["largest"], [math.nan, 1.6, 1.0, 1.0])
    np.testing.assert_allclose(history.client_weights["smallest"], [math.nan, 0.4, 1.0, 1.0])
