"""A client without data is left out as if it had not been asked; that is no fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from support.adjusting_clients import ignoring, round_of
from support.federation import (
    MODEL,
    PLACEMENTS,
    Clients,
    Federation,
    answering,
    both_apis,
    every_method,
    memory,
)
from support.records import array_record, payloads, train_content
from support.small_model import evaluate_reply, good_client, train_reply

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
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_others_round_is_as_without_it(api: Federation, kind: str, placement: str) -> None:
    # The mod cannot know what counts examples, and wants some arrays of the model.
    dense = placement == "server" or kind == "no loss, no arrays"
    client = ignoring(KINDS[kind]) if dense else answering(KINDS[kind])
    others = dict.fromkeys(NODES, answering(train_reply))
    assert_left_out(api, others, dict.fromkeys(EMPTY, client), **PLACEMENTS[placement])


@every_method
def test_so_it_is_whatever_the_method(api: Federation) -> None:
    others = dict.fromkeys(NODES, good_client)
    assert_left_out(api, others, dict.fromkeys(EMPTY, ignoring(KINDS["loss 0"])))


@every_method
def test_where_all_are_empty_the_model_stays_and_the_run_goes_on(api: Federation) -> None:
    empty = dict.fromkeys(NODES, ignoring(with_nothing))
    run = api.run(api.strategy(fraction_evaluate=0.0), empty, 5)
    assert payloads(run.arrays) == payloads(array_record(MODEL))
    assert [api.counts(metrics) for metrics in run.train.values()] == [(0, 0, 3)] * 5


@both_apis
def test_a_client_that_gets_data_later_takes_part_from_then_on(api: Federation) -> None:
    def growing(message: Message) -> list[Message]:
        late = message.metadata.dst_node_id == 62
        examples = 0 if late and round_of(message) == 1 else 12
        return [train_reply(message, num_examples=examples)]

    rounds = api.train_rounds(api.strategy(), dict.fromkeys(NODES, growing), 2)
    assert [one["fedpw-client-id"] for _, one in rounds] == [[61, 63], NODES]


@both_apis
def test_it_is_named_once_and_quietly(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    clients = {**dict.fromkeys(NODES, good_client), 64: ignoring(KINDS["loss 0"])}
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

    told = api.evaluate_round(api.strategy(), dict.fromkeys(NODES, client))
    assert api.decided(told) == {"accuracy": 0.75, "loss": 0.5}
    assert api.counts(told) == (0, 0, 1)


@both_apis
def test_an_evaluation_without_any_examples_ends(api: Federation) -> None:
    def client(message: Message) -> list[Message]:
        return [evaluate_reply(message, accuracy=0.5, **{"num-examples": 0})]

    told = api.evaluate_round(api.strategy(), dict.fromkeys(NODES, client))
    assert api.counts(told) == (0, 0, 3)
    assert api.decided(told) == {}
