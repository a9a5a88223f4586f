"""Strategies that are not FedPW draw and add up in the order of the clients, not of nodes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy
from support.app_federation import AppGrid, initial_arrays
from support.records import payloads

from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.lab.app.recording import client_metrics
from fedpw_flwr.lab.app.server_app import seeded
from fedpw_flwr.rounds.loop import run_rounds


class TurnedGrid(AppGrid):
    """Lists its nodes, and hands back its replies, the other way round."""

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[::-1]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return list(super().send_and_receive(messages, timeout=timeout))[::-1]


def _run(
    grid: AppGrid, kind: type[FedAvg], fraction: float, folder: Path
) -> tuple[ArrayRecord, list[list[float]]]:
    strategy: Strategy = kind(
        fraction_train=fraction,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=8,
        train_metrics_aggr_fn=client_metrics,
    )
    # Flower's heartbeats take numbers from it at any time.
    random.seed()
    strategy = seeded(strategy, seed=5)
    assert (isinstance(strategy, kind), type(strategy).__name__) == (True, kind.__name__)
    result = run_rounds(strategy, CheckpointStore(folder), grid, initial_arrays(), num_rounds=2)
    trained = [list(metrics["client-id"]) for metrics in result.train_metrics_clientapp.values()]
    return result.arrays, trained


@pytest.mark.parametrize(("kind", "fraction"), [(FedAvg, 1.0), (FedAdam, 1.0), (FedProx, 0.5)])
def test_neither_the_order_of_nodes_nor_of_replies_changes_the_model(
    kind: type[FedAvg], fraction: float, tmp_path: Path
) -> None:
    first, clients = _run(AppGrid(), kind, fraction, tmp_path / "one")
    second, same_clients = _run(TurnedGrid(), kind, fraction, tmp_path / "other")
    assert clients == same_clients
    assert [len(of_a_round) for of_a_round in clients] == [8 * fraction] * 2
    assert payloads(first) == payloads(second)
