"""A loss missing from every reply is the developer's mistake, and the error says how to fix it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from federation import (
    MODEL,
    good_client,
    stray,
    train_reply,
    trained,
)
from flwr.app import Message, RecordDict
from support.grid import ClientsGrid, train_round
from support.records import array_record

import fedpw_flwr
from fedpw_flwr import FedPW, MissingLossError

NODES = [11, 12, 13]


def lossless_reply(message: Message) -> Message:
    reply = train_reply(message)
    del reply.content["metrics"]["train_loss"]
    return reply


def without_loss(message: Message) -> list[Message]:
    return [lossless_reply(message)]


def without_metrics(message: Message) -> list[Message]:
    model = trained(MODEL, (message.metadata.dst_node_id,))
    return [Message(RecordDict({"arrays": array_record(model)}), reply_to=message)]


def raising(message: Message) -> Iterable[Message]:
    raise RuntimeError("out of memory")


def test_error_names_the_key_and_shows_the_line_that_reports_it() -> None:
    strategy = FedPW(train_loss_key="my-loss", weighted_by_key="images")
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    with pytest.raises(MissingLossError) as raised:
        train_round(strategy, grid, array_record(MODEL), 1)
    assert "'my-loss'" in str(raised.value)
    assert 'MetricRecord({"my-loss": ' in str(raised.value)
    assert '"images": len(trainset)' in str(raised.value)
    assert "train_loss_key=" in str(raised.value)


def test_it_ends_the_run() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, without_loss))
    with pytest.raises(MissingLossError):
        FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=2)


def test_it_can_be_caught_by_its_public_name() -> None:
    assert fedpw_flwr.MissingLossError is MissingLossError
    assert issubclass(MissingLossError, ValueError)


def test_failed_clients_do_not_hide_it() -> None:
    grid = ClientsGrid({11: without_loss, 12: without_loss, 13: raising})
    with pytest.raises(MissingLossError):
        train_round(FedPW(), grid, array_record(MODEL), 1)


def test_a_reply_without_any_metrics_does_not_hide_it() -> None:
    grid = ClientsGrid({11: without_loss, 12: without_loss, 13: without_metrics})
    with pytest.raises(MissingLossError):
        train_round(FedPW(), grid, array_record(MODEL), 1)


def test_clients_that_report_no_metrics_at_all_are_told_so() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, without_metrics))
    with pytest.raises(MissingLossError):
        train_round(FedPW(), grid, array_record(MODEL), 1)


def test_a_stray_reply_does_not_hide_it() -> None:
    def with_stray(message: Message) -> list[Message]:
        reply = lossless_reply(message)
        return [reply, stray(reply, 77)]

    grid = ClientsGrid({11: without_loss, 12: without_loss, 13: with_stray})
    with pytest.raises(MissingLossError):
        train_round(FedPW(), grid, array_record(MODEL), 1)


def test_one_reply_with_the_loss_is_enough_to_go_on() -> None:
    grid = ClientsGrid({11: without_loss, 12: without_loss, 13: good_client})
    _, metrics = train_round(FedPW(), grid, array_record(MODEL), 1)
    assert metrics["fedpw-client-id"] == [13]
    assert metrics["fedpw-weight"] == [1.0]
    assert metrics["fedpw-quarantined"] == 2


def test_only_failures_and_no_reply_are_no_missing_loss() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, raising))
    _, metrics = train_round(FedPW(), grid, array_record(MODEL), 1)
    assert metrics["fedpw-failed"] == 3
