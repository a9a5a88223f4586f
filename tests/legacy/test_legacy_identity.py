"""A client is known by the metric client-id, and its memory follows it over nodes and rounds."""

from __future__ import annotations

import copy
import json

import pytest
from federation import trained
from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters
from flwr.server.client_proxy import ClientProxy
from legacy_federation import (
    INITIAL,
    NAMES,
    OK,
    Fit,
    PlainClient,
    ask,
    fit_result,
    fit_round,
    named,
)

from fedpw_flwr.legacy import FedPW
from fedpw_flwr.wire.adjustment import REQUEST_KEY, AdjustmentRequest


def client(identity: int) -> Fit:
    """Train alike at every node: what comes back follows from the identity and the model."""

    def fit(node: int, ins: FitIns) -> FitRes:
        model = named(ins.parameters)
        seen = int(model["norm.num_batches_tracked"])
        return fit_result(
            trained(model, (identity, seen)),
            0.5 + 0.2 * identity + 1 / seen,
            **{"client-id": identity},
        )

    return fit


def at(places: dict[int, int]) -> list[ClientProxy]:
    """Clients by identity, each at its node."""
    return [PlainClient(node, client(identity)) for identity, node in places.items()]


def test_state_and_metrics_are_keyed_by_the_metric() -> None:
    strategy = FedPW(array_names=NAMES)
    _, metrics = fit_round(strategy, at({7: 101, 3: 102, 5: 103}))
    assert json.loads(str(metrics["fedpw-client-id"])) == [3, 5, 7]
    assert sorted(strategy.state.direction.clients) == [3, 5, 7]
    assert sorted(strategy.state.loss.clients) == [3, 5, 7]


def test_memory_follows_a_client_to_another_node() -> None:
    stays, moves = FedPW(array_names=NAMES), FedPW(array_names=NAMES)
    homes = {3: 101, 5: 102, 7: 103}
    expected: Parameters = INITIAL
    parameters: Parameters = INITIAL
    for server_round in range(1, 5):
        expected, expected_metrics = fit_round(stays, at(homes), expected, server_round)
        # Every round, every client comes back under an id that another one had before.
        nodes = [(place + server_round) % 3 + 101 for place in range(3)]
        moved = dict(zip(homes, nodes, strict=True))
        parameters, metrics = fit_round(moves, at(moved), parameters, server_round)
        assert parameters == expected
        assert metrics == expected_metrics
    assert moves.state == stays.state


def test_rates_go_to_the_node_where_the_client_answered_last() -> None:
    def rates(strategy: FedPW, nodes: list[int], parameters: Parameters) -> dict[int, float]:
        results: dict[int, float] = {}

        def note(node: int, ins: FitIns) -> FitRes:
            results[node] = AdjustmentRequest.decode(ins.config[REQUEST_KEY]).rate
            return client(node - 100)(node, ins)

        ask(strategy, [PlainClient(node, note) for node in nodes], parameters, 3)
        return results

    strategy = FedPW(array_names=NAMES, adjustment="client")
    parameters, _ = fit_round(strategy, at({1: 101, 5: 105, 9: 109}))
    known = rates(copy.deepcopy(strategy), [101, 105, 109], parameters)
    # A strong client drops more.
    assert known[101] > known[105] > known[109]
    moved, _ = fit_round(strategy, at({1: 109, 5: 105, 9: 101}), parameters, 2)
    swapped = rates(strategy, [101, 105, 109], moved)
    assert swapped[109] > swapped[105] > swapped[101]
    # Nobody answered from node 200 yet.
    assert rates(strategy, [101, 105, 200], moved)[200] == pytest.approx(0.3)


def test_second_result_of_a_client_is_set_aside_and_the_known_node_keeps_its_identity(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = FedPW(array_names=NAMES)
    parameters, _ = fit_round(strategy, at({3: 110, 5: 120}))
    without = copy.deepcopy(strategy)
    expected, _ = fit_round(without, at({3: 110, 5: 120}), parameters, 2)
    flower_log.clear()

    def impostor(node: int, ins: FitIns) -> FitRes:
        return fit_result(named(ins.parameters), 9.0, **{"client-id": 3})

    clients = [*at({3: 110, 5: 120}), PlainClient(105, impostor)]
    new_parameters, metrics = fit_round(strategy, clients, parameters, 2)
    assert new_parameters == expected
    assert strategy.state == without.state
    assert metrics["fedpw-quarantined"] == 1
    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "client 3 (node 105) quarantined: a second reply of client 3" in told[0]


def test_without_the_metric_a_client_is_its_node() -> None:
    def nameless(node: int, ins: FitIns) -> FitRes:
        return fit_result(trained(named(ins.parameters), (node,)), 0.1 * node)

    strategy = FedPW(array_names=NAMES)
    fit_round(strategy, [PlainClient(node, nameless) for node in (11, 12)])
    assert sorted(strategy.state.loss.clients) == [11, 12]


def test_evaluation_keeps_one_result_a_client() -> None:
    strategy = FedPW(array_names=NAMES)
    fit_round(strategy, at({3: 110, 5: 120}))

    def evaluate(node: int, ins: EvaluateIns) -> EvaluateRes:
        identity = 5 if node == 120 else 3
        return EvaluateRes(OK, {105: 9.0, 110: 1.0, 120: 2.0}[node], 10, {"client-id": identity})

    proxies: list[ClientProxy] = [
        PlainClient(node, client(3), evaluate) for node in (105, 110, 120)
    ]
    results = [(proxy, evaluate(proxy.node_id, EvaluateIns(INITIAL, {}))) for proxy in proxies]
    loss, metrics = strategy.aggregate_evaluate(1, results, [])
    assert loss == pytest.approx(1.5)
    assert metrics["fedpw-quarantined"] == 1
