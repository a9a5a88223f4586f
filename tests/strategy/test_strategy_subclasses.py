"""A subclass that looks at the replies first: what it does is its own, and the log says no lie."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedProx
from support.grid import ClientsGrid, train_round
from support.records import array_record, payloads
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW

NODES = [51, 52, 53, 54, 55, 56]
LEFT_OUT = {52, 55}


def kept(replies: Iterable[Message]) -> list[Message]:
    return [reply for reply in replies if reply.metadata.src_node_id not in LEFT_OUT]


class Picky(FedPW):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return super().aggregate_train(server_round, kept(replies))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return super().aggregate_evaluate(server_round, kept(replies))


def test_no_client_whose_reply_was_left_out_is_said_to_be_silent(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    train_round(Picky(), grid, array_record(MODEL))
    told = [record.getMessage() for record in flower_log.records if "no reply here" in record.msg]
    assert told == [
        f"aggregate_train: round 1, node {node} has no reply here: it did not answer, or a "
        "subclass of the strategy left its reply out"
        for node in sorted(LEFT_OUT)
    ]


def test_left_out_replies_change_a_round_as_absent_clients_do() -> None:
    everyone = ClientsGrid(dict.fromkeys(NODES, good_client))
    without = ClientsGrid({node: good_client for node in NODES if node not in LEFT_OUT})
    picky, plain = Picky(), FedPW()
    result = picky.start(grid=everyone, initial_arrays=array_record(MODEL), num_rounds=3)
    expected = plain.start(grid=without, initial_arrays=array_record(MODEL), num_rounds=3)
    assert payloads(result.arrays) == payloads(expected.arrays)
    assert picky.state == plain.state
    counts = [
        (record["fedpw-quarantined"], record["fedpw-failed"])
        for record in result.train_metrics_clientapp.values()
    ]
    assert counts == [(0, 0)] * 3


def test_a_strategy_behind_that_sets_up_training_is_refused_with_the_order_that_works() -> None:
    with pytest.raises(TypeError, match=r"put FedProx in front, class Behind\(FedProx, FedPW\)"):
        type("Behind", (FedPW, FedProx), {})
    proximal = type("Proximal", (FedProx, FedPW), {})(proximal_mu=0.5)
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    messages = proximal.configure_train(1, array_record(MODEL), ConfigRecord(), grid)
    assert [message.content["config"]["proximal-mu"] for message in messages] == [0.5] * len(NODES)
