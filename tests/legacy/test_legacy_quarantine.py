"""A broken result costs only itself: not the run, not a number of the others' round."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
from broken_results import BROKEN_RESULTS
from flwr.common import FitIns, FitRes, Parameters, ndarrays_to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_federation import (
    INITIAL,
    NAMES,
    Fit,
    Metrics,
    ask,
    fit_result,
    fit_round,
    good_fit,
    named,
    plain_clients,
    run_server,
)

from fedpw_flwr.legacy import FedPW, MissingLossError

NODES = [11, 12, 13, 14, 15]
BAD = 13
OWN_COUNTS = ("fedpw-quarantined", "fedpw-failed", "fedpw-empty")
KINDS = list(BROKEN_RESULTS)


def broken(kind: str) -> Fit:
    return lambda node, ins: BROKEN_RESULTS[kind].arrives(good_fit(node, ins))


@cache
def two_good_rounds() -> tuple[FedPW, Parameters]:
    strategy, parameters = FedPW(array_names=NAMES), INITIAL
    for server_round in (1, 2):
        parameters, _ = fit_round(strategy, plain_clients(NODES), parameters, server_round)
    return strategy, parameters


def after_two_good_rounds() -> tuple[FedPW, Parameters]:
    return copy.deepcopy(two_good_rounds())


def round_of(
    strategy: FedPW, parameters: Parameters, nodes: list[int], server_round: int
) -> tuple[Parameters | None, Metrics]:
    """A round in which only these nodes answer, all of them well."""
    results, _ = ask(strategy, plain_clients(NODES), parameters, server_round)
    answers = [(proxy, result) for proxy, result in results if proxy.node_id in nodes]
    return strategy.aggregate_fit(server_round, answers, [])


def others(metrics: Metrics) -> Metrics:
    return {key: value for key, value in metrics.items() if key not in OWN_COUNTS}


@pytest.mark.parametrize("kind", KINDS)
def test_broken_result_costs_only_itself(kind: str, flower_log: pytest.LogCaptureFixture) -> None:
    strategy, parameters = after_two_good_rounds()
    without = copy.deepcopy(strategy)
    rest = [node for node in NODES if node != BAD]
    expected, expected_metrics = round_of(without, parameters, rest, 3)
    flower_log.clear()
    clients = plain_clients(NODES, {BAD: broken(kind)})
    new_parameters, metrics = fit_round(strategy, clients, parameters, 3)

    assert new_parameters == expected
    assert strategy.state == without.state
    assert others(metrics) == others(expected_metrics)
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (1, 0)

    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert re.search(f"round 3.*node {BAD}.*quarantined: .*{BROKEN_RESULTS[kind].reason}", told[0])


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(NODES), st.sampled_from(KINDS), max_size=len(NODES) - 1))
def test_any_broken_results_together_cost_only_themselves(kinds: dict[int, str]) -> None:
    strategy, parameters = after_two_good_rounds()
    without = copy.deepcopy(strategy)
    rest = [node for node in NODES if node not in kinds]
    expected, expected_metrics = round_of(without, parameters, rest, 3)
    clients = plain_clients(NODES, {node: broken(kind) for node, kind in kinds.items()})
    new_parameters, metrics = fit_round(strategy, clients, parameters, 3)
    assert new_parameters == expected
    assert strategy.state == without.state
    assert others(metrics) == others(expected_metrics)
    assert metrics["fedpw-quarantined"] == len(kinds)


@settings(max_examples=10, deadline=None)
@given(st.permutations(NODES))
def test_order_of_results_never_matters(order: list[int]) -> None:
    strategy, parameters = after_two_good_rounds()
    shuffled = copy.deepcopy(strategy)
    expected, expected_metrics = round_of(strategy, parameters, NODES, 3)
    results, _ = ask(shuffled, plain_clients(NODES), parameters, 3)
    results.sort(key=lambda answer: order.index(answer[0].node_id))
    assert shuffled.aggregate_fit(3, results, []) == (expected, expected_metrics)
    assert shuffled.state == strategy.state


def test_when_every_result_is_broken_the_model_stays_bit_for_bit() -> None:
    strategy, parameters = after_two_good_rounds()
    before = copy.deepcopy(strategy.state)
    clients = plain_clients(NODES, dict.fromkeys(NODES, broken("NaN entry")))
    new_parameters, metrics = fit_round(strategy, clients, parameters, 3)
    assert new_parameters == parameters
    assert strategy.state == before
    assert metrics == {"fedpw-quarantined": len(NODES), "fedpw-failed": 0, "fedpw-empty": 0}


def test_broken_results_do_not_end_a_run() -> None:
    clients = plain_clients(NODES, {11: broken("NaN entry"), 12: broken("no arrays")})
    strategy = FedPW(array_names=NAMES, initial_parameters=INITIAL)
    history, parameters = run_server(strategy, clients, 3)
    assert history.metrics_distributed_fit["fedpw-quarantined"] == [(1, 2), (2, 2), (3, 2)]
    assert parameters != INITIAL


def test_results_are_held_against_names_that_look_like_places() -> None:
    """A surplus array must not hide behind the name of another."""
    initial = ndarrays_to_parameters([named(INITIAL)["body.bias"]] * 2)

    def surplus(node: int, ins: FitIns) -> FitRes:
        return fit_result(dict.fromkeys("abc", named(INITIAL)["body.bias"]))

    def good(node: int, ins: FitIns) -> FitRes:
        return fit_result(dict.fromkeys("ab", named(INITIAL)["body.bias"]))

    strategy = FedPW(array_names=["0", "2"])
    clients = plain_clients(NODES, {**dict.fromkeys(NODES, good), BAD: surplus})
    _, metrics = fit_round(strategy, clients, initial)
    assert metrics["fedpw-quarantined"] == 1


def without_loss(node: int, ins: FitIns) -> FitRes:
    return fit_result(named(ins.parameters), loss=None)


def test_loss_missing_everywhere_ends_the_run_and_names_the_key() -> None:
    strategy = FedPW(initial_parameters=INITIAL, train_loss_key="my-loss")
    with pytest.raises(MissingLossError, match="'my-loss'"):
        run_server(strategy, plain_clients(NODES), 2)


def test_missing_loss_shows_the_line_of_a_numpy_client_that_reports_it() -> None:
    with pytest.raises(MissingLossError) as raised:
        fit_round(FedPW(), plain_clients(NODES, dict.fromkeys(NODES, without_loss)))
    assert "FedPW(train_loss_key=" in str(raised.value)
    assert 'return parameters, num_examples, {"train_loss": ' in str(raised.value)


def test_one_result_with_the_loss_is_enough_to_go_on() -> None:
    clients = plain_clients(NODES, dict.fromkeys(NODES[1:], without_loss))
    _, metrics = fit_round(FedPW(), clients)
    assert metrics["fedpw-client-id"] == f"[{NODES[0]}]"
    assert metrics["fedpw-quarantined"] == len(NODES) - 1


def test_without_both_parts_of_the_method_no_loss_is_needed() -> None:
    strategy = FedPW(adapt_weights=False, adjust_parameters=False)
    clients = plain_clients(NODES, dict.fromkeys(NODES, without_loss))
    _, metrics = fit_round(strategy, clients)
    assert metrics["fedpw-quarantined"] == 0


def test_it_can_be_caught_by_its_public_name() -> None:
    assert issubclass(MissingLossError, ValueError)
