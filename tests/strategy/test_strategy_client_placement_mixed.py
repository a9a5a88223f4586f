"""Clients that follow the request and clients that ignore it, in one round; and those that lie.

Whoever adjusts an update, the server or its client, does the same arithmetic on the same numbers:
on one device every mixture gives the same bytes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adjusting_clients import (
    Train,
    altered,
    following,
    ignoring,
    model_of,
    play,
    play_round,
    report_of,
    round_of,
    silent,
    with_report,
)
from support.federation import memory, warnings
from support.grid import Client
from support.records import NDArrays, array_record, payloads, train_content
from support.small_model import MODEL, train_reply

from fedpw_flwr import FedPW

NODES = [11, 12, 13, 14]
ROUNDS = 4
LIAR = 13


def clients_at(nodes: Mapping[int, bool], train: Train = train_reply) -> dict[int, Client]:
    """By node: whether it follows."""
    return {node: following(train) if yes else ignoring(train) for node, yes in nodes.items()}


def outcome(
    follow: Sequence[Mapping[int, bool]],
    model: NDArrays = MODEL,
    train: Train = train_reply,
    arrange: Callable[[list[Message]], list[Message]] = list,
    **settings: Any,
) -> tuple[Any, ...]:
    """Everything that a run leaves behind, to compare bit for bit."""
    strategy = FedPW(adjustment="client", device="cpu", **settings)
    clients = [clients_at(each, train) for each in follow]
    rounds = play(strategy, clients, array_record(model), arrange=arrange)
    return (
        [payloads(each.arrays) for each in rounds],
        [dict(each.metrics) for each in rounds],
        [each.requests for each in rounds],
        memory(strategy),
    )


ALL_FOLLOW = [dict.fromkeys(NODES, True)] * ROUNDS
NONE_FOLLOWS = [dict.fromkeys(NODES, False)] * ROUNDS
HALF_FOLLOW = [{node: (node + number) % 2 == 0 for node in NODES} for number in range(ROUNDS)]


def assert_adjusted(outcome: tuple[Any, ...]) -> None:
    """The rounds did mask and rescale, and nobody was set aside."""
    _, metrics, requests, *_ = outcome
    assert [each["fedpw-quarantined"] for each in metrics] == [0] * ROUNDS
    assert all(request.factors for request in requests[-1].values())
    assert all(request.rate > 0 for each in requests[1:] for request in each.values())


@pytest.fixture(scope="module")
def followed() -> tuple[Any, ...]:
    expected = outcome(ALL_FOLLOW)
    assert_adjusted(expected)
    return expected


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({node: st.booleans() for node in NODES}),
        min_size=ROUNDS,
        max_size=ROUNDS,
    ),
    st.permutations(NODES),
)
def test_any_mixture_of_clients_in_any_order_gives_the_same_bytes(
    followed: tuple[Any, ...], follow: list[dict[int, bool]], order: list[int]
) -> None:
    def arrange(replies: list[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: order.index(reply.metadata.src_node_id))

    assert outcome(follow, arrange=arrange) == followed


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_models_of_other_precisions_give_the_same_bytes_in_any_mixture(
    dtype: type[np.floating[Any]],
) -> None:
    model = {
        name: array.astype(dtype) if array.dtype.kind == "f" else array
        for name, array in MODEL.items()
    }
    expected = outcome(ALL_FOLLOW, model)
    assert_adjusted(expected)
    assert {kind for _, kind, _, _ in expected[0][-1]} == {np.dtype(dtype).name, "int64"}
    assert outcome(HALF_FOLLOW, model) == expected
    assert outcome(NONE_FOLLOWS, model) == expected


ODD = {"body.weight": np.array([6.53125 + 2.0**-19, 1.0], dtype=np.float32)}
ODD_TRAINED = {"body.weight": np.array([38.53125 + 2.0**-18, 0.5], dtype=np.float32)}
"""w − w_k lies between two floats and is rounded to −32; w − (w − w_k) is another number than w_k,
and taken from w again gives another update."""


def test_with_an_average_drop_rate_of_zero_any_mixture_gives_the_same_bytes() -> None:
    def train(message: Message) -> Message:
        model = model_of(message) if round_of(message) == 1 else ODD_TRAINED
        loss = 0.5 * message.metadata.dst_node_id
        return Message(train_content(model, loss), reply_to=message)

    two = {1: True, 2: True}
    expected = outcome([two] * 2, ODD, train, avg_drop_rate=0.0)
    for last in ({1: True, 2: False}, {1: False, 2: False}):
        assert outcome([two, last], ODD, train, avg_drop_rate=0.0) == expected


# --- Replies that contradict what was asked; unreadable reports: test_strategy_packed_fuzz ------


def nearly_the_rate(content: RecordDict) -> None:
    with_report(rate=float(np.nextafter(report_of(content)["rate"], 1)))(content)


LIES: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "another rate": (with_report(rate=0.31), r"masked with the rate 0\.31, asked was 0\."),
    "a rate one float away": (nearly_the_rate, "masked with the rate"),
    "an older consensus": (
        with_report(**{"consensus-round": 1}),
        "consensus of round 1, sent was that of round 2",
    ),
    "no consensus": (
        with_report(**{"consensus-round": None}),
        "consensus of round None, sent was that of round 2",
    ),
    "packed though dense was asked": (with_report(packed=[0]), "packed its update"),
}


@pytest.fixture(scope="module")
def before_round_3() -> tuple[FedPW, ArrayRecord]:
    strategy = FedPW(adjustment="client", device="cpu")
    everyone = clients_at(dict.fromkeys(NODES, True))
    return strategy, play(strategy, [everyone] * 2, array_record(MODEL))[-1].arrays


def costs_only_itself(
    strategy: FedPW,
    arrays: ArrayRecord,
    liar: Client,
    reason: str,
    log: pytest.LogCaptureFixture,
    server_round: int = 3,
) -> None:
    """The round is that in which the liar is silent, but for the count and a line in the log."""
    honest = clients_at({11: True, 12: False, 14: True})
    strategy, without = copy.deepcopy(strategy), copy.deepcopy(strategy)
    expected = play_round(without, {**honest, LIAR: silent}, arrays, server_round)
    log.clear()
    each = play_round(strategy, {**honest, LIAR: liar}, arrays, server_round)
    assert each.metrics["fedpw-client-id"] == sorted(honest)
    assert each.metrics["fedpw-quarantined"] == 1
    assert payloads(each.arrays) == payloads(expected.arrays)
    assert memory(strategy) == memory(without)
    [told] = warnings(log)
    assert re.search(rf"round {server_round}, node {LIAR} quarantined: .*({reason})", told)


@pytest.mark.parametrize("lie", LIES)
def test_reply_that_contradicts_its_request_costs_only_itself(
    before_round_3: tuple[FedPW, ArrayRecord], lie: str, flower_log: pytest.LogCaptureFixture
) -> None:
    change, reason = LIES[lie]
    costs_only_itself(*before_round_3, altered(following(), change), reason, flower_log)


@pytest.mark.parametrize(
    ("options", "server_round", "reason"),
    [
        ({"adjustment": "client"}, 1, r"masked with the rate 0\.3, asked was 0\.0"),
        ({}, 1, "adjusted its update, which it was not asked to"),
        ({"adjust_parameters": False}, 3, "adjusted its update, which it was not asked to"),
    ],
)
def test_reply_adjusted_though_nothing_was_asked_costs_only_itself(
    options: dict[str, Any], server_round: int, reason: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = FedPW(device="cpu", **options), array_record(MODEL)
    if server_round > 1:
        everyone = clients_at(dict.fromkeys(NODES, True))
        arrays = play(strategy, [everyone] * (server_round - 1), arrays)[-1].arrays
    liar = altered(ignoring(), with_report(rate=0.3))
    costs_only_itself(strategy, arrays, liar, reason, flower_log, server_round)


def test_a_users_own_record_of_another_shape_is_no_report(
    before_round_3: tuple[FedPW, ArrayRecord],
) -> None:
    def notes(content: RecordDict) -> None:
        content["notes"] = ConfigRecord({"fedpw": "text of the user"})
        content["fedpw"] = ConfigRecord({"note": "no report"})

    strategy, arrays = copy.deepcopy(before_round_3[0]), before_round_3[1]
    expected = copy.deepcopy(strategy)
    clients = clients_at(dict.fromkeys(NODES, False))
    each = play_round(strategy, {**clients, LIAR: altered(ignoring(), notes)}, arrays, 3)
    plain = play_round(expected, clients, arrays, 3)
    assert payloads(each.arrays) == payloads(plain.arrays)
    assert each.metrics["fedpw-quarantined"] == 0
