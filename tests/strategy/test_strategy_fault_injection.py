"""Faults injected into whole rounds: whatever one client does, the others' result stays theirs.

Wherever updates are adjusted, and whether a reply is broken before the client adjusts it or on its
way: the round ends, the model is finite, the log names the culprit. Numbers that only a client can
know count within bounds.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from adjusting_clients import following, silent
from broken_replies import BROKEN_REPLIES, STRANGER, BrokenReply
from federation import MODEL as SMALL_MODEL
from federation import evaluate_reply, evaluate_round, train_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.grid import Client, ClientsGrid, ask, train_round
from support.records import (
    NDArrays,
    array_record,
    ndarrays,
    payloads,
    train_content,
)

from fedpw_flwr import FedPW
from fedpw_flwr.rounds.attendance import TooFewClientsError
from fedpw_flwr.wire.adjustment import NEEDS_DENSE, REPORT_KEY
from fedpw_flwr.wire.records import IDENTITY_QUERY, identity_record

NODES = list(range(11, 17))
BAD = 13
OWN_COUNTS = ("fedpw-quarantined", "fedpw-failed", "fedpw-empty")

MODEL: NDArrays = {
    **SMALL_MODEL,
    "conv.weight": np.linspace(-1.0, 1.0, 96, dtype=np.float32).reshape(6, 4, 4),
}
"""With a tensor that is large enough to be packed."""

PLACEMENTS: dict[str, dict[str, Any]] = {
    "server": {},
    "client": {"adjustment": "client"},
    "packed": {"adjustment": "client", "upload": "packed"},
}


def client_of(node: int) -> int:
    """The stable identity of the client at a node."""
    return node - 10


def named_reply(message: Message, **content: Any) -> Message:
    content.setdefault("client_id", client_of(message.metadata.dst_node_id))
    return train_reply(message, **content)


honest = following(named_reply)


def breaks_before_it_adjusts(kind: BrokenReply) -> Client:
    """The train function returns the broken reply, to the mod that adjusts updates."""
    return following(lambda message: kind.arrives(message, named_reply(message))[0])


def breaks_on_the_way(kind: BrokenReply) -> Client:
    """The reply was adjusted as asked; something happens to it afterwards."""

    def client(message: Message) -> list[Message]:
        [good] = honest(message)
        return kind.arrives(message, good)

    return client


def a_strategy(placement: str, **options: Any) -> FedPW:
    return FedPW(device="cpu", **{**PLACEMENTS[placement], **options})


@cache
def _two_rounds(placement: str) -> tuple[FedPW, ArrayRecord]:
    strategy, arrays = a_strategy(placement), array_record(MODEL)
    for server_round in (1, 2):
        arrays, _ = train_round(strategy, everyone(honest), arrays, server_round)
    return strategy, arrays


def after_two_rounds(placement: str) -> tuple[FedPW, ArrayRecord]:
    """A federation that masked once: from here on there is a consensus, too."""
    strategy, arrays = _two_rounds(placement)
    return copy.deepcopy(strategy), arrays


def everyone(client: Client, others: Mapping[int, Client] | None = None) -> ClientsGrid:
    return ClientsGrid({**dict.fromkeys(NODES, client), **(others or {})})


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == "WARNING"]


def memory(strategy: FedPW) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Everything a strategy carries over, in a form that compares by value."""
    state, tensors = strategy.saved_state()
    return state, {name: tensor.tolist() for name, tensor in tensors.items()}


def decided(metrics: MetricRecord) -> dict[str, object]:
    return {key: value for key, value in metrics.items() if key not in OWN_COUNTS}


def assert_finite(arrays: ArrayRecord) -> None:
    assert list(arrays) == list(MODEL)
    for name, array in ndarrays(arrays).items():
        assert (array.shape, array.dtype) == (MODEL[name].shape, MODEL[name].dtype)
        assert np.isfinite(array).all(), name


def assert_finite_metrics(metrics: MetricRecord) -> None:
    for key, value in metrics.items():
        assert np.isfinite(value).all(), key


ROUTES: dict[str, Callable[[BrokenReply], Client]] = {
    "before it adjusts": breaks_before_it_adjusts,
    "on the way": breaks_on_the_way,
}
CASES = [
    (placement, route, kind)
    for placement, route in [
        ("server", "on the way"),
        ("client", "before it adjusts"),
        ("client", "on the way"),
        ("packed", "before it adjusts"),
        ("packed", "on the way"),
    ]
    for kind in BROKEN_REPLIES
]


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize(("placement", "route", "kind"), CASES)
def test_broken_reply_costs_only_itself_wherever_updates_are_adjusted(
    placement: str, route: str, kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_rounds(placement)
    without = copy.deepcopy(strategy)
    expected, expected_metrics = train_round(without, everyone(honest, {BAD: silent}), arrays, 3)
    flower_log.clear()
    culprit = ROUTES[route](BROKEN_REPLIES[kind])
    new_arrays, metrics = train_round(strategy, everyone(honest, {BAD: culprit}), arrays, 3)

    assert_finite(new_arrays)
    assert payloads(new_arrays) == payloads(expected)
    assert memory(strategy) == memory(without)
    assert decided(metrics) == decided(expected_metrics)
    assert metrics["fedpw-client-id"] == [client_of(node) for node in NODES if node != BAD]
    assert sorted(metrics[count] for count in OWN_COUNTS) == [0, 0, 1]
    told = [line for line in warnings(flower_log) if "quarantined" in line or "failed" in line]
    assert len(told) == 1
    assert re.search(rf"round 3, .*node ({BAD}|{STRANGER})\)? (quarantined|failed): .", told[0])


LOSSLESS = {"no loss", "no MetricRecord", "no records"}
"""Where no reply has a loss, there is an error that says so."""

KNOWN_WITHOUT_SAYING = sorted(set(BROKEN_REPLIES) - {"node that was not asked"})


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("kind", KNOWN_WITHOUT_SAYING)
def test_client_that_was_there_before_is_named_by_its_stable_identity(
    kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_rounds("server")
    culprit = breaks_on_the_way(BROKEN_REPLIES[kind])
    flower_log.clear()
    train_round(strategy, everyone(honest, {BAD: culprit}), arrays, 3)
    [told] = warnings(flower_log)
    assert f"round 3, client {client_of(BAD)} (node {BAD})" in told


def test_evaluation_reply_of_a_known_client_is_named_by_its_stable_identity(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    def evaluating(message: Message) -> list[Message]:
        # As Flower's own examples do, without a word about who it is.
        nan = float("nan") if message.metadata.dst_node_id == BAD else 0.5
        return [evaluate_reply(message, accuracy=nan, **{"num-examples": 10})]

    strategy, _ = after_two_rounds("server")
    flower_log.clear()
    evaluate_round(strategy, everyone(evaluating), server_round=3)
    [told] = warnings(flower_log)
    assert f"round 3, client {client_of(BAD)} (node {BAD}) quarantined" in told


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_client_that_does_not_answer_is_named(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_rounds(placement)
    flower_log.clear()
    new_arrays, metrics = train_round(strategy, everyone(honest, {BAD: silent}), arrays, 3)
    assert_finite(new_arrays)
    assert client_of(BAD) not in metrics["fedpw-client-id"]  # type: ignore[operator]
    assert f"client {client_of(BAD)} (node {BAD})" in "\n".join(warnings(flower_log))


@pytest.mark.parametrize("placement", ["client", "packed"])
def test_client_that_fails_from_the_start_is_asked_who_it_is(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    def client(message: Message) -> Iterable[Message]:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == IDENTITY_QUERY:
            return [Message(identity_record(client_of(node)), reply_to=message)]
        if node == BAD:
            raise RuntimeError("the disk of this site is full")
        return honest(message)

    strategy, arrays = a_strategy(placement), array_record(MODEL)
    strategy.sampling.asks_identities = True
    for server_round in (1, 2):
        flower_log.clear()
        arrays, _ = train_round(strategy, everyone(client), arrays, server_round)
    [told] = [line for line in warnings(flower_log) if "disk" in line]
    assert f"round 2, client {client_of(BAD)} (node {BAD}) failed" in told


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", sorted(set(BROKEN_REPLIES) - LOSSLESS))
def test_where_all_replies_are_bad_the_model_keeps_its_bytes(placement: str, kind: str) -> None:
    strategy, arrays = after_two_rounds(placement)
    before = memory(strategy)
    all_bad = everyone(breaks_before_it_adjusts(BROKEN_REPLIES[kind]))
    new_arrays, metrics = train_round(strategy, all_bad, arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert memory(strategy) == before
    assert sum(metrics[count] for count in OWN_COUNTS) == len(NODES)  # type: ignore[misc]
    _, metrics = train_round(strategy, everyone(honest), new_arrays, 4)
    assert metrics["fedpw-client-id"] == [client_of(node) for node in NODES]


def _no_loss(message: Message) -> list[Message]:
    return [Message(train_content(MODEL, loss=None), reply_to=message)]


def _behind_a_clipping_mod(message: Message) -> list[Message]:
    return [Message(Error(2, f"ValueError: {NEEDS_DENSE}"), reply_to=message)]


@pytest.mark.parametrize("last", [_no_loss, _behind_a_clipping_mod])
def test_the_only_one_to_answer_cannot_end_a_run_that_went_well(last: Client) -> None:
    strategy, arrays = after_two_rounds("server")
    new_arrays, metrics = train_round(strategy, everyone(silent, {BAD: last}), arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert sum(metrics[count] for count in OWN_COUNTS) == 1  # type: ignore[misc]


# What a reply says beside its arrays.

UINT64, INT64 = 2**64 - 1, -(2**63)
"""The largest and the smallest integer that Flower's messages carry."""

HOSTILE_METRICS: dict[str, dict[str, Any]] = {
    "numbers near the largest": {"accuracy": 1.7e308, "count": UINT64, "least": INT64},
    "lists of another length": {"per-class": [0.1] * 1000},
    "an empty list": {"per-class": []},
    "a list where others have a number": {"accuracy": [0.5]},
    "NaN and infinity": {"accuracy": math.nan, "per-class": [math.inf, 1.0]},
    "no names": {"": 1.0, "\n\x00": 2},
    "FedPW's own names": {"fedpw-weight": [9.0], "fedpw-client-id": [99], "fedpw-failed": 99},
    "a thousand names": {f"metric {number}": number for number in range(1000)},
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", HOSTILE_METRICS)
def test_what_a_client_says_beside_its_loss_moves_no_model(placement: str, kind: str) -> None:
    usual = {"accuracy": 0.5, "per-class": [0.4, 0.6]}

    def telling(metrics: dict[str, Any]) -> Client:
        return following(lambda message: named_reply(message, **{**usual, **metrics}))

    strategy, arrays = after_two_rounds(placement)
    other = copy.deepcopy(strategy)
    liar = telling(HOSTILE_METRICS[kind])
    new_arrays, metrics = train_round(strategy, everyone(telling({}), {BAD: liar}), arrays, 3)
    expected, expected_metrics = train_round(other, everyone(telling({})), arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert memory(strategy) == memory(other)
    assert_finite_metrics(metrics)
    own = [key for key in expected_metrics if key.startswith("fedpw-")]
    assert {key: metrics[key] for key in own} == {key: expected_metrics[key] for key in own}


@pytest.mark.parametrize("count", [1, 1e308, UINT64])
@pytest.mark.parametrize("liars", [1, 2])
def test_number_of_examples_moves_no_weight(count: float, liars: int) -> None:
    counting = following(lambda message: named_reply(message, num_examples=count))
    strategy, arrays = after_two_rounds("server")
    other = copy.deepcopy(strategy)
    grid = everyone(honest, dict.fromkeys(NODES[:liars], counting))
    new_arrays, metrics = train_round(strategy, grid, arrays, 3)
    expected, _ = train_round(other, everyone(honest), arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert memory(strategy) == memory(other)
    assert_finite_metrics(metrics)


@pytest.mark.parametrize("count", [0, 1e308, UINT64])
@pytest.mark.parametrize("liars", [1, 2])
def test_weights_by_number_of_examples_sum_to_one_whatever_clients_count(
    count: float, liars: int
) -> None:
    """Without adaptive weights they are FedAvg's, and a count is believed as FedAvg believes it."""
    counting = following(lambda message: named_reply(message, num_examples=count))
    grid = everyone(honest, dict.fromkeys(NODES[:liars], counting))
    strategy = FedPW(device="cpu", adapt_weights=False)
    arrays, metrics = train_round(strategy, grid, array_record(MODEL), 1)
    assert_finite(arrays)
    assert math.fsum(listed(metrics, "fedpw-weight")) == pytest.approx(1.0)


# Losses that are lies.

MANY = list(range(11, 23))
LIAR = 22
EQUAL_SHARE = 1 / len(MANY)
HUGE, TINY = [1e6, 1e300], [1e-300, 0.0]


def claiming(loss: float) -> Client:
    return following(lambda message: named_reply(message, loss=loss))


def rounds_with_a_liar(placement: str, loss: float | None, **options: Any) -> list[MetricRecord]:
    """Four rounds of eleven honest clients and one that reports a loss of its choice."""
    liar = honest if loss is None else claiming(loss)
    grid = ClientsGrid({**dict.fromkeys(MANY, honest), LIAR: liar})
    strategy, arrays = a_strategy(placement, **options), array_record(MODEL)
    rounds = []
    for server_round in range(1, 5):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert_finite(arrays)
        assert_finite_metrics(metrics)
        rounds.append(metrics)
    return rounds


UNBOUNDED: dict[str, Any] = {"max_weight": None, "max_loss_ratio": None}


def listed(metrics: MetricRecord, key: str) -> list[float]:
    value = metrics[key]
    assert isinstance(value, list)
    return [float(entry) for entry in value]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("loss", HUGE)
def test_huge_loss_grabs_a_bounded_weight(placement: str, loss: float) -> None:
    for metrics in rounds_with_a_liar(placement, loss):
        assert max(listed(metrics, "fedpw-weight")) <= 5 * EQUAL_SHARE + 1e-12
        assert metrics["fedpw-bounded"] == 1
    grabbed = [
        listed(metrics, "fedpw-weight")[-1]
        for metrics in rounds_with_a_liar(placement, loss, **UNBOUNDED)
    ]
    assert min(grabbed) > 9 * EQUAL_SHARE


def drop_rates_of_the_others(placement: str, loss: float | None, **options: Any) -> np.ndarray:
    """By round from the second on (the third, where clients learn of a loss a round later)."""
    rounds = rounds_with_a_liar(placement, loss, **options)
    return np.array([listed(metrics, "fedpw-drop-rate")[:-1] for metrics in rounds[2:]])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("loss", TINY)
def test_tiny_loss_does_not_take_the_others_masks_away(placement: str, loss: float) -> None:
    usual = drop_rates_of_the_others(placement, None)
    # Its quotient counts 20 times as much as the median's, in a mean over all.
    least = len(MANY) / (2 * len(MANY) + 20)
    assert (drop_rates_of_the_others(placement, loss) > least * usual).all()
    assert (drop_rates_of_the_others(placement, loss, **UNBOUNDED) < 0.05 * usual).all()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("loss", HUGE)
def test_huge_loss_does_not_make_the_others_masks_alike(placement: str, loss: float) -> None:
    bounded = drop_rates_of_the_others(placement, loss)
    assert (bounded.max(axis=1) > 1.5 * bounded.min(axis=1)).all()
    assert np.ptp(drop_rates_of_the_others(placement, loss, **UNBOUNDED), axis=1).max() < 1e-9


@pytest.mark.parametrize("loss", HUGE)
def test_huge_first_loss_does_not_stop_the_loss_term_for_good(loss: float) -> None:
    first_sizes = {}
    for bounds in ("on", "off"):
        strategy = FedPW(device="cpu", **({} if bounds == "on" else UNBOUNDED))
        grid = ClientsGrid({**dict.fromkeys(MANY, honest), LIAR: claiming(loss)})
        train_round(strategy, grid, array_record(MODEL), 1)
        first_sizes[bounds] = strategy.state.loss.first_size or 0.0
    assert first_sizes["on"] < 5.0
    assert first_sizes["off"] > 1e4


@pytest.mark.parametrize("loss", [*HUGE, *TINY])
def test_liar_is_named_with_the_round_and_what_its_loss_counts_as(
    loss: float, flower_log: pytest.LogCaptureFixture
) -> None:
    rounds_with_a_liar("server", loss)
    told = [line for line in warnings(flower_log) if "max_loss_ratio" in line]
    assert len(told) == 4
    for server_round, line in enumerate(told, start=1):
        assert re.search(
            rf"round {server_round}, client {client_of(LIAR)} reports the loss .* counts as", line
        )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_honest_clients_get_the_same_bytes_with_bounds_and_without(placement: str) -> None:
    runs = []
    for options in ({}, UNBOUNDED):
        strategy, arrays = a_strategy(placement, **options), array_record(MODEL)
        grid, rounds = ClientsGrid(dict.fromkeys(MANY, honest)), []
        for server_round in range(1, 6):
            arrays, metrics = train_round(strategy, grid, arrays, server_round)
            assert metrics["fedpw-bounded"] == 0
            rounds.append((payloads(arrays), dict(metrics)))
        runs.append((rounds, memory(strategy)))
    assert runs[0] == runs[1]


# Who is who, and what was asked.


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_answer_to_the_last_rounds_message_does_not_count_in_this_one(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, grid = a_strategy(placement), everyone(honest)
    arrays = array_record(MODEL)
    for server_round in (1, 2):
        replies = ask(strategy, grid, arrays, server_round)
        new_arrays, _ = strategy.aggregate_train(server_round, replies)
        assert new_arrays is not None
        arrays = new_arrays
    [late] = [reply for reply in replies if reply.metadata.src_node_id == BAD]
    fresh = ask(strategy, grid, arrays, 3)
    in_time = [reply for reply in fresh if reply.metadata.src_node_id != BAD]
    without = copy.deepcopy(strategy)
    expected, _ = without.aggregate_train(3, in_time)
    flower_log.clear()
    new_arrays, metrics = strategy.aggregate_train(3, [*in_time, late])
    assert new_arrays is not None
    assert expected is not None
    assert metrics is not None
    assert payloads(new_arrays) == payloads(expected)
    assert metrics["fedpw-quarantined"] == 1
    assert any(f"client {client_of(BAD)} (node {BAD})" in line for line in warnings(flower_log))


@pytest.mark.parametrize("placement", ["client", "packed"])
def test_last_rounds_update_in_this_rounds_reply_is_set_aside(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    """Where clients adjust, they say to what request; elsewhere it is an update like any other."""
    kept: list[RecordDict] = []

    def stale(message: Message) -> list[Message]:
        [reply] = honest(message)
        kept.append(reply.content)
        return [Message(kept[max(0, len(kept) - 2)], reply_to=message)]

    strategy, arrays = a_strategy(placement), array_record(MODEL)
    for server_round in (1, 2, 3):
        flower_log.clear()
        arrays, metrics = train_round(
            strategy, everyone(honest, {BAD: stale}), arrays, server_round
        )
        assert_finite(arrays)
    assert metrics["fedpw-quarantined"] == 1
    [told] = warnings(flower_log)
    assert f"round 3, client {client_of(BAD)} (node {BAD}) quarantined: it " in told


def thief_of(victim: int) -> Client:
    return following(lambda message: named_reply(message, loss=1.0, client_id=victim))


def test_thief_of_a_present_clients_identity_is_named_by_its_own(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy, arrays = after_two_rounds("server")
    without = copy.deepcopy(strategy)
    flower_log.clear()
    thief, victim = 15, client_of(12)
    grid = everyone(honest, {thief: thief_of(victim)})
    new_arrays, _ = train_round(strategy, grid, arrays, 3)
    [told] = warnings(flower_log)
    expected, _ = train_round(without, everyone(honest, {thief: silent}), arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert f"client {client_of(thief)} (node {thief})" in told
    assert f"client {victim}" in told


def test_absent_clients_identity_goes_to_whoever_claims_it_within_the_bounds() -> None:
    """What a site that comes back at a new node needs, and what a thief can use."""
    strategy, arrays = after_two_rounds("server")
    history = strategy.state.loss.clients[client_of(BAD)]
    stranger = 99
    rest = {node: honest for node in NODES if node != BAD}
    grid = ClientsGrid({**rest, stranger: thief_of(client_of(BAD))})
    arrays, metrics = train_round(strategy, grid, arrays, 3)
    assert_finite(arrays)
    assert client_of(BAD) in metrics["fedpw-client-id"]  # type: ignore[operator]
    assert metrics["fedpw-quarantined"] == 0
    assert strategy.state.loss.clients[client_of(BAD)].mass > history.mass
    assert max(listed(metrics, "fedpw-weight")) <= 5 / len(NODES)


def test_client_whose_identity_was_taken_while_it_was_away_gets_it_back(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy, arrays = after_two_rounds("server")
    thief = 99
    rest = {node: honest for node in NODES if node != BAD}
    robbed = {**rest, thief: thief_of(client_of(BAD))}
    arrays, _ = train_round(strategy, ClientsGrid(robbed), arrays, 3)
    without = copy.deepcopy(strategy)
    flower_log.clear()
    new_arrays, _ = train_round(strategy, ClientsGrid({**robbed, BAD: honest}), arrays, 4)
    expected, _ = train_round(without, ClientsGrid({**rest, BAD: honest}), arrays, 4)
    assert payloads(new_arrays) == payloads(expected)
    assert f"node {thief}" in "\n".join(warnings(flower_log))


def test_identity_that_moves_to_another_node_is_told(flower_log: pytest.LogCaptureFixture) -> None:
    strategy, arrays = after_two_rounds("server")
    rest = {node: honest for node in NODES if node != BAD}
    flower_log.clear()
    train_round(
        strategy, ClientsGrid({**rest, 99: thief_of(client_of(BAD))}), arrays, server_round=3
    )
    told = "\n".join(record.getMessage() for record in flower_log.records)
    assert re.search(rf"client {client_of(BAD)}\b.*99", told)


# Everything together, drawn at random.

NUMBERS = st.one_of(st.integers(INT64, UINT64), st.floats())
METRIC_VALUES = st.one_of(
    NUMBERS,
    st.lists(st.integers(INT64, 2**63 - 1), max_size=3),
    st.lists(st.floats(), max_size=3),
)
CONFIG_VALUES = st.one_of(
    NUMBERS, st.booleans(), st.text(max_size=5), st.binary(max_size=5), st.just([1, 2])
)
METRIC_NAMES = st.sampled_from(
    ["train_loss", "num-examples", "accuracy", "fedpw-weight", "fedpw-p", "x", ""]
)
METRICS = st.dictionaries(METRIC_NAMES, METRIC_VALUES, max_size=4)
HOSTILE = [31, 32, 33]
"""Behind the honest nodes, so that the first to claim an identity is its owner."""

Mutation = Callable[[Message, "Past"], list[Message]]


@dataclass
class Past:
    """What a hostile client has at hand: its honest reply, and everything it sent before."""

    reply: Message
    earlier: list[RecordDict] = field(default_factory=list)


def _replaced(message: Message, past: Past, **records: Any) -> list[Message]:
    return [Message(RecordDict({**past.reply.content, **records}), reply_to=message)]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    kind = draw(st.sampled_from(sorted(_MUTATIONS)))
    mutation: Mutation = draw(_MUTATIONS[kind])
    return mutation


def _flip(place: float, mask: int, which: float) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        arrays = dict(past.reply.content.array_records["arrays"])
        name = sorted(arrays)[int(which * len(arrays))]
        array, data = arrays[name], bytearray(arrays[name].data)
        data[int(place * len(data))] ^= mask
        arrays[name] = Array(array.dtype, array.shape, array.stype, bytes(data))
        return _replaced(message, past, arrays=ArrayRecord(arrays))

    return mutate


def _swap(one: float, other: float) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        arrays = dict(past.reply.content.array_records["arrays"])
        names = sorted(arrays)
        first, second = names[int(one * len(names))], names[int(other * len(names))]
        arrays[first], arrays[second] = arrays[second], arrays[first]
        return _replaced(message, past, arrays=ArrayRecord(arrays))

    return mutate


def _scale(factor: float) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        with np.errstate(all="ignore"):
            arrays = {
                name: (array * np.float64(factor)).astype(array.dtype)
                for name, array in ndarrays(past.reply.content.array_records["arrays"]).items()
            }
        return _replaced(message, past, arrays=array_record(arrays))

    return mutate


def _tell(metrics: dict[str, Any], instead: bool) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        usual = {} if instead else dict(past.reply.content.metric_records["metrics"])
        return _replaced(message, past, metrics=MetricRecord({**usual, **metrics}))

    return mutate


def _call_itself(identity: Any) -> Mutation:
    return lambda message, past: _replaced(
        message, past, identity=ConfigRecord({"client-id": identity})
    )


def _report(value: Any) -> Mutation:
    return lambda message, past: _replaced(
        message, past, **{REPORT_KEY: ConfigRecord({REPORT_KEY: value})}
    )


def _without(name: str) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        content = {key: record for key, record in past.reply.content.items() if key != name}
        return [Message(RecordDict(content), reply_to=message)]

    return mutate


def _fail(text: str) -> Mutation:
    return lambda message, past: [Message(Error(2, text), reply_to=message)]


def _replay(which: float) -> Mutation:
    def mutate(message: Message, past: Past) -> list[Message]:
        content = past.earlier[int(which * len(past.earlier))]
        return [Message(content, reply_to=message)]

    return mutate


def _repeat(times: int) -> Mutation:
    return lambda message, past: [
        Message(past.reply.content, reply_to=message) for _ in range(times)
    ]


UNIT = st.floats(0, 1, exclude_max=True)
_MUTATIONS: dict[str, st.SearchStrategy[Mutation]] = {
    "a byte flipped": st.builds(_flip, UNIT, st.integers(1, 255), UNIT),
    "arrays swapped": st.builds(_swap, UNIT, UNIT),
    "arrays scaled": st.builds(_scale, st.floats()),
    "metrics": st.builds(_tell, METRICS, st.booleans()),
    "identity": st.builds(_call_itself, st.one_of(CONFIG_VALUES, st.integers(0, 8))),
    "report": st.builds(_report, CONFIG_VALUES),
    "a record missing": st.builds(_without, st.sampled_from(["arrays", "metrics", "identity"])),
    "an error": st.builds(_fail, st.one_of(st.text(max_size=20), st.just(NEEDS_DENSE))),
    "an earlier reply": st.builds(_replay, UNIT),
    "silence, or several": st.builds(_repeat, st.integers(0, 3)),
}

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def attacker(plan: Sequence[Mutation]) -> Client:
    """A client that trains as the others do, and sends what it likes, each round something else."""
    earlier: list[RecordDict] = []

    def client(message: Message) -> list[Message]:
        [reply] = honest(message)
        earlier.append(reply.content)
        return plan[len(earlier) - 1](message, Past(reply, earlier))

    return client


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@FUZZ
@given(
    placement=st.sampled_from(sorted(PLACEMENTS)),
    plans=st.lists(
        st.lists(mutations(), min_size=3, max_size=3), min_size=1, max_size=len(HOSTILE)
    ),
)
def test_whatever_some_clients_send_the_honest_ones_take_part_and_the_model_is_finite(
    placement: str, plans: list[list[Mutation]]
) -> None:
    strategy, arrays = a_strategy(placement), array_record(MODEL)
    attackers = {node: attacker(plan) for node, plan in zip(HOSTILE, plans, strict=False)}
    grid = ClientsGrid({**dict.fromkeys(NODES[:4], honest), **attackers})
    for server_round in (1, 2, 3):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert_finite(arrays)
        assert_finite_metrics(metrics)
        MetricRecord.inflate(metrics.deflate())
        taken = metrics["fedpw-client-id"]
        assert isinstance(taken, list)
        assert {client_of(node) for node in NODES[:4]} <= set(taken)
        weights = listed(metrics, "fedpw-weight")
        assert math.fsum(weights) == pytest.approx(1.0)
        assert min(weights) >= 0
        assert max(weights) <= 5 / len(weights) + 1e-12


@FUZZ
@given(rounds=st.lists(st.lists(METRICS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_whatever_some_clients_report_of_an_evaluation_it_ends_with_finite_metrics(
    rounds: list[list[dict[str, Any]]],
) -> None:
    def reporting(metrics: dict[str, Any]) -> Client:
        return lambda message: [
            Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
        ]

    usual = reporting({"accuracy": 0.5, "num-examples": 10})
    strategy = FedPW(device="cpu")
    for server_round, hostile in enumerate(rounds, start=1):
        attackers = {
            node: reporting(metrics) for node, metrics in zip(HOSTILE, hostile, strict=False)
        }
        metrics = evaluate_round(strategy, everyone(usual, attackers), server_round)
        assert_finite_metrics(metrics)
        assert "accuracy" in metrics


# Clients that do not come.


class ComingAndGoing(ClientsGrid):
    """A grid whose nodes are those of the first look, then of the second, ...; the last stay."""

    def __init__(self, *looks: Iterable[int]) -> None:
        super().__init__({node: _trains_and_evaluates for look in looks for node in look})
        self.looks = [list(look) for look in looks]

    def get_node_ids(self) -> list[int]:
        self.times_asked_for_nodes += 1
        return self.looks[min(self.times_asked_for_nodes, len(self.looks)) - 1]


def _trains_and_evaluates(message: Message) -> Iterable[Message]:
    training = message.metadata.message_type == "train"
    return honest(message) if training else [evaluate_reply(message)]


def waiting(seconds: float, **options: Any) -> FedPW:
    return FedPW(device="cpu", min_available_nodes=4, wait_for_clients=seconds, **options)


def start(strategy: FedPW, grid: ClientsGrid, num_rounds: int) -> list[object]:
    """Who took part, round by round."""
    result = strategy.start(grid, array_record(MODEL), num_rounds=num_rounds)
    assert_finite(result.arrays)
    return [metrics["fedpw-client-id"] for metrics in result.train_metrics_clientapp.values()]


def test_run_stops_with_a_reason_where_clients_stay_away() -> None:
    with pytest.raises(TooFewClientsError, match=r"3 of 4 clients are there after 0\.05 s"):
        start(waiting(0.05), ComingAndGoing([11, 12, 13]), num_rounds=2)


def test_run_goes_on_with_those_that_are_there_and_says_so(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = waiting(0.05, when_missing="continue")
    assert start(strategy, ComingAndGoing([11, 12, 13]), num_rounds=3) == [[1, 2, 3]] * 3
    assert "3 of 4 clients are there after 0.05 s" in flower_log.text


def test_run_that_waited_once_looks_only_once_in_the_next_rounds() -> None:
    strategy, grid = waiting(0.05, when_missing="continue"), ComingAndGoing([11, 12, 13])
    arrays, _ = train_round(strategy, grid, array_record(MODEL), 1)
    waited = grid.times_asked_for_nodes
    assert waited > 1
    for server_round in (2, 3):
        arrays, _ = train_round(strategy, grid, arrays, server_round)
    assert grid.times_asked_for_nodes == waited + 2


def test_clients_that_come_in_time_are_waited_for() -> None:
    grid = ComingAndGoing([11], [11, 12, 13, 14])
    assert start(waiting(0.05), grid, num_rounds=1) == [[1, 2, 3, 4]]


def test_clients_that_come_back_take_part_again_and_are_waited_for_again() -> None:
    strategy = waiting(0.05, when_missing="continue", fraction_evaluate=0.0)
    few, all_four = [11, 12], [11, 12, 13, 14]
    # Round 1 looks until the limit has passed: twice. Then one look a round, while nothing changes.
    grid = ComingAndGoing(few, few, few, all_four, few, few, few)
    assert start(strategy, grid, num_rounds=5) == [[1, 2], [1, 2], [1, 2, 3, 4], [1, 2], [1, 2]]
    assert grid.times_asked_for_nodes == 7


def test_where_nobody_is_left_there_is_nothing_to_go_on_with() -> None:
    with pytest.raises(TooFewClientsError, match="nobody is left"):
        start(waiting(0.05, when_missing="continue"), ComingAndGoing([]), num_rounds=1)


def test_evaluation_waits_as_training_does() -> None:
    strategy = waiting(0.05)
    with pytest.raises(TooFewClientsError, match="1 of 4"):
        evaluate_round(strategy, ComingAndGoing([11]))
    strategy = waiting(0.05, when_missing="continue")
    assert evaluate_round(strategy, ComingAndGoing([11]))["accuracy"] == pytest.approx(0.54)


def test_minima_are_as_they_were_given_after_a_round_with_fewer() -> None:
    strategy = waiting(0.0, when_missing="continue", min_train_nodes=3, min_evaluate_nodes=3)
    start(strategy, ComingAndGoing([11]), num_rounds=2)
    minima = (strategy.min_available_nodes, strategy.min_train_nodes, strategy.min_evaluate_nodes)
    assert minima == (4, 3, 3)


@pytest.mark.parametrize("limit", [-1.0, math.inf, math.nan])
def test_limit_that_is_no_number_of_seconds_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="wait_for_clients"):
        FedPW(wait_for_clients=limit)


def test_wrong_words_for_what_to_do_are_refused() -> None:
    with pytest.raises(ValueError, match="'stop' or 'continue'"):
        FedPW(when_missing="go on")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wait_for_clients must be seconds"):
        FedPW(wait_for_clients="60")  # type: ignore[arg-type]
