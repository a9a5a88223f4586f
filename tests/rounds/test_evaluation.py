"""A broken evaluation reply costs only itself, and the others' are averaged as Flower does."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import EvaluateIns
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adjusting_clients import silent
from support.federation import (
    LEGACY,
    MESSAGE,
    MODEL,
    Federation,
    LegacyFederation,
    both_apis,
    every_method,
    honest,
    memory,
    parameters_of,
    proxies_of,
    warnings,
    weighted_mean,
)
from support.grid import Client
from support.legacy_federation import manager_of
from support.records import array_record, payloads
from support.small_model import evaluate_reply, stray

from fedpw_flwr import legacy

NODES = [21, 22, 23, 24, 25]
BAD, STRANGER = 23, 999
GOOD = {"accuracy": 0.5, "loss": 0.25, "num-examples": 10}
FLOWERS = {
    MESSAGE.name: Federation("Flower's", FedAvg),
    LEGACY.name: LegacyFederation(
        "Flower's", lambda array_names, **options: LegacyFedAvg(**options)
    ),
}
"""Flower's own FedAvg under each API."""


def reported(message: Message, **changes: Any) -> Message:
    node = message.metadata.dst_node_id
    values = {**GOOD, "accuracy": node / 100, "num-examples": node, **changes}
    return evaluate_reply(message, **{key: one for key, one in values.items() if one is not None})


def saying(**changes: Any) -> Client:
    return lambda message: [reported(message, **changes)]


good = saying()
NOTHING: dict[str, Any] = {}


def with_lists(changes: Mapping[str, Any] = NOTHING, client: Client = good) -> Client:
    """Message-API clients may report lists, too."""

    def answer(message: Message) -> Any:
        replies = list(client(message))
        for reply in replies:
            reply.content.metric_records["metrics"].update({"per-class": [0.4, 0.6], **changes})
        return replies

    return answer


def _no_metric_record(message: Message) -> list[Message]:
    return [Message(RecordDict(), reply_to=message)]


def _two_metric_records(message: Message) -> list[Message]:
    record = MetricRecord(dict(GOOD))
    return [Message(RecordDict({"a": record, "b": record.copy()}), reply_to=message)]


def _raises(message: Message) -> list[Message]:
    raise RuntimeError("no test set")


def _lost(message: Message) -> list[Message]:
    return [Message(Error(5, "error 5"), reply_to=message)]


def _stranger(message: Message) -> list[Message]:
    return [stray(reported(message), STRANGER)]


def _bad_identity(message: Message) -> list[Message]:
    reply = reported(message)
    reply.content["identity"] = ConfigRecord({"client-id": "x"})
    return [reply]


BROKEN: dict[str, tuple[Client, str]] = {
    "NaN loss": (saying(loss=float("nan")), "loss.*not finite"),
    "infinite loss": (saying(loss=float("inf")), "loss.*not finite"),
    "NaN metric": (saying(accuracy=float("nan")), "accuracy.*nan"),
    "infinite metric": (saying(accuracy=float("inf")), "accuracy.*inf"),
    "missing key": (saying(accuracy=None), "accuracy"),
    "extra key": (saying(f1=0.5), "f1"),
    "other key": (saying(accuracy=None, acc=0.5), "acc"),
    "negative num-examples": (saying(**{"num-examples": -1}), "num-examples.*-1"),
    "NaN num-examples": (saying(**{"num-examples": float("nan")}), "num-examples.*nan"),
    "client raised": (_raises, "no test set"),
    "node lost": (_lost, "error 5"),
    "bad client-id": (_bad_identity, "client-id"),
}
FAILURES = {"client raised", "node lost"}
OF_MESSAGES: dict[str, tuple[Client, str]] = {
    "NaN in a list": (with_lists({"per-class": [0.5, float("nan")]}), "per-class"),
    "longer list": (with_lists({"per-class": [0.1, 0.2, 0.3]}), "per-class"),
    "empty list": (with_lists({"per-class": []}), "per-class"),
    "list for a number": (with_lists({"accuracy": [0.5]}), "accuracy"),
    "metric no float can hold": (with_lists({"accuracy": 10**400}), "accuracy"),
    "no num-examples": (with_lists(client=saying(**{"num-examples": None})), "num-examples"),
    "list as num-examples": (with_lists({"num-examples": [1]}), "num-examples.*list"),
    "no MetricRecord": (_no_metric_record, "0 MetricRecords"),
    "two MetricRecords": (_two_metric_records, "2 MetricRecords"),
    "node that was not asked": (_stranger, f"node {STRANGER}.*not asked"),
}


@both_apis
def test_good_replies_are_averaged_as_flower_does(api: Federation) -> None:
    metrics = api.evaluate_round(api.strategy(), dict.fromkeys(NODES, good))
    flowers = FLOWERS[api.name]
    expected = flowers.evaluate_round(flowers.strategy(), dict.fromkeys(NODES, good))
    assert api.decided(metrics) == pytest.approx(expected)
    assert metrics["accuracy"] == pytest.approx(sum(n * n / 100 for n in NODES) / sum(NODES))
    assert api.counts(metrics) == (0, 0, 0)


def assert_costs_only_itself(
    api: Federation, broken: tuple[Client, str], usual: Client, log: pytest.LogCaptureFixture
) -> tuple[int, ...]:
    client, reason = broken
    clients = dict.fromkeys(NODES, usual)
    expected = api.evaluate_round(api.strategy(), {**clients, BAD: silent})
    log.clear()
    metrics = api.evaluate_round(api.strategy(), {**clients, BAD: client}, server_round=4)
    # A legacy server averages in the order in which results come.
    wanted = api.decided(expected)
    assert api.decided(metrics) == (wanted if api is MESSAGE else pytest.approx(wanted))
    [told, *silence] = [line for line in warnings(log) if "round 4" in line]
    assert re.search(reason, told, re.DOTALL)
    assert silence or f"node {BAD}" in told
    return api.counts(metrics)


@both_apis
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_reply_costs_only_itself(
    api: Federation, kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    failed = int(kind in FAILURES)
    counts = assert_costs_only_itself(api, BROKEN[kind], good, flower_log)
    assert counts == (1 - failed, failed, 0)


@pytest.mark.parametrize("kind", OF_MESSAGES)
def test_so_does_a_message_that_is_broken(kind: str, flower_log: pytest.LogCaptureFixture) -> None:
    counts = assert_costs_only_itself(MESSAGE, OF_MESSAGES[kind], with_lists(), flower_log)
    assert counts == (1, 0, 0)


@every_method
def test_one_odd_reply_costs_only_itself_whatever_the_method(api: Federation) -> None:
    clients = {**dict.fromkeys(NODES, good), BAD: saying(accuracy=None, other=1)}
    metrics = api.evaluate_round(api.strategy(), clients)
    rest = [node for node in NODES if node != BAD]
    assert metrics["accuracy"] == pytest.approx(sum(n * n / 100 for n in rest) / sum(rest))
    assert api.counts(metrics) == (1, 0, 0)


@both_apis
@pytest.mark.parametrize("client", [BROKEN["NaN loss"][0], _raises, silent])
def test_when_no_reply_can_be_used_the_run_goes_on(api: Federation, client: Client) -> None:
    def trains(message: Message) -> Any:
        return (honest if message.metadata.message_type == "train" else client)(message)

    run = api.run(api.strategy(), dict.fromkeys(NODES, trains), 2)
    assert payloads(run.arrays) != payloads(array_record(MODEL))
    assert all("accuracy" not in metrics for metrics in run.evaluate.values())


ALL_KINDS = {**BROKEN, **OF_MESSAGES}


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_kind_of_broken_reply_at_once_in_any_order(shuffle: random.Random) -> None:
    crowd = dict.fromkeys(NODES, with_lists())
    crowd.update((100 + index, client) for index, (client, _) in enumerate(ALL_KINDS.values()))
    shuffled = dict(shuffle.sample(list(crowd.items()), len(crowd)))
    metrics = MESSAGE.evaluate_round(MESSAGE.strategy(), shuffled)
    quiet = MESSAGE.evaluate_round(MESSAGE.strategy(), dict.fromkeys(NODES, with_lists()))
    assert MESSAGE.decided(metrics) == MESSAGE.decided(quiet)


def test_no_num_examples_anywhere_weights_clients_alike() -> None:
    client = with_lists(client=saying(**{"num-examples": None}))
    metrics = MESSAGE.evaluate_round(MESSAGE.strategy(), dict.fromkeys(NODES, client))
    assert metrics["accuracy"] == pytest.approx(sum(NODES) / 500)
    assert metrics["per-class"] == pytest.approx([0.4, 0.6])
    assert "num-examples" not in metrics


def test_two_replies_of_a_node_count_once_and_alike_in_any_order() -> None:
    def play(*accuracies: float) -> dict[str, Any]:
        clients = dict.fromkeys(NODES, good)
        clients[BAD] = lambda message: [reported(message, accuracy=one) for one in accuracies]
        return MESSAGE.evaluate_round(MESSAGE.strategy(), clients)

    once, same = play(BAD / 100), play(BAD / 100, BAD / 100)
    assert MESSAGE.decided(same) == MESSAGE.decided(once)
    assert same["fedpw-quarantined"] == 1
    assert play(0.1, 0.9) == play(0.9, 0.1)


@both_apis
def test_evaluation_can_be_switched_off(api: Federation) -> None:
    def client(message: Message) -> Any:
        assert message.metadata.message_type == "train"
        return honest(message)

    run = api.run(api.strategy(fraction_evaluate=0.0), dict.fromkeys(NODES, client), 1)
    assert run.evaluate == {}


@both_apis
def test_evaluation_leaves_the_methods_memory_alone(api: Federation) -> None:
    strategy = api.strategy()
    before = memory(strategy)
    api.evaluate_round(strategy, dict.fromkeys(NODES, good))
    assert memory(strategy) == before


# Results of the legacy API


def test_result_of_a_client_that_was_not_asked_is_set_aside() -> None:
    strategy = LEGACY.strategy(fraction_evaluate=0.1, min_evaluate_nodes=1)
    proxies = proxies_of(dict.fromkeys(NODES, good), list(MODEL))
    parameters = parameters_of(array_record(MODEL))
    ((asked, ins),) = strategy.configure_evaluate(1, parameters, manager_of(proxies))
    results = [(proxy, proxy.evaluate(ins, None, None)) for proxy in proxies]
    _, metrics = strategy.aggregate_evaluate(1, results, [])
    assert metrics["accuracy"] == pytest.approx(asked.node_id / 100)
    assert metrics["fedpw-quarantined"] == len(NODES) - 1


def test_failures_that_are_not_accepted_give_nothing() -> None:
    strategy = LEGACY.strategy(accept_failures=False)
    clients = {**dict.fromkeys(NODES, good), BAD: _raises}
    assert LEGACY.evaluate_round(strategy, clients) == {}


class ChoosesItself(legacy.FedPW):
    """A strategy that picks the clients to evaluate by itself."""

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return [(proxy, EvaluateIns(parameters, {})) for proxy in client_manager.all().values()]


def test_a_subclass_may_choose_whom_to_evaluate_itself() -> None:
    strategy = ChoosesItself(evaluate_metrics_aggregation_fn=weighted_mean)
    metrics = LEGACY.evaluate_round(strategy, dict.fromkeys(NODES, good))
    assert metrics["accuracy"] == pytest.approx(sum(n * n / 100 for n in NODES) / sum(NODES))
    # Failures are counted even where nobody knows whose they are.
    clients = {**dict.fromkeys(NODES, good), 22: _raises, BAD: _raises}
    assert LEGACY.counts(LEGACY.evaluate_round(strategy, clients)) == (0, 2, 0)
