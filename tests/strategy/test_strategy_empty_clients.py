"""A client without data is left out as if it had not been asked; that is no fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from adjusting_clients import following, ignoring
from baselines_federation import BUILDS
from federation import MODEL, evaluate_reply, evaluate_round, good_client, train_reply
from flwr.app import ArrayRecord, Message, MetricRecord
from legacy_federation import (
    INITIAL,
    PlainClient,
    fit_result,
    fit_round,
    good_evaluation,
    good_fit,
    named,
    plain_clients,
    run_server,
)
from legacy_federation import evaluate_round as legacy_evaluate_round
from support.grid import Client, ClientsGrid, train_round
from support.records import array_record, payloads, train_content

from fedpw_flwr import FedPW, legacy

NODES = [61, 62, 63]
EMPTY = [64, 65]


def replying_with(**content: Any) -> Callable[[Message], Message]:
    return lambda message: train_reply(message, num_examples=0, **content)


def with_nothing(message: Message) -> Message:
    return Message(train_content({}, loss=None, num_examples=0), reply_to=message)


def not_a_number(message: Message) -> Message:
    model = {name: np.full_like(array, 0) for name, array in MODEL.items()}
    model["body.weight"] = np.full((6, 4), np.nan, np.float32)
    return Message(train_content(model, float("nan"), 0), reply_to=message)


KINDS: dict[str, Callable[[Message], Message]] = {
    "loss 0": replying_with(loss=0.0),
    "a loss": replying_with(loss=2.25),
    "NaN as loss": replying_with(loss=float("nan")),
    "no loss, no arrays": with_nothing,
    "NaN everywhere": not_a_number,
    "0.0 examples": lambda message: train_reply(message, loss=0.0, num_examples=0.0),
}
PLACES: dict[str, tuple[dict[str, Any], Callable[..., Client]]] = {
    "server": ({}, ignoring),
    "client": ({"adjustment": "client"}, following),
    "packed": ({"adjustment": "client", "upload": "packed"}, following),
}


def rounds_of(
    strategy: Any, clients: dict[int, Client], count: int = 4
) -> tuple[ArrayRecord, list[MetricRecord]]:
    arrays, told = array_record(MODEL), []
    for server_round in range(1, count + 1):
        arrays, metrics = train_round(strategy, ClientsGrid(clients), arrays, server_round)
        told.append(metrics)
    return arrays, told


def but_for(metrics: MetricRecord, name: str) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != name}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_others_round_is_as_without_it(kind: str, place: str) -> None:
    options, client_of = PLACES[place]
    others = dict.fromkeys(NODES, client_of(train_reply))
    strategy, without = (FedPW(device="cpu", **options) for _ in range(2))
    expected, metrics = rounds_of(without, others)
    # The mod cannot know what counts examples, and wants some arrays of the model.
    around = ignoring if kind == "no loss, no arrays" else client_of
    empty = dict.fromkeys(EMPTY, around(KINDS[kind]))
    arrays, told = rounds_of(strategy, {**others, **empty})
    assert payloads(arrays) == payloads(expected)
    assert strategy.state == without.state
    for now, before in zip(told, metrics, strict=True):
        assert but_for(now, "fedpw-empty") == but_for(before, "fedpw-empty")
        assert (now["fedpw-empty"], before["fedpw-empty"]) == (2, 0)
        assert now["fedpw-quarantined"] == now["fedpw-failed"] == 0


@pytest.mark.parametrize("name", BUILDS)
def test_so_it_is_with_every_baseline(name: str) -> None:
    others = dict.fromkeys(NODES, good_client)
    expected, metrics = rounds_of(BUILDS[name](), others)
    empty = dict.fromkeys(EMPTY, ignoring(KINDS["loss 0"]))
    arrays, told = rounds_of(BUILDS[name](), {**others, **empty})
    assert payloads(arrays) == payloads(expected)
    assert [but_for(one, "empty") for one in told] == [but_for(one, "empty") for one in metrics]
    assert [one["empty"] for one in told] == [2] * 4


@pytest.mark.parametrize("build", [FedPW, BUILDS["fedavg"], BUILDS["fedadam"]])
def test_where_all_are_empty_the_model_stays_and_the_run_goes_on(build: Callable[[], Any]) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, ignoring(with_nothing)))
    strategy = build()
    strategy.fraction_evaluate = 0.0
    result = strategy.start(grid, array_record(MODEL), num_rounds=5)
    assert payloads(result.arrays) == payloads(array_record(MODEL))
    counted = [dict(one) for one in result.train_metrics_clientapp.values()]
    assert [sum(one.values()) for one in counted] == [3] * 5
    assert all(one[key] == 3 for one in counted for key in one if key.endswith("empty"))


def test_a_client_that_gets_data_later_takes_part_from_then_on() -> None:
    def growing(message: Message) -> list[Message]:
        late = message.metadata.dst_node_id == 62
        config = message.content.config_records["config"]
        examples = 0 if late and config["server-round"] == 1 else 12
        return [train_reply(message, num_examples=examples)]

    _, told = rounds_of(FedPW(), dict.fromkeys(NODES, growing), 2)
    assert [one["fedpw-client-id"] for one in told] == [[61, 63], NODES]


def test_it_is_named_once_and_quietly(flower_log: pytest.LogCaptureFixture) -> None:
    clients = {**dict.fromkeys(NODES, good_client), 64: ignoring(KINDS["loss 0"])}
    rounds_of(FedPW(), clients, 3)
    said = [one for one in flower_log.records if "has no data" in one.getMessage()]
    assert [(one.levelname, "node 64" in one.getMessage()) for one in said] == [("INFO", True)]
    assert "WARNING" not in {one.levelname for one in flower_log.records}


@pytest.mark.parametrize("metrics", [{"accuracy": float("nan")}, {"other": 0.5}, {"accuracy": 0.0}])
def test_an_evaluation_without_examples_is_counted_apart(metrics: dict[str, float]) -> None:
    def client(message: Message) -> list[Message]:
        if message.metadata.dst_node_id == 63:
            return [evaluate_reply(message, **metrics, **{"num-examples": 0})]
        return [evaluate_reply(message, accuracy=0.75, **{"num-examples": 20})]

    told = evaluate_round(FedPW(), ClientsGrid(dict.fromkeys(NODES, client)))
    assert told == {
        "accuracy": 0.75,
        "fedpw-quarantined": 0,
        "fedpw-failed": 0,
        "fedpw-empty": 1,
    }


def test_the_legacy_server_leaves_it_out_too() -> None:
    def empty(node: int, ins: Any) -> Any:
        return fit_result(named(ins.parameters), loss=0.0, num_examples=0)

    expected, metrics = fit_round(legacy.FedPW(), plain_clients(NODES))
    parameters, told = fit_round(
        legacy.FedPW(), plain_clients([*NODES, *EMPTY], dict.fromkeys(EMPTY, empty))
    )
    assert parameters == expected
    assert told == {**metrics, "fedpw-empty": 2}


def test_the_legacy_servers_evaluation_counts_it_apart() -> None:
    def without(node: int, ins: Any) -> Any:
        result = good_evaluation(node, ins)
        result.num_examples, result.loss = 0, float("nan")
        return result

    full = [PlainClient(node, good_fit) for node in NODES]
    expected, _ = legacy_evaluate_round(legacy.FedPW(), full)
    loss, metrics = legacy_evaluate_round(
        legacy.FedPW(), [*full, *(PlainClient(node, good_fit, without) for node in EMPTY)]
    )
    assert loss == expected
    assert metrics == {"fedpw-quarantined": 0, "fedpw-failed": 0, "fedpw-empty": 2}


def test_a_legacy_run_of_empty_clients_keeps_its_model() -> None:
    def empty(node: int, ins: Any) -> Any:
        return fit_result(named(ins.parameters), loss=0.0, num_examples=0)

    strategy = legacy.FedPW(initial_parameters=INITIAL)
    _, parameters = run_server(strategy, plain_clients(NODES, dict.fromkeys(NODES, empty)), 5)
    assert parameters == INITIAL
