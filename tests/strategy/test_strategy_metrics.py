"""The numbers that FedPW adds to a round's train metrics."""

from __future__ import annotations

import math

import pytest
from federation import MODEL, good_client, train_reply
from flwr.app import Message, MetricRecord
from support.grid import ClientsGrid
from support.records import array_record

from fedpw_flwr import FedPW

NODES = [31, 32, 33, 34]
LISTS = (
    "fedpw-client-id",
    "fedpw-weight",
    "fedpw-p",
    "fedpw-q",
    "fedpw-drop-rate",
    "fedpw-loss",
)
NUMBERS = (
    "fedpw-loss-term-share",
    "fedpw-amplification",
    "fedpw-bounded",
    "fedpw-quarantined",
    "fedpw-failed",
)


def rounds_of(strategy: FedPW, num_rounds: int = 3) -> list[MetricRecord]:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=num_rounds)
    return [result.train_metrics_clientapp[t] for t in range(1, num_rounds + 1)]


def test_lists_run_in_parallel_over_the_participants() -> None:
    for metrics in rounds_of(FedPW()):
        assert all(isinstance(metrics[key], list) for key in LISTS)
        assert {len(metrics[key]) for key in LISTS} == {4}
        assert all(isinstance(metrics[key], int | float) for key in NUMBERS)


def test_weights_and_terms_sum_to_one() -> None:
    for metrics in rounds_of(FedPW()):
        for key in ("fedpw-weight", "fedpw-p", "fedpw-q"):
            assert math.fsum(metrics[key]) == pytest.approx(1.0, abs=1e-12)
        assert min(metrics["fedpw-weight"]) >= 0
        assert 0 <= metrics["fedpw-loss-term-share"] <= 1


def test_weight_is_the_mix_of_the_terms_by_the_loss_terms_share() -> None:
    for metrics in rounds_of(FedPW(clip_weights=False)):
        share = metrics["fedpw-loss-term-share"]
        mixed = [
            (1 - share) * p + share * q
            for p, q in zip(metrics["fedpw-p"], metrics["fedpw-q"], strict=True)
        ]
        assert metrics["fedpw-weight"] == pytest.approx(mixed, abs=1e-12)


def test_nothing_is_dropped_in_the_first_round_and_a_mean_of_r_bar_after() -> None:
    first, *later = rounds_of(FedPW(avg_drop_rate=0.2))
    assert first["fedpw-drop-rate"] == [0.0] * 4
    assert first["fedpw-amplification"] == 1.0
    for metrics in later:
        assert sum(metrics["fedpw-drop-rate"]) / 4 == pytest.approx(0.2)
        assert 1.0 <= metrics["fedpw-amplification"] < 2.0


def test_reported_loss_is_the_clients_own() -> None:
    for server_round, metrics in enumerate(rounds_of(FedPW()), start=1):
        expected = [0.5 + 0.1 * (node % 7) + 0.3 / server_round for node in NODES]
        assert metrics["fedpw-loss"] == expected


def test_record_survives_flowers_serialization() -> None:
    huge = 2**64 - 5

    def client(message: Message) -> list[Message]:
        return [train_reply(message)]

    grid = ClientsGrid(dict.fromkeys([3, huge, 2**63, 17], client))
    result = FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=2)
    metrics = result.train_metrics_clientapp[2]
    assert metrics["fedpw-client-id"] == [3, 17, 2**63, huge]
    assert MetricRecord.inflate(metrics.deflate()) == metrics


def test_without_adapted_weights_there_are_no_terms() -> None:
    for metrics in rounds_of(FedPW(adapt_weights=False)):
        assert not {"fedpw-p", "fedpw-q", "fedpw-loss-term-share"} & set(metrics)
        assert {len(metrics[key]) for key in set(LISTS) & set(metrics)} == {4}
        assert sum(metrics["fedpw-weight"]) == pytest.approx(1.0)


def test_without_adjustment_nothing_is_dropped_or_amplified() -> None:
    for metrics in rounds_of(FedPW(adjust_parameters=False)):
        assert metrics["fedpw-drop-rate"] == [0.0] * 4
        assert metrics["fedpw-amplification"] == 1.0
        assert "fedpw-p" in metrics


def test_clients_own_metrics_are_averaged_by_their_examples() -> None:
    def client(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        return [
            train_reply(
                message, num_examples=node - 30, accuracy=node / 100, **{"per-class": [node, 1]}
            )
        ]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    result = FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    weights = [0.1, 0.2, 0.3, 0.4]
    mean = sum(weight * node for weight, node in zip(weights, NODES, strict=True))
    assert metrics["accuracy"] == pytest.approx(mean / 100)
    assert metrics["per-class"] == pytest.approx([mean, 1])
    assert "num-examples" not in metrics


def test_metric_that_some_clients_lack_is_left_out_and_the_others_stay() -> None:
    def client(message: Message) -> list[Message]:
        extra = {"f1": 0.5} if message.metadata.dst_node_id == 31 else {}
        return [train_reply(message, accuracy=0.25, **extra)]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    result = FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    metrics = result.train_metrics_clientapp[1]
    assert metrics["accuracy"] == pytest.approx(0.25)
    assert "f1" not in metrics
    assert metrics["fedpw-quarantined"] == 0


def test_metric_no_float_can_hold_does_not_end_the_run() -> None:
    def client(message: Message) -> list[Message]:
        samples = 10**400 if message.metadata.dst_node_id == 31 else 5
        return [train_reply(message, samples=samples)]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    result = FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
    assert result.train_metrics_clientapp[1]["fedpw-client-id"] == NODES
