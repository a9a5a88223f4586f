"""Clients that follow the request and clients that ignore it, in one round; and those that lie.

Whoever adjusts an update, the server or its client, does the same arithmetic on the same numbers:
on one device every mixture gives the same bytes.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from adjusting_clients import (
    Train,
    altered,
    assert_quarantined,
    following,
    ignoring,
    memory,
    model_of,
    play,
    play_round,
    report_of,
    round_of,
    with_report,
)
from federation import MODEL, train_reply, trained
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grid import Client
from support.records import NDArrays, array_record, payloads, train_content

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
    **settings: Any,
) -> tuple[object, ...]:
    """Everything that a run leaves behind, to compare bit for bit."""
    strategy = FedPW(adjustment="client", device="cpu", **settings)
    rounds = play(strategy, [clients_at(each, train) for each in follow], array_record(model))
    return (
        [payloads(each.arrays) for each in rounds],
        [dict(each.metrics) for each in rounds],
        [each.requests for each in rounds],
        strategy.state,
        memory(strategy.method.adjustment_state),
    )


ALL_FOLLOW = [dict.fromkeys(NODES, True)] * ROUNDS
NONE_FOLLOWS = [dict.fromkeys(NODES, False)] * ROUNDS


@pytest.fixture(scope="module")
def followed() -> tuple[object, ...]:
    return outcome(ALL_FOLLOW)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({node: st.booleans() for node in NODES}),
        min_size=ROUNDS,
        max_size=ROUNDS,
    )
)
def test_any_mixture_of_clients_gives_the_same_bytes(
    followed: tuple[object, ...], follow: list[dict[int, bool]]
) -> None:
    assert outcome(follow) == followed


def test_the_compared_rounds_do_mask_and_rescale(followed: tuple[object, ...]) -> None:
    requests = followed[2]
    assert isinstance(requests, list)
    assert all(request.factors for request in requests[-1].values())
    assert all(request.rate > 0 for each in requests[1:] for request in each.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_models_of_other_precisions_give_the_same_bytes_in_any_mixture(
    dtype: type[np.floating[Any]],
) -> None:
    model = {
        name: array.astype(dtype) if array.dtype.kind == "f" else array
        for name, array in MODEL.items()
    }
    expected = outcome(ALL_FOLLOW, model)
    arrays = expected[0]
    assert isinstance(arrays, list)
    assert {kind for _, kind, _, _ in arrays[-1]} == {np.dtype(dtype).name, "int64"}
    half = [{node: (node + number) % 2 == 0 for node in NODES} for number in range(ROUNDS)]
    assert outcome(half, model) == expected
    assert outcome(NONE_FOLLOWS, model) == expected


def test_half_precision_rounds_quarantine_nobody_and_rescale() -> None:
    model = {
        name: array.astype(np.float16) if array.dtype.kind == "f" else array
        for name, array in MODEL.items()
    }
    strategy = FedPW(adjustment="client", device="cpu")
    rounds = play(strategy, [clients_at(dict.fromkeys(NODES, True))] * ROUNDS, array_record(model))
    assert [each.metrics["fedpw-quarantined"] for each in rounds] == [0] * ROUNDS
    assert all(request.factors for request in rounds[-1].requests.values())
    for node in NODES:
        # What is masked is exactly the server's entry, not its neighbour in half precision.
        sent, arrived = model_of(rounds[-1].messages[node]), rounds[-1].reply_arrays(node)
        rate = rounds[-1].rates[node]
        unmoved = np.count_nonzero(sent["body.weight"] == arrived["body.weight"])
        assert unmoved >= int(24 * rate + 1e-9) > 0


def test_column_major_arrays_give_the_same_bytes_in_any_mixture() -> None:
    def train(message: Message) -> Message:
        reply = train_reply(message)
        arrays = reply.content.array_records["arrays"]
        reply.content["arrays"] = ArrayRecord(
            {
                name: Array(np.asfortranarray(array.numpy())) if len(array.shape) > 1 else array
                for name, array in arrays.items()
            }
        )
        return reply

    expected = outcome(ALL_FOLLOW)
    assert outcome(ALL_FOLLOW, train=train) == expected
    assert outcome(NONE_FOLLOWS, train=train) == expected


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
    assert outcome([two, {1: True, 2: False}], ODD, train, avg_drop_rate=0.0) == expected
    assert outcome([two, {1: False, 2: False}], ODD, train, avg_drop_rate=0.0) == expected


@settings(max_examples=8, deadline=None)
@given(st.permutations(NODES), st.fixed_dictionaries({node: st.booleans() for node in NODES}))
def test_order_of_replies_does_not_matter(order: list[int], follow: dict[int, bool]) -> None:
    def arrange(replies: list[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: order.index(reply.metadata.src_node_id))

    plain, shuffled = FedPW(adjustment="client"), FedPW(adjustment="client")
    arrays = play(plain, [clients_at(follow)] * 2, array_record(MODEL))[-1].arrays
    play(shuffled, [clients_at(follow)] * 2, array_record(MODEL))
    one = play_round(plain, clients_at(follow), arrays, 3)
    other = play_round(shuffled, clients_at(follow), arrays, 3, arrange)
    assert payloads(other.arrays) == payloads(one.arrays)
    assert dict(other.metrics) == dict(one.metrics)
    assert memory(shuffled.method.adjustment_state) == memory(plain.method.adjustment_state)
    assert shuffled.state == plain.state


def test_order_in_which_nodes_are_sampled_does_not_matter(
    before_round_3: tuple[FedPW, ArrayRecord],
) -> None:
    # Flower samples nodes in a random order, and a float sum depends on its order.
    strategy, arrays = copy.deepcopy(before_round_3[0]), before_round_3[1]
    clients = {node: node for node in NODES}
    expected = strategy.method.requests(list(arrays), clients)
    for order in itertools.permutations(NODES):
        shuffled = {node: clients[node] for node in order}
        assert strategy.method.requests(list(arrays), shuffled) == expected


def test_node_ids_do_not_matter_to_clients_that_name_themselves() -> None:
    def named(offset: int, sign: int) -> tuple[object, ...]:
        def train(message: Message) -> Message:
            client = sign * (message.metadata.dst_node_id - offset)
            model = trained(model_of(message), (client, round_of(message)))
            return Message(train_content(model, 0.5 + 0.17 * client, 10, client), reply_to=message)

        clients = dict.fromkeys((offset + sign * client for client in range(5)), following(train))
        strategy = FedPW(adjustment="client", device="cpu")
        rounds = play(strategy, [clients] * ROUNDS, array_record(MODEL))
        return (
            [payloads(each.arrays) for each in rounds],
            [dict(each.metrics) for each in rounds],
            memory(strategy.method.adjustment_state),
        )

    assert named(offset=20, sign=1) == named(offset=90, sign=-1)


def test_a_client_may_follow_one_round_and_ignore_the_next(followed: tuple[object, ...]) -> None:
    in_turn = [dict.fromkeys(NODES, number % 2 == 0) for number in range(ROUNDS)]
    assert outcome(in_turn) == followed


def test_update_of_zeros_is_left_to_the_server_and_counts_as_followed() -> None:
    # Clipping mods divide by an update's norm: a client never masks everything away itself.
    floats = {name: array for name, array in MODEL.items() if array.dtype.kind == "f"}

    def train(message: Message) -> Message:
        loss = 1e-3 if message.metadata.dst_node_id == 11 else 1.0
        return train_reply(message, loss=loss)

    strategy = FedPW(adjustment="client", device="cpu", max_loss_ratio=None)
    rounds = play(
        strategy, [clients_at(dict.fromkeys(NODES, True), train)] * 3, array_record(floats)
    )
    assert rounds[1].rates[11] == 1.0
    assert "fedpw" not in rounds[1].replies[11]
    assert "fedpw" in rounds[1].replies[12]
    assert rounds[1].metrics["fedpw-client-id"] == NODES
    assert outcome(ALL_FOLLOW, floats, train) == outcome(NONE_FOLLOWS, floats, train)


# --- Replies that contradict what was asked -----------------------------------------------------


def report_bytes(value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["fedpw"] = ConfigRecord({"fedpw": value})

    return change


def without_entry(key: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        entries = {name: value for name, value in report_of(content).items() if name != key}
        content["fedpw"] = ConfigRecord({"fedpw": json.dumps(entries).encode()})

    return change


LIES: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "another rate": (with_report(rate=0.31), r"masked with the rate 0\.31, asked was 0\."),
    "a rate one float away": (
        lambda content: with_report(rate=float(np.nextafter(report_of(content)["rate"], 1)))(
            content
        ),
        "masked with the rate",
    ),
    "no masking at all": (with_report(rate=0.0), r"masked with the rate 0\.0"),
    "a rate above one": (with_report(rate=1.5), r"1\.5, outside"),
    "a negative rate": (with_report(rate=-0.1), r"-0\.1, outside"),
    "a rate that is text": (with_report(rate="0.3"), "'0.3'.*not a finite number"),
    "a rate that is NaN": (with_report(rate=float("nan")), "nan.*not a finite number"),
    "an older consensus": (
        with_report(**{"consensus-round": 1}),
        "consensus of round 1, sent was that of round 2",
    ),
    "a later consensus": (
        with_report(**{"consensus-round": 3}),
        "consensus of round 3, sent was that of round 2",
    ),
    "no consensus": (
        with_report(**{"consensus-round": None}),
        "consensus of round None, sent was that of round 2",
    ),
    "a consensus that is text": (with_report(**{"consensus-round": "2"}), "consensus round '2'"),
    "a consensus that is a fraction": (
        with_report(**{"consensus-round": 2.0}),
        r"consensus round 2\.0",
    ),
    "packed though dense was asked": (with_report(packed=[0]), "packed its update"),
    "packed arrays the model lacks": (with_report(packed=[4]), r"arrays \[4\] of a model of 4"),
    "too few magnitudes": (with_report(discarded=[0.1]), "each of 4 arrays"),
    "a negative magnitude": (with_report(discarded=[0.1, -0.1, 0.0, 0.0]), "negative"),
    "an infinite magnitude": (
        with_report(discarded=[0.1, float("inf"), 0.0, 0.0]),
        "not a finite number",
    ),
    "a magnitude no float can hold": (
        with_report(discarded=[10**400, 0.1, 0.0, 0.0]),
        "not a finite number|cannot be read",
    ),
    "a magnitude that is text": (with_report(discarded=["x", 0, 0, 0]), "not a finite number"),
    "another version": (with_report(version=2), "version 2.*install the same version"),
    "a report without a rate": (without_entry("rate"), "not a finite number"),
    "a report without its consensus": (without_entry("consensus-round"), "consensus-round"),
    "a report without magnitudes": (without_entry("discarded"), "discarded"),
    "a report that is text": (report_bytes("rate 0.3"), "str, not bytes"),
    "a report that is a number": (report_bytes(3), "int, not bytes"),
    "a report of noise": (report_bytes(bytes(range(256))), "cannot be read"),
    "a report without braces": (report_bytes(b"[0.3]"), "no JSON object"),
    "an empty report": (report_bytes(b""), "cannot be read"),
    "a report nested without end": (report_bytes(b"[" * 100_000), "cannot be read"),
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
    flower_log: pytest.LogCaptureFixture,
    server_round: int = 3,
) -> None:
    clients = {**clients_at({11: True, 12: False, 14: True}), LIAR: liar}
    assert_quarantined(strategy, arrays, clients, LIAR, reason, flower_log, server_round)


@pytest.mark.parametrize("lie", LIES)
def test_reply_that_contradicts_its_request_costs_only_itself(
    before_round_3: tuple[FedPW, ArrayRecord], lie: str, flower_log: pytest.LogCaptureFixture
) -> None:
    change, reason = LIES[lie]
    costs_only_itself(*before_round_3, altered(following(), change), reason, flower_log)


def test_reply_to_the_round_before_costs_only_itself(
    before_round_3: tuple[FedPW, ArrayRecord], flower_log: pytest.LogCaptureFixture
) -> None:
    # Round 2 was asked without a consensus and with other rates.
    strategy = FedPW(adjustment="client", device="cpu")
    late: list[RecordDict] = []
    keeping = altered(following(), lambda content: late.append(copy.deepcopy(content)))
    everyone = {**clients_at(dict.fromkeys(NODES, True)), LIAR: keeping}
    play(strategy, [everyone] * 2, array_record(MODEL))

    def replaying(message: Message) -> list[Message]:
        return [Message(late[1], reply_to=message)]

    costs_only_itself(*before_round_3, replaying, "masked with the rate", flower_log)


def test_reply_masked_in_the_first_round_costs_only_itself(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    costs_only_itself(
        FedPW(adjustment="client", device="cpu"),
        array_record(MODEL),
        altered(following(), with_report(rate=0.3)),
        r"masked with the rate 0\.3, asked was 0\.0",
        flower_log,
        server_round=1,
    )


@pytest.mark.parametrize("settings_of_strategy", [{}, {"adjust_parameters": False}])
@pytest.mark.parametrize("server_round", [1, 3])
def test_reply_adjusted_though_nothing_was_asked_costs_only_itself(
    server_round: int,
    settings_of_strategy: dict[str, Any],
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy, arrays = FedPW(device="cpu", **settings_of_strategy), array_record(MODEL)
    if server_round > 1:
        everyone = clients_at(dict.fromkeys(NODES, True))
        arrays = play(strategy, [everyone] * (server_round - 1), arrays)[-1].arrays
    costs_only_itself(
        strategy,
        arrays,
        altered(ignoring(), with_report(rate=0.3)),
        "adjusted its update, which it was not asked to",
        flower_log,
        server_round,
    )


def test_when_every_reply_lies_nothing_moves(before_round_3: tuple[FedPW, ArrayRecord]) -> None:
    strategy, arrays = copy.deepcopy(before_round_3[0]), before_round_3[1]
    before = memory(strategy.method.adjustment_state)
    liar = altered(following(), with_report(rate=0.123))
    each = play_round(strategy, dict.fromkeys(NODES, liar), arrays, 3)
    assert payloads(each.arrays) == payloads(arrays)
    assert each.metrics["fedpw-quarantined"] == len(NODES)
    assert memory(strategy.method.adjustment_state) == before


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


def test_diverged_client_that_follows_is_quarantined_as_one_that_does_not(
    before_round_3: tuple[FedPW, ArrayRecord], flower_log: pytest.LogCaptureFixture
) -> None:
    def train(message: Message) -> Message:
        model = trained(model_of(message), (1, 2))
        model["body.weight"][0, 0] = np.nan
        return Message(train_content(model, 0.7, 10), reply_to=message)

    for client in (following(train), ignoring(train)):
        costs_only_itself(*before_round_3, client, "'body.weight'.*not finite", flower_log)
