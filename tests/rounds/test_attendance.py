"""Clients that do not come are waited for, but not for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.server import SimpleClientManager
from support.federation import (
    LEGACY,
    MODEL,
    Federation,
    assert_sound,
    both_apis,
    everyone,
    parameters_of,
    proxies_of,
)
from support.grid import ClientsGrid
from support.records import array_record

from fedpw_flwr.rounds.attendance import TooFewClientsError

FEW, ALL = [11, 12], [11, 12, 13, 14]


class _Looks:
    """Nodes of the first look, then of the second, ...; the last stay."""

    def __init__(self, looks: Sequence[Sequence[int]], **others: Any) -> None:
        super().__init__(**others)
        self.looks = looks
        self.times = 0

    def look(self) -> list[int]:
        self.times += 1
        return list(self.looks[min(self.times, len(self.looks)) - 1])


class ChangingGrid(_Looks, ClientsGrid):
    def get_node_ids(self) -> list[int]:
        return self.look()


class ChangingManager(_Looks, SimpleClientManager):
    def all(self) -> dict[str, Any]:
        self.clients = {one.cid: one for one in proxies_of(everyone(self.look()), list(MODEL))}
        return self.clients


def sampled(api: Federation, strategy: Any, *looks: Sequence[int]) -> tuple[list[list[int]], int]:
    """Who is asked in each of five rounds, and how often it was looked who is there."""
    rounds, arrays = [], array_record(MODEL)
    there: ChangingManager | ChangingGrid = ChangingGrid(looks, clients=everyone(ALL))
    if api is LEGACY:
        there = ChangingManager(looks)
    for server_round in range(1, 6):
        if isinstance(there, ChangingManager):
            asked = strategy.configure_fit(server_round, parameters_of(arrays), there)
            nodes = [proxy.node_id for proxy, _ in asked]
        else:
            sent = strategy.configure_train(server_round, arrays, ConfigRecord(), there)
            nodes = [message.metadata.dst_node_id for message in sent]
        rounds.append(sorted(nodes))
    return rounds, there.times


def waiting(api: Federation, seconds: float = 0.05, **options: Any) -> Any:
    return api.strategy(min_available_nodes=4, wait_for_clients=seconds, **options)


@both_apis
def test_run_stops_with_a_reason_where_clients_stay_away(api: Federation) -> None:
    with pytest.raises(TooFewClientsError, match=r"3 of 4 clients are there after 0\.05 s"):
        api.run(waiting(api), everyone([11, 12, 13]), 2)


@both_apis
def test_run_goes_on_with_those_that_are_there_and_says_so(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    run = api.run(waiting(api, when_missing="continue"), everyone([11, 12, 13]), 3)
    assert [metrics["fedpw-client-id"] for metrics in run.train.values()] == [[1, 2, 3]] * 3
    assert_sound(run.arrays)
    assert "3 of 4 clients are there after 0.05 s" in flower_log.text


@both_apis
def test_clients_that_come_in_time_are_waited_for(api: Federation) -> None:
    assert sampled(api, waiting(api), [11], ALL)[0] == [ALL] * 5


@both_apis
def test_clients_that_come_back_take_part_again_and_are_waited_for_again(api: Federation) -> None:
    """Round 1 looks until the limit has passed: twice. Then once, while nothing changes."""
    strategy = waiting(api, when_missing="continue")
    rounds, looks = sampled(api, strategy, FEW, FEW, FEW, ALL, FEW, FEW, FEW)
    assert rounds == [FEW, FEW, ALL, FEW, FEW]
    assert looks == 7


@both_apis
def test_where_nobody_is_left_there_is_nothing_to_go_on_with(api: Federation) -> None:
    with pytest.raises(TooFewClientsError, match="nobody is left"):
        sampled(api, waiting(api, when_missing="continue"), [])


@both_apis
def test_evaluation_waits_as_training_does(api: Federation) -> None:
    with pytest.raises(TooFewClientsError, match="1 of 4"):
        api.evaluate_round(waiting(api), everyone([11]))
    metrics = api.evaluate_round(waiting(api, when_missing="continue"), everyone([11]))
    assert metrics["accuracy"] == pytest.approx(0.54)


@both_apis
def test_minima_are_as_they_were_given_after_a_round_with_fewer(api: Federation) -> None:
    options = {"min_train_nodes": 3, "min_evaluate_nodes": 3}
    strategy = waiting(api, 0.0, when_missing="continue", **options)
    names = ["min_available_nodes", "min_train_nodes", "min_evaluate_nodes"]
    if api is LEGACY:
        names = ["min_available_clients", "min_fit_clients", "min_evaluate_clients"]
    api.run(strategy, everyone([11]), 2)
    assert [getattr(strategy, name) for name in names] == [4, 3, 3]


@both_apis
def test_settings_that_mean_nothing_are_refused(api: Federation) -> None:
    for limit in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="wait_for_clients"):
            api.strategy(wait_for_clients=limit)
    with pytest.raises(ValueError, match="'stop' or 'continue'"):
        api.strategy(when_missing="go on")
    with pytest.raises(TypeError, match="wait_for_clients must be seconds"):
        api.strategy(wait_for_clients="60")
