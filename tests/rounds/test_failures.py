"""Clients that fail, and those without data, cost only themselves.

Who fails is counted and named. Who has no data is left out as if it had not been asked; that is no
fault.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.common import Code, FitIns, FitRes, Parameters, Status
from support.adjusting_clients import ignoring, round_of
from support.federation import (
    LEGACY,
    MODEL,
    PLACEMENTS,
    Clients,
    Federation,
    answering,
    both_apis,
    every_method,
    everyone,
    known_reply,
    memory,
    placements,
    warnings,
)
from support.grid import Client
from support.legacy_federation import fit_round, plain_clients
from support.records import array_record, payloads, train_content
from support.small_model import evaluate_reply, good_client, train_reply

from fedpw_flwr import legacy

NODES = [11, 12, 13, 14]


def full(node: int) -> Client:
    def client(message: Any) -> Any:
        raise OSError(f"disk {node} is full")

    return client


@both_apis
def test_failures_of_several_clients_are_each_its_own(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    clients = everyone(NODES, {node: full(node) for node in (11, 12, 14)})
    _, metrics = api.train_round(api.strategy(), clients)
    assert metrics["fedpw-client-id"] == [3]
    told = sorted(warnings(flower_log))
    assert len(told) == 3
    for node, line in zip((11, 12, 14), told, strict=True):
        assert re.search(f"round 1, node {node} failed: .*OSError: disk {node} is full", line)


@both_apis
def test_failed_client_is_named_by_the_identity_it_gave_before(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy = api.strategy()
    arrays, _ = api.train_round(strategy, everyone(NODES))
    flower_log.clear()
    api.train_round(strategy, everyone(NODES, {13: full(13)}), arrays, 2)
    assert "round 2, client 3 (node 13) failed: " in warnings(flower_log)[0]


# Results and exceptions of the legacy API


def not_implemented(node: int, ins: FitIns) -> FitRes:
    status = Status(Code.FIT_NOT_IMPLEMENTED, "Client does not implement `fit`")
    return FitRes(status, Parameters([], ""), 0, {})


def test_result_with_a_status_that_is_not_ok_is_a_failure_of_its_client(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    _, metrics = fit_round(legacy.FedPW(), plain_clients(NODES, {12: not_implemented}))
    assert metrics["fedpw-client-id"] == "[11, 13, 14]"
    assert LEGACY.counts(metrics) == (0, 1, 0)
    failed = "aggregate_fit: round 1, node 12 failed: Client does not implement `fit`"
    assert failed in warnings(flower_log)


def test_exceptions_without_a_trace_name_those_they_may_belong_to(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = LEGACY.strategy()
    clients = everyone(NODES, {12: full(12), 13: full(13)})
    answers = LEGACY.ask(strategy, clients, array_record(MODEL), 1)
    bare = [(node, answer if node else RuntimeError("lost")) for node, answer in answers]
    _, metrics = LEGACY.finish(strategy, bare, 1)
    assert metrics["fedpw-failed"] == 2
    told = warnings(flower_log)
    assert len(told) == 2
    assert all("one of the nodes [12, 13]: RuntimeError: lost" in line for line in told)


def test_failures_that_are_not_accepted_give_no_model_and_leave_the_state_alone() -> None:
    strategy = LEGACY.strategy(accept_failures=False)
    arrays, _ = LEGACY.train_round(strategy, everyone(NODES))
    before = copy.deepcopy(memory(strategy))
    answers = LEGACY.ask(strategy, everyone(NODES, {13: full(13)}), arrays, 2)
    results = [answer for node, answer in answers if node]
    failures = [answer for node, answer in answers if not node]
    assert strategy.aggregate_fit(2, results, failures) == (None, {})
    assert memory(strategy) == before
    # So a run goes on with the model it has.
    run = LEGACY.run(strategy, everyone(NODES, {13: full(13)}), 2)
    assert payloads(run.arrays) == payloads(array_record(MODEL))
    assert run.train == {}


def test_quarantined_results_are_no_failures_that_must_be_accepted() -> None:
    def lossless(message: Any) -> Any:
        reply = known_reply(message)
        del reply.content.metric_records["metrics"]["train_loss"]
        return reply

    strategy = LEGACY.strategy(accept_failures=False)
    _, metrics = LEGACY.train_round(strategy, everyone(NODES, {13: answering(lossless)}))
    assert metrics["fedpw-client-id"] == [1, 2, 4]


# Clients without data

WITH_DATA, WITHOUT = [61, 62, 63], [64, 65]


def replying_with(**content: Any) -> Callable[[Message], Message]:
    return lambda message: train_reply(message, num_examples=0, **content)


def with_nothing(message: Message) -> Message:
    return Message(train_content({}, loss=None, num_examples=0), reply_to=message)


def not_a_number(message: Message) -> Message:
    model = {name: np.full_like(array, 0) for name, array in MODEL.items()}
    model["body.weight"] = np.full((6, 4), np.nan, np.float32)
    return Message(train_content(model, float("nan"), 0), reply_to=message)


EMPTY_REPLIES: dict[str, Callable[[Message], Message]] = {
    "loss 0": replying_with(loss=0.0),
    "a loss": replying_with(loss=2.25),
    "NaN as loss": replying_with(loss=float("nan")),
    "no loss, no arrays": with_nothing,
    "NaN everywhere": not_a_number,
    "0.0 examples": lambda message: train_reply(message, loss=0.0, num_examples=0.0),
}


def assert_left_out(api: Federation, others: Clients, empty: Clients, **options: Any) -> None:
    strategy, without = api.strategy(**options), api.strategy(**options)
    expected = api.train_rounds(without, others, 3)
    rounds = api.train_rounds(strategy, {**others, **empty}, 3)
    assert payloads(rounds[-1].arrays) == payloads(expected[-1].arrays)
    assert memory(strategy) == memory(without)
    for (_, now), (_, before) in zip(rounds, expected, strict=True):
        assert api.decided(now) == api.decided(before)
        assert (api.counts(now), api.counts(before)) == ((0, 0, 2), (0, 0, 0))


@both_apis
@placements
@pytest.mark.parametrize("kind", EMPTY_REPLIES)
def test_the_others_round_is_as_without_it(api: Federation, kind: str, placement: str) -> None:
    # The mod cannot know what counts examples, and wants some arrays of the model.
    dense = placement == "server" or kind == "no loss, no arrays"
    client = ignoring(EMPTY_REPLIES[kind]) if dense else answering(EMPTY_REPLIES[kind])
    others = dict.fromkeys(WITH_DATA, answering(train_reply))
    assert_left_out(api, others, dict.fromkeys(WITHOUT, client), **PLACEMENTS[placement])


@every_method
def test_so_it_is_whatever_the_method(api: Federation) -> None:
    others = dict.fromkeys(WITH_DATA, good_client)
    assert_left_out(api, others, dict.fromkeys(WITHOUT, ignoring(EMPTY_REPLIES["loss 0"])))


@every_method
def test_where_all_are_empty_the_model_stays_and_the_run_goes_on(api: Federation) -> None:
    empty = dict.fromkeys(WITH_DATA, ignoring(with_nothing))
    run = api.run(api.strategy(fraction_evaluate=0.0), empty, 5)
    assert payloads(run.arrays) == payloads(array_record(MODEL))
    assert [api.counts(metrics) for metrics in run.train.values()] == [(0, 0, 3)] * 5


@both_apis
def test_a_client_that_gets_data_later_takes_part_from_then_on(api: Federation) -> None:
    def growing(message: Message) -> list[Message]:
        late = message.metadata.dst_node_id == 62
        examples = 0 if late and round_of(message) == 1 else 12
        return [train_reply(message, num_examples=examples)]

    rounds = api.train_rounds(api.strategy(), dict.fromkeys(WITH_DATA, growing), 2)
    assert [one["fedpw-client-id"] for _, one in rounds] == [[61, 63], WITH_DATA]


@both_apis
def test_it_is_named_once_and_quietly(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    clients = {**dict.fromkeys(WITH_DATA, good_client), 64: ignoring(EMPTY_REPLIES["loss 0"])}
    api.train_rounds(api.strategy(), clients, 3)
    said = [one for one in flower_log.records if "has no data" in one.getMessage()]
    assert [(one.levelname, "node 64" in one.getMessage()) for one in said] == [("INFO", True)]
    assert "WARNING" not in {one.levelname for one in flower_log.records}


@both_apis
@pytest.mark.parametrize("said", [{"accuracy": float("nan")}, {"other": 0.5}, {"accuracy": 0.0}])
def test_an_evaluation_without_examples_is_counted_apart(
    api: Federation, said: dict[str, float]
) -> None:
    def client(message: Message) -> list[Message]:
        if message.metadata.dst_node_id == 63:
            return [evaluate_reply(message, **said, **{"num-examples": 0, "loss": float("nan")})]
        return [evaluate_reply(message, accuracy=0.75, loss=0.5, **{"num-examples": 20})]

    told = api.evaluate_round(api.strategy(), dict.fromkeys(WITH_DATA, client))
    assert api.decided(told) == {"accuracy": 0.75, "loss": 0.5}
    assert api.counts(told) == (0, 0, 1)


@both_apis
def test_an_evaluation_without_any_examples_ends(api: Federation) -> None:
    def client(message: Message) -> list[Message]:
        return [evaluate_reply(message, accuracy=0.5, **{"num-examples": 0})]

    told = api.evaluate_round(api.strategy(), dict.fromkeys(WITH_DATA, client))
    assert api.counts(told) == (0, 0, 3)
    assert api.decided(told) == {}
