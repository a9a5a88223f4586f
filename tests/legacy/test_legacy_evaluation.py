"""Evaluation is averaged as Flower does it, over the results that can be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from flwr.common import Code, EvaluateIns, EvaluateRes, Parameters, Status
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from legacy_federation import (
    INITIAL,
    Evaluate,
    Metrics,
    PlainClient,
    evaluate_round,
    good_evaluation,
    good_fit,
    manager_of,
    raising,
    run_server,
)

from fedpw_flwr.legacy import FedPW

NODES = [11, 12, 13, 14]
BAD = 13


def clients(others: dict[int, Evaluate] | None = None) -> list[ClientProxy]:
    others = others or {}
    return [PlainClient(node, good_fit, others.get(node)) for node in NODES]


def answering(
    change: Callable[[EvaluateRes], EvaluateRes],
) -> Callable[[int, EvaluateIns], EvaluateRes]:
    return lambda node, ins: change(good_evaluation(node, ins))


def with_metrics(metrics: Metrics) -> Evaluate:
    return answering(lambda good: replace(good, metrics=metrics))


def not_implemented(node: int, ins: EvaluateIns) -> EvaluateRes:
    status = Status(Code.EVALUATE_NOT_IMPLEMENTED, "Client does not implement `evaluate`")
    return EvaluateRes(status, 0.0, 0, {})


def mean_accuracy(results: list[tuple[int, Metrics]]) -> Metrics:
    return {"accuracy": sum(float(metrics["accuracy"]) for _, metrics in results) / len(results)}


def flowers(nodes: list[int]) -> tuple[float | None, Metrics]:
    """What Flower's FedAvg makes of the good results of these nodes."""
    return evaluate_round(
        FedAvg(evaluate_metrics_aggregation_fn=mean_accuracy),
        [PlainClient(node, good_fit) for node in nodes],
    )


def test_good_results_are_averaged_as_flower_does() -> None:
    strategy = FedPW(evaluate_metrics_aggregation_fn=mean_accuracy)
    loss, metrics = evaluate_round(strategy, clients())
    expected_loss, expected_metrics = flowers(NODES)
    assert loss == pytest.approx(expected_loss)
    assert metrics.pop("accuracy") == pytest.approx(expected_metrics["accuracy"])
    assert metrics == {"fedpw-quarantined": 0, "fedpw-failed": 0, "fedpw-empty": 0}


BROKEN: dict[str, tuple[Evaluate, str]] = {
    "NaN loss": (answering(lambda good: replace(good, loss=float("nan"))), "'loss' is not finite"),
    "infinite loss": (answering(lambda good: replace(good, loss=float("inf"))), "'loss'"),
    "NaN metric": (with_metrics({"accuracy": float("nan")}), "'accuracy' is not finite"),
    "negative count": (answering(lambda good: replace(good, num_examples=-1)), "num-examples.*-1"),
    "other metrics": (with_metrics({"precision": 0.5}), r"\['accuracy'"),
    "client-id is text": (with_metrics({"accuracy": 0.5, "client-id": "a"}), "client-id"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_result_costs_only_itself(kind: str, flower_log: pytest.LogCaptureFixture) -> None:
    evaluate, reason = BROKEN[kind]
    strategy = FedPW(evaluate_metrics_aggregation_fn=mean_accuracy)
    loss, metrics = evaluate_round(strategy, clients({BAD: evaluate}), 4)
    expected_loss, expected_metrics = flowers([11, 12, 14])
    assert loss == pytest.approx(expected_loss)
    assert metrics["accuracy"] == pytest.approx(expected_metrics["accuracy"])
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (1, 0)
    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    assert re.search(f"aggregate_evaluate: round 4, node {BAD} quarantined: .*{reason}", told[0])


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(raising, "RuntimeError: out of memory"), (not_implemented, "does not implement `evaluate`")],
)
def test_failed_client_costs_only_itself(
    failure: Evaluate, reason: str, flower_log: pytest.LogCaptureFixture
) -> None:
    loss, metrics = evaluate_round(FedPW(), clients({BAD: failure}))
    assert loss == pytest.approx(flowers([11, 12, 14])[0])
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (0, 1)
    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    assert f"node {BAD} failed: " in told[0]
    assert reason in told[0]


@pytest.mark.parametrize("evaluate", [BROKEN["NaN loss"][0], raising])
def test_when_no_result_can_be_used_the_run_goes_on(evaluate: Evaluate) -> None:
    strategy = FedPW(initial_parameters=INITIAL, evaluate_metrics_aggregation_fn=mean_accuracy)
    history, parameters = run_server(strategy, clients(dict.fromkeys(NODES, evaluate)), 2)
    assert history.losses_distributed == []
    assert parameters != INITIAL


def test_nobody_answers_and_there_is_no_loss() -> None:
    assert FedPW().aggregate_evaluate(1, [], []) == (
        None,
        {"fedpw-quarantined": 0, "fedpw-failed": 0, "fedpw-empty": 0},
    )


def test_zero_examples_everywhere_do_not_end_the_run() -> None:
    empty = answering(lambda good: replace(good, num_examples=0))
    strategy = FedPW(initial_parameters=INITIAL)
    history, _ = run_server(strategy, clients(dict.fromkeys(NODES, empty)), 2)
    assert history.losses_distributed == []
    assert len(history.metrics_distributed_fit["fedpw-weight"]) == 2


def test_client_without_examples_counts_for_nothing() -> None:
    empty = answering(lambda good: replace(good, num_examples=0, loss=100.0))
    loss, metrics = evaluate_round(FedPW(), clients({BAD: empty}))
    assert loss == pytest.approx(flowers([11, 12, 14])[0])
    assert metrics["fedpw-quarantined"] == 0


def test_unaccepted_failures_give_nothing() -> None:
    strategy = FedPW(accept_failures=False)
    assert evaluate_round(strategy, clients({BAD: raising})) == (None, {})


def test_result_of_a_client_that_was_not_asked_is_set_aside() -> None:
    strategy = FedPW(fraction_evaluate=0.1, min_evaluate_clients=1)
    ((asked, ins),) = strategy.configure_evaluate(1, INITIAL, manager_of(clients()))
    results = [(proxy, good_evaluation(proxy.node_id, ins)) for proxy in clients()]
    loss, metrics = strategy.aggregate_evaluate(1, results, [])
    assert loss == pytest.approx(good_evaluation(asked.node_id, ins).loss)
    assert metrics["fedpw-quarantined"] == len(NODES) - 1


def test_evaluation_can_be_switched_off() -> None:
    strategy = FedPW(fraction_evaluate=0.0, initial_parameters=INITIAL)
    history, _ = run_server(strategy, clients(), 1)
    assert history.losses_distributed == []
    assert history.metrics_distributed == {}


class ChoosesItself(FedPW):
    """A strategy that picks the clients to evaluate by itself."""

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        return [(proxy, EvaluateIns(parameters, {})) for proxy in client_manager.all().values()]


def test_a_subclass_may_choose_whom_to_evaluate_itself() -> None:
    loss, metrics = evaluate_round(ChoosesItself(), clients())
    assert loss == pytest.approx(flowers(NODES)[0])
    assert metrics["fedpw-quarantined"] == 0


def test_failures_are_counted_even_where_nobody_knows_whose_they_are() -> None:
    others: dict[int, Evaluate] = {12: raising, BAD: raising}
    _, metrics = evaluate_round(ChoosesItself(), clients(others))
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (0, 2)


def test_evaluation_leaves_the_methods_memory_alone() -> None:
    strategy = FedPW()
    before = strategy.state
    evaluate_round(strategy, clients())
    assert strategy.state == before
