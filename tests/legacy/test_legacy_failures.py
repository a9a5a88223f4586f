"""Clients that fail are counted and named where Flower says who they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Parameters, Status
from legacy_federation import (
    INITIAL,
    NAMES,
    NoiseClient,
    app_clients,
    ask,
    fit_result,
    fit_round,
    good_fit,
    named,
    plain_clients,
    raising,
    run_server,
    with_server_round,
)

from fedpw_flwr.legacy import FedPW

NODES = [11, 12, 13, 14]


def not_implemented(node: int, ins: FitIns) -> FitRes:
    status = Status(Code.FIT_NOT_IMPLEMENTED, "Client does not implement `fit`")
    return FitRes(status, Parameters([], ""), 0, {})


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    """Return what is warned of in a round; not that the arrays have no names."""
    told = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    return [line for line in told if line.startswith("aggregate_")]


def test_exception_of_the_only_missing_client_is_its_own(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    _, metrics = fit_round(FedPW(), plain_clients(NODES, {13: raising}))
    assert metrics["fedpw-client-id"] == "[11, 12, 14]"
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (0, 1)
    assert warnings(flower_log) == [
        "aggregate_fit: round 1, node 13 failed: RuntimeError: out of memory"
    ]


def test_exceptions_of_several_clients_are_each_its_own(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    def full(node: int, ins: FitIns) -> FitRes:
        raise OSError(f"disk {node} is full")

    clients = plain_clients(NODES, {11: full, 12: raising, 14: full})
    _, metrics = fit_round(FedPW(), clients)
    assert metrics["fedpw-failed"] == 3
    assert sorted(warnings(flower_log)) == [
        "aggregate_fit: round 1, node 11 failed: OSError: disk 11 is full",
        "aggregate_fit: round 1, node 12 failed: RuntimeError: out of memory",
        "aggregate_fit: round 1, node 14 failed: OSError: disk 14 is full",
    ]


def test_exceptions_without_a_trace_name_those_they_may_belong_to(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = FedPW()
    results, failures = ask(strategy, plain_clients(NODES, {12: raising, 13: raising}), INITIAL, 1)
    bare = [RuntimeError(str(failure)) for failure in failures]
    _, metrics = strategy.aggregate_fit(1, results, list(bare))
    assert metrics["fedpw-failed"] == 2
    told = warnings(flower_log)
    assert len(told) == 2
    assert all("one of the nodes [12, 13]: RuntimeError: out of memory" in line for line in told)


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

    def client_fn(context: Context) -> Client:
        return FailsNowAndThen(int(context.node_config["partition-id"])).to_client()

    strategy = FedPW(initial_parameters=INITIAL, on_fit_config_fn=with_server_round)
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


def test_result_with_a_status_that_is_not_ok_is_a_failure_of_its_client(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    clients = plain_clients(NODES, {12: not_implemented, 13: raising})
    _, metrics = fit_round(FedPW(), clients)
    assert metrics["fedpw-client-id"] == "[11, 14]"
    assert metrics["fedpw-failed"] == 2
    assert sorted(warnings(flower_log)) == [
        "aggregate_fit: round 1, node 12 failed: Client does not implement `fit`",
        "aggregate_fit: round 1, node 13 failed: RuntimeError: out of memory",
    ]


def test_failed_client_is_named_by_the_identity_it_gave_before(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    def identified(node: int, ins: FitIns) -> FitRes:
        result = good_fit(node, ins)
        result.metrics["client-id"] = node - 10
        return result

    strategy = FedPW()
    clients = plain_clients(NODES, dict.fromkeys(NODES, identified))
    parameters, _ = fit_round(strategy, clients)
    clients = plain_clients(NODES, {**dict.fromkeys(NODES, identified), 13: raising})
    flower_log.clear()
    fit_round(strategy, clients, parameters, 2)
    assert "round 2, client 3 (node 13) failed: RuntimeError" in warnings(flower_log)[0]


def test_failures_cost_only_themselves() -> None:
    strategy = FedPW(array_names=NAMES)
    parameters, _ = fit_round(strategy, plain_clients(NODES))
    without = copy.deepcopy(strategy)
    results, _ = ask(without, plain_clients(NODES), parameters, 2)
    rest = [(proxy, result) for proxy, result in results if proxy.node_id in (11, 14)]
    expected, _ = without.aggregate_fit(2, rest, [])
    clients = plain_clients(NODES, {12: not_implemented, 13: raising})
    assert fit_round(strategy, clients, parameters, 2)[0] == expected
    assert strategy.state == without.state


@pytest.mark.parametrize("failure", [raising, not_implemented])
def test_when_everyone_fails_the_current_parameters_come_back(
    failure: Callable[[int, FitIns], FitRes],
) -> None:
    strategy = FedPW()
    parameters, _ = fit_round(strategy, plain_clients(NODES))
    before = copy.deepcopy(strategy.state)
    clients = plain_clients(NODES, dict.fromkeys(NODES, failure))
    new_parameters, metrics = fit_round(strategy, clients, parameters, 2)
    assert new_parameters == parameters
    assert strategy.state == before
    assert metrics == {"fedpw-quarantined": 0, "fedpw-failed": len(NODES), "fedpw-empty": 0}


def test_when_nobody_answers_the_current_parameters_come_back() -> None:
    strategy = FedPW()
    ask(strategy, plain_clients(NODES), INITIAL, 1)
    assert strategy.aggregate_fit(1, [], []) == (
        INITIAL,
        {"fedpw-quarantined": 0, "fedpw-failed": 0, "fedpw-empty": 0},
    )


def test_unaccepted_failures_give_no_model_and_leave_the_state_alone() -> None:
    strategy = FedPW(accept_failures=False)
    parameters, _ = fit_round(strategy, plain_clients(NODES))
    before = copy.deepcopy(strategy.state)
    results, failures = ask(strategy, plain_clients(NODES, {13: raising}), parameters, 2)
    assert strategy.aggregate_fit(2, results, failures) == (None, {})
    assert strategy.state == before


def test_quarantined_results_are_no_failures_that_must_be_accepted() -> None:
    def lossless(node: int, ins: FitIns) -> FitRes:
        return fit_result(named(ins.parameters), loss=None)

    _, metrics = fit_round(FedPW(accept_failures=False), plain_clients(NODES, {13: lossless}))
    assert metrics["fedpw-client-id"] == "[11, 12, 14]"


def test_run_with_unaccepted_failures_goes_on_with_the_model_it_has() -> None:
    strategy = FedPW(accept_failures=False, initial_parameters=INITIAL)
    history, parameters = run_server(strategy, plain_clients(NODES, {13: raising}), 2)
    assert parameters == INITIAL
    assert history.metrics_distributed_fit == {}


def test_aggregating_before_configuring_says_so() -> None:
    with pytest.raises(RuntimeError, match="aggregate_fit was called before configure_fit"):
        FedPW().aggregate_fit(1, [], [])
