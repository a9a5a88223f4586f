"""Clients that fail are counted and named, and cost only themselves."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from flwr.app import Context
from flwr.client import Client as LegacyClient
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Parameters, Status
from support.federation import (
    LEGACY,
    MODEL,
    Federation,
    answering,
    both_apis,
    every_method,
    everyone,
    known_reply,
    memory,
    warnings,
)
from support.grid import Client
from support.legacy_federation import (
    INITIAL,
    NoiseClient,
    app_clients,
    fit_round,
    plain_clients,
    run_server,
    with_server_round,
)
from support.records import array_record, payloads

from fedpw_flwr import legacy

NODES = [11, 12, 13, 14]


def full(node: int) -> Client:
    def client(message: Any) -> Any:
        raise OSError(f"disk {node} is full")

    return client


@every_method
def test_failures_cost_only_themselves(api: Federation) -> None:
    strategy, without = api.strategy(), api.strategy()
    rounds = api.train_rounds(strategy, everyone(NODES, {12: full(12), 13: full(13)}), 3)
    expected = api.train_rounds(without, everyone([11, 14]), 3)
    assert payloads(rounds[-1].arrays) == payloads(expected[-1].arrays)
    assert memory(strategy) == memory(without)
    assert [api.counts(metrics) for _, metrics in rounds] == [(0, 2, 0)] * 3


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


def test_a_run_of_flowers_server_names_the_clients_that_fail_in_it(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    """Through Flower's own proxies, in training and in evaluation."""

    class FailsNowAndThen(NoiseClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            if self.number in (12, 14) and config["server-round"] == 2:
                raise OSError(f"disk {self.number} is full")
            return super().fit(parameters, config)

        def evaluate(self, parameters: Any, config: Any) -> Any:
            if self.number in (11, 13):
                raise KeyError(f"label {self.number}")
            return super().evaluate(parameters, config)

    def client_fn(context: Context) -> LegacyClient:
        return FailsNowAndThen(int(context.node_config["partition-id"])).to_client()

    strategy = legacy.FedPW(initial_parameters=INITIAL, on_fit_config_fn=with_server_round)
    run_server(strategy, app_clients(ClientApp(client_fn=client_fn), NODES), 2)
    told = "\n".join(warnings(flower_log))
    for node in (12, 14):
        assert re.search(f"aggregate_fit: round 2, node {node} failed: .*disk {node} is full", told)
        assert f"round 1, node {node}" not in told
    for now in (1, 2):
        for node in (11, 13):
            pattern = f"aggregate_evaluate: round {now}, node {node} failed: .*label {node}"
            assert re.search(pattern, told)
    assert "one of the nodes" not in told


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
