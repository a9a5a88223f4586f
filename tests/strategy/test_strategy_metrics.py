"""The numbers that FedPW adds to a round's train metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
from flwr.app import Message, MetricRecord
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, good_client, train_reply

from fedpw_flwr import FedPW

NODES = [31, 32, 33, 34]
TERMS = ("fedpw-p", "fedpw-q")
LISTS = ("fedpw-client-id", "fedpw-weight", *TERMS, "fedpw-drop-rate", "fedpw-loss")
NUMBERS = (
    *("fedpw-loss-term-share", "fedpw-amplification", "fedpw-bounded"),
    *("fedpw-quarantined", "fedpw-failed"),
)


def rounds_of(num_rounds: int = 3, client: Any = good_client, **settings: Any) -> list[Any]:
    strategy, grid = FedPW(**settings), ClientsGrid(dict.fromkeys(NODES, client))
    result = strategy.start(grid, array_record(MODEL), num_rounds=num_rounds)
    return [result.train_metrics_clientapp[t] for t in range(1, num_rounds + 1)]


def test_lists_run_in_parallel_over_the_participants_and_hold_what_their_names_say() -> None:
    for server_round, metrics in enumerate(rounds_of(avg_drop_rate=0.2), start=1):
        assert {len(metrics[key]) for key in LISTS} == {4}
        assert all(isinstance(metrics[key], int | float) for key in NUMBERS)
        for key in ("fedpw-weight", *TERMS):
            assert math.fsum(metrics[key]) == pytest.approx(1.0, abs=1e-12)
        assert min(metrics["fedpw-weight"]) >= 0
        assert 0 <= metrics["fedpw-loss-term-share"] <= 1
        # The losses are those that the clients report.
        assert metrics["fedpw-loss"] == [0.5 + 0.1 * (k % 7) + 0.3 / server_round for k in NODES]
        # Nothing is dropped in the first round, and r̄ on average after it.
        if server_round == 1:
            assert metrics["fedpw-drop-rate"] == [0.0] * 4
            assert metrics["fedpw-amplification"] == 1.0
        else:
            assert sum(metrics["fedpw-drop-rate"]) / 4 == pytest.approx(0.2)
            assert 1.0 <= metrics["fedpw-amplification"] < 2.0


def test_record_survives_flowers_serialization() -> None:
    huge = 2**64 - 5
    grid = ClientsGrid(dict.fromkeys([3, huge, 2**63, 17], good_client))
    result = FedPW().start(grid, array_record(MODEL), num_rounds=2)
    metrics = result.train_metrics_clientapp[2]
    assert metrics["fedpw-client-id"] == [3, 17, 2**63, huge]
    assert MetricRecord.inflate(metrics.deflate()) == metrics


def test_without_adapted_weights_there_are_no_terms() -> None:
    for metrics in rounds_of(adapt_weights=False):
        assert not {*TERMS, "fedpw-loss-term-share"} & set(metrics)
        assert {len(metrics[key]) for key in set(LISTS) & set(metrics)} == {4}
        assert sum(metrics["fedpw-weight"]) == pytest.approx(1.0)


def test_without_adjustment_nothing_is_dropped_or_amplified() -> None:
    for metrics in rounds_of(adjust_parameters=False):
        assert metrics["fedpw-drop-rate"] == [0.0] * 4
        assert metrics["fedpw-amplification"] == 1.0
        assert "fedpw-p" in metrics


def test_clients_own_metrics_are_averaged_by_their_examples_where_all_have_them() -> None:
    def client(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        own: dict[str, Any] = {"accuracy": node / 100, "per-class": [node, 1]}
        if node == 31:
            # One that the others lack, and one that no float can hold.
            own.update({"f1": 0.5, "samples": 10**400})
        return [train_reply(message, num_examples=node - 30, **own)]

    [metrics] = rounds_of(1, client)
    mean = sum(weight * node for weight, node in zip([0.1, 0.2, 0.3, 0.4], NODES, strict=True))
    assert metrics["accuracy"] == pytest.approx(mean / 100)
    assert metrics["per-class"] == pytest.approx([mean, 1])
    assert not {"num-examples", "f1", "samples"} & set(metrics)
    assert metrics["fedpw-client-id"] == NODES
