"""A client is who it says it is: its memory follows it, and nobody else has its name."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message
from support.adjusting_clients import failing, following, model_of, silent
from support.federation import (
    MESSAGE,
    MODEL,
    PLACEMENTS,
    Federation,
    answering,
    assert_sound,
    both_apis,
    every_method,
    everyone,
    honest,
    memory,
    placements,
    warnings,
)
from support.grid import Client
from support.records import array_record, payloads, train_content
from support.small_model import evaluate_reply, trained

from fedpw_flwr.wire.adjustment import REQUEST_KEY, AdjustmentRequest
from fedpw_flwr.wire.records import IDENTITY_QUERY, identity_record

NODES = list(range(11, 17))
BAD, THIEF = 13, 99


def client(identity: int) -> Client:
    """Train alike at every node: what comes back follows from the identity and the model."""

    def train(message: Message) -> Message:
        model = model_of(message)
        seen = int(model["norm.num_batches_tracked"])
        content = train_content(
            trained(model, (identity, seen)),
            0.5 + 0.2 * identity + 1 / seen,
            client_id=identity,
        )
        return Message(content, reply_to=message)

    return following(train)


def at(nodes: Mapping[int, int]) -> dict[int, Client]:
    """Clients by identity, each at its node."""
    return {node: client(identity) for identity, node in nodes.items()}


def thief_of(node: int) -> Client:
    """A client that claims the identity of the one at a node."""
    return answering(loss=1.0, client_id=node - 10)


def after_two_rounds(api: Federation) -> tuple[Any, ArrayRecord]:
    strategy = api.strategy()
    return strategy, api.train_rounds(strategy, everyone(NODES), 2)[-1].arrays


@every_method
def test_memory_follows_a_client_to_another_node(api: Federation) -> None:
    homes = {3: 101, 5: 102, 7: 103}
    stays, moves = api.strategy(), api.strategy()
    arrays = expected = array_record(MODEL)
    for server_round in range(1, 5):
        expected, expected_metrics = api.train_round(stays, at(homes), expected, server_round)
        # Every round, every client comes back under an id that another one had before.
        nodes = [(index + server_round) % 3 + 101 for index in range(3)]
        moved = dict(zip(homes, nodes, strict=True))
        arrays, metrics = api.train_round(moves, at(moved), arrays, server_round)
        assert payloads(arrays) == payloads(expected)
        assert metrics == expected_metrics


@both_apis
def test_rates_go_to_the_node_where_the_client_answered_last(api: Federation) -> None:
    rates: dict[int, float] = {}

    def noting(inner: Client) -> Client:
        def asked(message: Message) -> Iterable[Message]:
            request = message.content["config"][REQUEST_KEY]
            rates[message.metadata.dst_node_id] = AdjustmentRequest.decode(request).rate
            return inner(message)

        return asked

    def asked(strategy: Any, nodes: Iterable[int], arrays: ArrayRecord) -> dict[int, float]:
        rates.clear()
        api.ask(strategy, {node: noting(client(node)) for node in nodes}, arrays, 3)
        return dict(rates)

    strategy = api.strategy(adjustment="client")
    arrays, _ = api.train_round(strategy, at({1: 101, 5: 105, 9: 109}))
    known = asked(copy.deepcopy(strategy), (101, 105, 109), arrays)
    # A strong client drops more.
    assert known[101] > known[105] > known[109]
    arrays, _ = api.train_round(strategy, at({1: 109, 5: 105, 9: 101}), arrays, 2)
    swapped = asked(strategy, (101, 105, 109), arrays)
    assert swapped[109] > swapped[105] > swapped[101]
    # Nobody answered from node 200 yet.
    assert asked(strategy, (101, 105, 200), arrays)[200] == pytest.approx(0.3)


@every_method
@pytest.mark.parametrize("thief", [2, THIEF])
@pytest.mark.parametrize("arrange", [list, lambda answers: answers[::-1]])
def test_identity_stays_with_the_node_that_had_it(
    api: Federation, thief: int, arrange: Any, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy = api.strategy()
    arrays, _ = api.train_round(strategy, everyone(NODES))
    without = copy.deepcopy(strategy)
    expected, expected_metrics = api.train_round(without, everyone(NODES), arrays, 2)
    flower_log.clear()
    robbed = everyone(NODES, {thief: thief_of(BAD)})
    new_arrays, metrics = api.train_round(strategy, robbed, arrays, 2, arrange)
    assert payloads(new_arrays) == payloads(expected)
    assert memory(strategy) == memory(without)
    assert api.counts(metrics) == (1, 0, 0)
    assert api.decided(metrics) == api.decided(expected_metrics)
    [told] = warnings(flower_log)
    assert f"client 3 (node {thief}) quarantined: a second reply of client 3" in told


@both_apis
def test_thief_of_a_present_clients_identity_is_named_by_its_own(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_rounds(api)
    expected, _ = api.train_round(copy.deepcopy(strategy), everyone(NODES, {15: silent}), arrays, 3)
    flower_log.clear()
    new_arrays, _ = api.train_round(strategy, everyone(NODES, {15: thief_of(12)}), arrays, 3)
    [told] = warnings(flower_log)
    assert payloads(new_arrays) == payloads(expected)
    assert "client 5 (node 15)" in told
    assert "client 2" in told


@both_apis
def test_absent_clients_identity_goes_to_whoever_claims_it_until_it_comes_back(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    """What a site that comes back at a new node needs, and what a thief can use, within bounds."""
    strategy, arrays = after_two_rounds(api)
    history = strategy.state.loss.clients[BAD - 10]
    robbed = everyone([node for node in NODES if node != BAD], {THIEF: thief_of(BAD)})
    arrays, metrics = api.train_round(strategy, robbed, arrays, 3)
    assert_sound(arrays)
    assert BAD - 10 in metrics["fedpw-client-id"]
    assert api.counts(metrics) == (0, 0, 0)
    assert strategy.state.loss.clients[BAD - 10].mass > history.mass
    assert max(metrics["fedpw-weight"]) <= 5 / len(NODES)
    # That it moved is told, and the node that had the identity first gets it back.
    assert re.search(rf"client {BAD - 10}\b.*{THIEF}", flower_log.text)
    expected, _ = api.train_round(copy.deepcopy(strategy), everyone(NODES), arrays, 4)
    flower_log.clear()
    new_arrays, _ = api.train_round(strategy, {**robbed, BAD: honest}, arrays, 4)
    assert payloads(new_arrays) == payloads(expected)
    assert f"node {THIEF}" in flower_log.text


@both_apis
@placements
def test_client_that_does_not_answer_is_named(
    api: Federation, placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy = api.strategy(**PLACEMENTS[placement])
    arrays, _ = api.train_round(strategy, everyone(NODES))
    flower_log.clear()
    _, metrics = api.train_round(strategy, everyone(NODES, {BAD: silent}), arrays, 2)
    assert BAD - 10 not in metrics["fedpw-client-id"]
    assert f"round 2, client {BAD - 10} (node {BAD}) has no reply here" in flower_log.text


@pytest.mark.parametrize("placement", ["client", "packed"])
def test_client_that_fails_from_the_start_is_asked_who_it_is(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    def asked(message: Message) -> Iterable[Message]:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == IDENTITY_QUERY:
            return [Message(identity_record(node - 10), reply_to=message)]
        return failing(message) if node == BAD else honest(message)

    strategy = MESSAGE.strategy(**PLACEMENTS[placement])
    strategy.sampling.asks_identities = True
    MESSAGE.train_rounds(strategy, dict.fromkeys(NODES, asked), 2)
    assert f"round 2, client {BAD - 10} (node {BAD}) failed: " in flower_log.text
    assert "the battery is empty" in flower_log.text


# Evaluation


@both_apis
def test_evaluation_reply_of_a_known_client_is_named_by_its_stable_identity(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    def evaluating(message: Message) -> list[Message]:
        # As Flower's own examples do, without a word about who it is.
        nan = float("nan") if message.metadata.dst_node_id == BAD else 0.5
        return [evaluate_reply(message, accuracy=nan, **{"num-examples": 10})]

    strategy, _ = after_two_rounds(api)
    flower_log.clear()
    api.evaluate_round(strategy, dict.fromkeys(NODES, evaluating), 3)
    [told] = warnings(flower_log)
    assert f"round 3, client {BAD - 10} (node {BAD}) quarantined" in told


@both_apis
def test_evaluation_keeps_the_reply_of_the_node_that_trained_under_the_identity(
    api: Federation,
) -> None:
    def telling(accuracy: float, identity: int) -> Client:
        def evaluating(message: Message) -> list[Message]:
            reply = evaluate_reply(message, accuracy=accuracy, **{"num-examples": 10})
            reply.content["identity"] = identity_record(identity)["identity"]
            return [reply]

        return evaluating

    strategy, _ = after_two_rounds(api)
    clients = {node: telling(node / 100, node - 10) for node in NODES}
    expected = api.evaluate_round(strategy, clients)
    robbed = {2: telling(0.99, BAD - 10), **clients}
    metrics = api.evaluate_round(strategy, robbed)
    assert metrics["fedpw-quarantined"] == 1
    # A legacy server averages in the order in which results come.
    assert api.decided(metrics) == pytest.approx(api.decided(expected))
