"""Observers hear what a round was, in its order; one that raises ends the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.checkpoint.rounds import run_rounds
from fedpw_flwr.rounds.observers import Observer

NODES = [11, 12, 13]


class Diary(Observer):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_begin(self, after: int | None) -> None:
        self.heard.append(("begin", after))

    def on_round(self, server_round: int) -> None:
        self.heard.append(("round", server_round))

    def on_messages(self, phase: str, server_round: int, messages: Sequence[Message]) -> None:
        nodes = sorted(message.metadata.dst_node_id for message in messages)
        self.heard.append(("messages", phase, server_round, nodes))

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        nodes = sorted(reply.metadata.src_node_id for reply in replies)
        self.heard.append(("replies", phase, server_round, nodes))

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        assert arrays is not None
        assert metrics is not None
        self.heard.append(("step", server_round, list(arrays) == list(MODEL)))

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        assert metrics is not None
        self.heard.append(("evaluation", server_round, "accuracy" in metrics))

    def on_checkpoint(self, server_round: int) -> None:
        self.heard.append(("checkpoint", server_round))


def heard_in(server_round: int) -> list[tuple[Any, ...]]:
    exchanges = [
        [(kind, phase, server_round, NODES) for kind in ("messages", "replies")]
        for phase in ("train", "evaluate")
    ]
    return [
        *(("round", server_round), *exchanges[0], ("step", server_round, True)),
        *(*exchanges[1], ("evaluation", server_round, True), ("checkpoint", server_round)),
    ]


@pytest.mark.parametrize("kind", [FedPW, FedAvg])
def test_an_observer_hears_every_round_also_after_a_resume(
    kind: type[Strategy], tmp_path: Path
) -> None:
    diaries = [Diary(), Diary()]
    for diary, rounds in zip(diaries, (1, 3), strict=True):
        result = run_rounds(
            kind(),
            CheckpointStore(tmp_path),
            ClientsGrid(dict.fromkeys(NODES, good_client)),
            array_record(MODEL),
            num_rounds=rounds,
            resume=diary is diaries[1],
            fingerprint={"data": "mine"},
            observers=[diary],
        )
        assert sorted(result.train_metrics_clientapp) == [*range(1, rounds + 1)]
    assert diaries[0].heard == [("begin", None), ("checkpoint", 0), *heard_in(1)]
    assert diaries[1].heard == [("begin", 1), *heard_in(2), *heard_in(3)]


def test_an_observer_that_raises_ends_the_run_before_the_strategy_sees_the_replies(
    tmp_path: Path,
) -> None:
    class Watch(Observer):
        def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
            raise ConnectionError("a machine is gone")

    strategy = FedPW()
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConnectionError):
        run_rounds(strategy, store, grid, array_record(MODEL), observers=[Watch()])
    assert strategy.state.rounds == 0
    assert store.rounds() == [0]
