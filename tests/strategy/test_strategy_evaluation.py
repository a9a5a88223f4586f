"""A broken evaluation reply costs only itself, as in training."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from federation import (
    MODEL,
    evaluate_reply,
    evaluate_round,
    stray,
    train_reply,
)
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from support.grid import ClientsGrid, train_round
from support.records import array_record

from fedpw_flwr import FedPW

NODES = [21, 22, 23, 24, 25]
BAD = 23
GOOD = {"accuracy": 0.5, "per-class": [0.4, 0.6], "num-examples": 10}


def reported(message: Message, **changes: Any) -> Message:
    node = message.metadata.dst_node_id
    values = {**GOOD, "accuracy": node / 100, "num-examples": node, **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    return evaluate_reply(message, **kept)


def good(message: Message) -> list[Message]:
    return [reported(message)]


def silent(message: Message) -> list[Message]:
    return []


def _no_metric_record(message: Message) -> list[Message]:
    return [Message(RecordDict(), reply_to=message)]


def _two_metric_records(message: Message) -> list[Message]:
    record = MetricRecord(dict(GOOD))
    return [Message(RecordDict({"a": record, "b": record.copy()}), reply_to=message)]


def _raises(message: Message) -> list[Message]:
    raise RuntimeError("no test set")


def _lost(message: Message) -> list[Message]:
    return [Message(Error(5), reply_to=message)]


def _stranger(message: Message) -> list[Message]:
    return [stray(reported(message), 999)]


def _bad_identity(message: Message) -> list[Message]:
    reply = reported(message)
    reply.content["identity"] = ConfigRecord({"client-id": "x"})
    return [reply]


def _reporting(**changes: Any) -> Callable[[Message], list[Message]]:
    return lambda message: [reported(message, **changes)]


BROKEN: dict[str, tuple[Callable[[Message], list[Message]], str]] = {
    "NaN metric": (_reporting(accuracy=float("nan")), "accuracy.*nan"),
    "infinite metric": (_reporting(accuracy=float("inf")), "accuracy.*inf"),
    "NaN in a list": (_reporting(**{"per-class": [0.5, float("nan")]}), "per-class"),
    "metric no float can hold": (_reporting(accuracy=10**400), "accuracy"),
    "missing key": (_reporting(accuracy=None), "accuracy"),
    "extra key": (_reporting(f1=0.5), "f1"),
    "other key": (_reporting(accuracy=None, acc=0.5), "acc"),
    "longer list": (_reporting(**{"per-class": [0.1, 0.2, 0.3]}), "per-class"),
    "list for a number": (_reporting(accuracy=[0.5]), "accuracy"),
    "empty list": (_reporting(**{"per-class": []}), "per-class"),
    "no num-examples": (_reporting(**{"num-examples": None}), "num-examples"),
    "negative num-examples": (_reporting(**{"num-examples": -1}), "num-examples.*-1"),
    "NaN num-examples": (_reporting(**{"num-examples": float("nan")}), "num-examples.*nan"),
    "list as num-examples": (_reporting(**{"num-examples": [1]}), "num-examples.*list"),
    "no MetricRecord": (_no_metric_record, "0 MetricRecords"),
    "two MetricRecords": (_two_metric_records, "2 MetricRecords"),
    "client raised": (_raises, "no test set"),
    "node lost": (_lost, "error 5"),
    "node that was not asked": (_stranger, "not asked"),
    "bad client-id": (_bad_identity, "client-id"),
}
FAILURES = {"client raised", "node lost"}


def numbers(metrics: MetricRecord) -> dict[str, object]:
    return {key: value for key, value in metrics.items() if not key.startswith("fedpw-")}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_evaluation_reply_costs_only_itself(
    kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    client, reason = BROKEN[kind]
    clients = {**dict.fromkeys(NODES, good), BAD: client}
    metrics = evaluate_round(FedPW(), ClientsGrid(clients), server_round=4)
    without = evaluate_round(FedPW(), ClientsGrid({**clients, BAD: silent}))

    assert numbers(metrics) == numbers(without)
    assert metrics["accuracy"] == pytest.approx(
        sum(node * node / 100 for node in NODES if node != BAD)
        / sum(node for node in NODES if node != BAD)
    )
    assert metrics["fedpw-failed"] == int(kind in FAILURES)
    assert metrics["fedpw-quarantined"] == int(kind not in FAILURES)
    told = [
        record.getMessage()
        for record in flower_log.records
        if record.levelname == "WARNING" and "round 4" in record.getMessage()
    ]
    if kind == "node that was not asked":
        assert f"node {BAD} has no reply here" in told.pop()
    assert len(told) == 1
    assert f"node {999 if kind == 'node that was not asked' else BAD}" in told[0]
    assert re.search(reason, told[0], re.DOTALL)


@pytest.mark.parametrize("kind", BROKEN)
def test_when_every_evaluation_reply_is_broken_the_run_goes_on(kind: str) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, BROKEN[kind][0]))
    metrics = evaluate_round(FedPW(), grid)
    assert metrics["fedpw-quarantined"] + metrics["fedpw-failed"] in (0, 5)


def test_every_kind_of_broken_reply_at_once_in_any_order() -> None:
    crowd = {100 + i: client for i, (client, _) in enumerate(BROKEN.values())}
    results = []
    for seed in range(4):
        grid = ClientsGrid(
            {**crowd, **dict.fromkeys(NODES, good)},
            arrange=lambda replies, seed=seed: random.Random(seed).sample(replies, len(replies)),
        )
        results.append(evaluate_round(FedPW(), grid))
    assert all(result == results[0] for result in results)
    quiet = evaluate_round(FedPW(), ClientsGrid(dict.fromkeys(NODES, good)))
    assert numbers(results[0]) == numbers(quiet)


def test_nobody_answers_and_the_run_goes_on() -> None:
    metrics = evaluate_round(FedPW(), ClientsGrid(dict.fromkeys(NODES, silent)))
    assert numbers(metrics) == {}


def test_zero_examples_everywhere_do_not_end_the_run() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, _reporting(**{"num-examples": 0})))
    metrics = evaluate_round(FedPW(), grid)
    assert metrics["fedpw-quarantined"] == 0


def test_no_num_examples_anywhere_weights_clients_alike() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, _reporting(**{"num-examples": None})))
    metrics = evaluate_round(FedPW(), grid)
    assert metrics["accuracy"] == pytest.approx(sum(NODES) / 500)
    assert metrics["per-class"] == pytest.approx([0.4, 0.6])
    assert "num-examples" not in metrics


def test_client_without_examples_counts_for_nothing() -> None:
    clients = {**dict.fromkeys(NODES, good), BAD: _reporting(**{"num-examples": 0})}
    metrics = evaluate_round(FedPW(), ClientsGrid(clients))
    without = evaluate_round(FedPW(), ClientsGrid({**clients, BAD: silent}))
    assert numbers(metrics) == numbers(without)
    assert metrics["fedpw-quarantined"] == 0


def test_second_evaluation_reply_of_a_node_counts_once() -> None:
    def twice(message: Message) -> list[Message]:
        return [reported(message), reported(message)]

    metrics = evaluate_round(FedPW(), ClientsGrid({**dict.fromkeys(NODES, good), BAD: twice}))
    once = evaluate_round(FedPW(), ClientsGrid(dict.fromkeys(NODES, good)))
    assert numbers(metrics) == numbers(once)
    assert metrics["fedpw-quarantined"] == 1


def test_two_different_evaluation_replies_of_a_node_count_alike_in_any_order() -> None:
    def twice(message: Message) -> list[Message]:
        return [reported(message, accuracy=0.1), reported(message, accuracy=0.9)]

    clients = {**dict.fromkeys(NODES, good), BAD: twice}
    forwards = evaluate_round(FedPW(), ClientsGrid(clients))
    backwards = evaluate_round(FedPW(), ClientsGrid(clients, arrange=lambda replies: replies[::-1]))
    assert forwards == backwards


def test_identity_stays_with_the_node_that_trained_under_it() -> None:
    def named(message: Message) -> list[Message]:
        client_id = message.metadata.dst_node_id - 20
        if message.metadata.message_type == "train":
            return [train_reply(message, client_id=client_id)]
        reply = reported(message)
        reply.content["identity"] = ConfigRecord({"client-id": client_id})
        return [reply]

    def thief(message: Message) -> list[Message]:
        reply = reported(message, accuracy=0.99)
        reply.content["identity"] = ConfigRecord({"client-id": BAD - 20})
        return [reply]

    strategy = FedPW()
    honest = ClientsGrid(dict.fromkeys(NODES, named))
    train_round(strategy, honest, array_record(MODEL), 1)
    expected = evaluate_round(strategy, honest)
    metrics = evaluate_round(strategy, ClientsGrid({2: thief, **honest.clients}))
    assert numbers(metrics) == numbers(expected)
    assert metrics["fedpw-quarantined"] == 1


def test_evaluation_can_be_switched_off() -> None:
    strategy = FedPW(fraction_evaluate=0.0)
    grid = ClientsGrid(dict.fromkeys(NODES, good))
    messages = strategy.configure_evaluate(1, array_record(MODEL), ConfigRecord(), grid)
    assert list(messages) == []
    assert strategy.aggregate_evaluate(1, []) is None


def test_evaluation_leaves_the_methods_memory_alone() -> None:
    strategy = FedPW()
    before = strategy.state
    evaluate_round(strategy, ClientsGrid(dict.fromkeys(NODES, good)))
    assert strategy.state == before
