"""Numbers that only a client can know count within bounds, whatever it says.

Losses, numbers of examples, and whatever else a reply says beside its arrays.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.federation import (
    APIS,
    MESSAGE,
    PLACEMENTS,
    Federation,
    answering,
    assert_sound,
    assert_sound_metrics,
    both_apis,
    everyone,
    honest,
    memory,
    placements,
    warnings,
)
from support.records import payloads

from fedpw_flwr.wire.adjustment import REPORT_KEY

NODES = list(range(11, 17))
BAD = 13

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
    "a hundred names": {f"metric {number}": number for number in range(100)},
    **{f"{count} examples": {"num_examples": count} for count in (1, 1e308, UINT64)},
}


def own(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key.startswith("fedpw-")}


@both_apis
@placements
@pytest.mark.parametrize("kind", HOSTILE_METRICS)
def test_what_a_client_says_beside_its_loss_moves_no_model(
    api: Federation, placement: str, kind: str
) -> None:
    usual: dict[str, Any] = {"accuracy": 0.5, "per-class": [0.4, 0.6]}
    others = dict.fromkeys(NODES, answering(**usual))
    liars = dict.fromkeys((NODES[0], BAD), answering(**{**usual, **HOSTILE_METRICS[kind]}))
    strategy, other = (api.strategy(**PLACEMENTS[placement]) for _ in range(2))
    rounds = api.train_rounds(strategy, {**others, **liars}, 2)
    expected = api.train_rounds(other, others, 2)
    assert payloads(rounds[-1].arrays) == payloads(expected[-1].arrays)
    assert memory(strategy) == memory(other)
    assert_sound_metrics(rounds[-1].metrics)
    assert own(rounds[-1].metrics) == own(expected[-1].metrics)


@pytest.mark.parametrize("count", [0, 1e308, UINT64])
@pytest.mark.parametrize("liars", [1, 2])
def test_weights_by_number_of_examples_sum_to_one_whatever_clients_count(
    count: float, liars: int
) -> None:
    """Without adaptive weights they are FedAvg's, and a count is believed as FedAvg believes it."""
    counting = answering(num_examples=count)
    clients = everyone(NODES, dict.fromkeys(NODES[:liars], counting))
    arrays, metrics = MESSAGE.train_round(MESSAGE.strategy(adapt_weights=False), clients)
    assert_sound(arrays)
    assert math.fsum(metrics["fedpw-weight"]) == pytest.approx(1.0)


# Losses that are lies; what holds under one API holds under both, which have the same bits.

MANY = list(range(11, 23))
LIAR = 22
EQUAL_SHARE = 1 / len(MANY)
HUGE, TINY = [1e6, 1e300], [1e-300, 0.0]
UNBOUNDED: dict[str, Any] = {"max_weight": None, "max_loss_ratio": None}


@cache
def with_a_liar(placement: str, loss: float | None, bounded: bool = True) -> list[dict[str, Any]]:
    """Four rounds of eleven honest clients and one that reports a loss of its choice."""
    clients = everyone(MANY, {} if loss is None else {LIAR: answering(loss=loss)})
    strategy = MESSAGE.strategy(**PLACEMENTS[placement], **({} if bounded else UNBOUNDED))
    rounds = MESSAGE.train_rounds(strategy, clients, 4)
    for arrays, metrics in rounds:
        assert_sound(arrays)
        assert_sound_metrics(metrics)
    return [metrics for _, metrics in rounds]


def drop_rates_of_the_others(placement: str, *arguments: Any) -> np.ndarray:
    """By round from the third on: clients learn of a loss a round later."""
    rounds = with_a_liar(placement, *arguments)
    return np.array([metrics["fedpw-drop-rate"][:-1] for metrics in rounds[2:]])


@placements
@pytest.mark.parametrize("loss", HUGE)
def test_huge_loss_grabs_a_bounded_weight(placement: str, loss: float) -> None:
    for metrics in with_a_liar(placement, loss):
        assert max(metrics["fedpw-weight"]) <= 5 * EQUAL_SHARE + 1e-12
        assert metrics["fedpw-bounded"] == 1
    for metrics in with_a_liar(placement, loss, False):
        assert metrics["fedpw-weight"][-1] > 9 * EQUAL_SHARE


@placements
@pytest.mark.parametrize("loss", TINY)
def test_tiny_loss_does_not_take_the_others_masks_away(placement: str, loss: float) -> None:
    usual = drop_rates_of_the_others(placement, None)
    # Its quotient counts 20 times as much as the median's, in a mean over all.
    least = len(MANY) / (2 * len(MANY) + 20)
    assert (drop_rates_of_the_others(placement, loss) > least * usual).all()
    assert (drop_rates_of_the_others(placement, loss, False) < 0.05 * usual).all()


@placements
@pytest.mark.parametrize("loss", HUGE)
def test_huge_loss_does_not_make_the_others_masks_alike(placement: str, loss: float) -> None:
    bounded = drop_rates_of_the_others(placement, loss)
    assert (bounded.max(axis=1) > 1.5 * bounded.min(axis=1)).all()
    assert np.ptp(drop_rates_of_the_others(placement, loss, False), axis=1).max() < 1e-9


@pytest.mark.parametrize("loss", HUGE)
def test_huge_first_loss_does_not_stop_the_loss_term_for_good(loss: float) -> None:
    first_sizes = []
    for options in ({}, UNBOUNDED):
        strategy = MESSAGE.strategy(**options)
        MESSAGE.train_round(strategy, everyone(MANY, {LIAR: answering(loss=loss)}))
        first_sizes.append(strategy.state.loss.first_size)
    assert first_sizes[0] < 5.0
    assert first_sizes[1] > 1e4


@both_apis
@pytest.mark.parametrize("loss", [*HUGE, *TINY])
def test_liar_is_named_with_the_round_and_what_its_loss_counts_as(
    api: Federation, loss: float, flower_log: pytest.LogCaptureFixture
) -> None:
    api.train_rounds(api.strategy(), everyone(MANY, {LIAR: answering(loss=loss)}), 2)
    told = [line for line in warnings(flower_log) if "max_loss_ratio" in line]
    assert len(told) == 2
    for server_round, line in enumerate(told, start=1):
        who = rf"round {server_round}, client {LIAR - 10} reports the loss .* counts as"
        assert re.search(who, line)


@placements
def test_honest_clients_get_the_same_bytes_with_bounds_and_without(placement: str) -> None:
    runs = []
    for options in ({}, UNBOUNDED):
        strategy = MESSAGE.strategy(**PLACEMENTS[placement], **options)
        rounds = MESSAGE.train_rounds(strategy, everyone(MANY), 4)
        assert {metrics["fedpw-bounded"] for _, metrics in rounds} == {0}
        told = [(payloads(arrays), metrics) for arrays, metrics in rounds]
        runs.append((told, memory(strategy)))
    assert runs[0] == runs[1]


# Everything together, drawn at random.

UNIT = st.floats(0, 1, exclude_max=True)
NUMBERS = st.one_of(st.integers(INT64, UINT64), st.floats())
METRIC_VALUES = st.one_of(
    NUMBERS,
    st.lists(st.integers(INT64, 2**63 - 1), max_size=3),
    st.lists(st.floats(), max_size=3),
)
OTHERS = st.one_of(NUMBERS, st.booleans(), st.text(max_size=5), st.binary(max_size=5))
METRIC_NAMES = st.sampled_from(
    ["train_loss", "num-examples", "accuracy", "fedpw-weight", "fedpw-p", "x", ""]
)
METRICS = st.dictionaries(METRIC_NAMES, METRIC_VALUES, max_size=4)
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
HOSTILE = [31, 32, 33]
"""Behind the honest nodes, so that the first to claim an identity is its owner."""


def mutated(draw: Any, message: Message, good: RecordDict, earlier: list[RecordDict]) -> list[Any]:
    """What comes instead of a good reply; `draw` chooses which of its records are changed."""
    arrays = dict(good.array_records["arrays"])
    name = draw(st.sampled_from(sorted(arrays)))
    array, data = arrays[name], bytearray(arrays[name].data)
    data[int(draw(UNIT) * len(data))] ^= draw(st.integers(1, 255))
    arrays[name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    metrics = {} if draw(st.booleans()) else dict(good.metric_records["metrics"])
    identity = draw(st.one_of(OTHERS, st.just([1, 2]), st.integers(0, 8)))
    records: dict[str, Any] = {
        "arrays": ArrayRecord(arrays),
        "metrics": MetricRecord({**metrics, **draw(METRICS)}),
        "other-metrics": ConfigRecord(draw(st.dictionaries(METRIC_NAMES, OTHERS, max_size=3))),
        "identity": ConfigRecord({"client-id": identity}),
        REPORT_KEY: ConfigRecord({REPORT_KEY: draw(OTHERS)}),
    }
    changed = draw(st.sets(st.sampled_from(sorted(records)), min_size=1, max_size=2))
    odd = RecordDict({**good, **{name: records[name] for name in changed}})
    late = earlier[int(draw(UNIT) * len(earlier))]
    contents = draw(st.sampled_from([[odd], [odd], [odd, good], [late], [good, good, good], []]))
    return [Message(content, reply_to=message) for content in contents]


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@FUZZ
@given(
    data=st.data(),
    api=st.sampled_from(APIS),
    placement=st.sampled_from(sorted(PLACEMENTS)),
    attackers=st.integers(1, len(HOSTILE)),
)
def test_whatever_some_clients_send_the_honest_ones_take_part_and_the_model_is_finite(
    data: st.DataObject, api: Federation, placement: str, attackers: int
) -> None:
    earlier: list[RecordDict] = []

    def attacker(message: Message) -> list[Message]:
        [reply] = honest(message)
        earlier.append(reply.content)
        return mutated(data.draw, message, reply.content, earlier)

    clients = everyone(NODES[:4], dict.fromkeys(HOSTILE[:attackers], attacker))
    strategy = api.strategy(**PLACEMENTS[placement])
    for arrays, metrics in api.train_rounds(strategy, clients, 3):
        assert_sound(arrays)
        assert_sound_metrics(metrics)
        assert {node - 10 for node in NODES[:4]} <= set(metrics["fedpw-client-id"])
        weights = metrics["fedpw-weight"]
        assert max(weights) <= 5 / len(weights) + 1e-12


@both_apis
@FUZZ
@example(rounds=[[{"loss": 1e308, "num-examples": 2, "accuracy": 0.5}]])
@given(rounds=st.lists(st.lists(METRICS, min_size=1, max_size=3), min_size=1, max_size=3))
def test_whatever_some_clients_report_of_an_evaluation_it_ends_with_finite_metrics(
    api: Federation, rounds: list[list[dict[str, Any]]]
) -> None:
    def reporting(metrics: dict[str, Any]) -> Any:
        content = RecordDict({"metrics": MetricRecord(metrics)})
        return lambda message: [Message(content, reply_to=message)]

    usual = reporting({"accuracy": 0.5, "loss": 0.25, "num-examples": 10})
    strategy = api.strategy()
    for server_round, hostile in enumerate(rounds, start=1):
        attackers = dict(zip(HOSTILE, map(reporting, hostile), strict=False))
        clients = {**dict.fromkeys(NODES, usual), **attackers}
        metrics = api.evaluate_round(strategy, clients, server_round)
        assert_sound_metrics(metrics)
        assert {"accuracy", "loss"} <= set(metrics)
