"""Clients come and go: who is away keeps its place, and nothing breaks where nobody trains."""

from __future__ import annotations

import random

import pytest
from clients_grid import ClientsGrid, train_round
from federation import MODEL, good_client
from flwr.app import ConfigRecord
from model_records import array_record, payloads

from fedpw_flwr import FedPW

NODES = list(range(41, 49))


def test_training_can_be_switched_off() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    strategy = FedPW(fraction_train=0.0)
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=2)
    assert {message.metadata.message_type for message in grid.sent} == {"evaluate"}
    assert payloads(result.arrays) == payloads(array_record(MODEL))
    assert "accuracy" in result.evaluate_metrics_clientapp[2]
    assert strategy.state == FedPW().state


def test_absent_clients_keep_their_state() -> None:
    random.seed(5)
    strategy, arrays = FedPW(fraction_train=0.5), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    present_in = dict.fromkeys(NODES, 0)
    for server_round in range(1, 9):
        before = strategy.state
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        participants = metrics["fedpw-client-id"]
        assert len(participants) == 4
        assert sum(metrics["fedpw-weight"]) == pytest.approx(1.0)
        for signal_before, signal in (
            (before.direction, strategy.state.direction),
            (before.loss, strategy.state.loss),
        ):
            for client, memory in signal_before.clients.items():
                if client not in participants:
                    assert signal.clients[client] == memory
            assert set(signal.clients) == set(signal_before.clients) | set(participants)
        for client in participants:
            present_in[client] += 1
    assert all(present_in.values())
    assert strategy.state.rounds == 8


def test_only_sampled_nodes_are_asked() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    strategy = FedPW(fraction_train=0.25, min_train_nodes=1)
    messages = list(strategy.configure_train(1, array_record(MODEL), ConfigRecord(), grid))
    assert len(messages) == 2
    assert {message.metadata.dst_node_id for message in messages} <= set(NODES)


def test_single_client_gets_the_whole_weight() -> None:
    grid = ClientsGrid({41: good_client})
    strategy = FedPW(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=3)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["fedpw-weight"] == [1.0]
        assert metrics["fedpw-quarantined"] == 0


def test_newcomer_joins_with_the_average_share() -> None:
    strategy, arrays = FedPW(), array_record(MODEL)
    old = ClientsGrid(dict.fromkeys(NODES[:4], good_client))
    for server_round in (1, 2):
        arrays, _ = train_round(strategy, old, arrays, server_round)
    everyone = ClientsGrid(dict.fromkeys(NODES[:5], good_client))
    _, metrics = train_round(strategy, everyone, arrays, 3)
    assert metrics["fedpw-client-id"] == NODES[:5]
    total = sum(memory.share for memory in strategy.state.loss.clients.values())
    assert total == pytest.approx(5.0)


def test_order_of_replies_never_matters() -> None:
    outcomes = []
    for seed in range(4):
        shuffle = random.Random(seed)
        grid = ClientsGrid(
            dict.fromkeys(NODES, good_client),
            arrange=lambda replies, shuffle=shuffle: shuffle.sample(replies, len(replies)),
        )
        strategy = FedPW()
        result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=4)
        outcomes.append(
            (payloads(result.arrays), strategy.state, dict(result.train_metrics_clientapp))
        )
    for arrays, state, metrics in outcomes[1:]:
        assert arrays == outcomes[0][0]
        assert state == outcomes[0][1]
        for server_round, record in metrics.items():
            first = outcomes[0][2][server_round]
            assert record.keys() == first.keys()
            for key, value in record.items():
                assert value == pytest.approx(first[key], rel=1e-12)


def test_state_can_be_saved_and_a_run_continued_from_it() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    straight, arrays = FedPW(), array_record(MODEL)
    for server_round in (1, 2):
        arrays, _ = train_round(straight, grid, arrays, server_round)
    resumed = FedPW()
    resumed.state = type(straight.state).from_dict(straight.state.to_dict())
    expected, expected_metrics = train_round(straight, grid, arrays, 3)
    new_arrays, metrics = train_round(resumed, grid, arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert metrics == expected_metrics
    assert resumed.state == straight.state
