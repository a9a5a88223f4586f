"""Faults injected into whole rounds of Flower's legacy server: the others' result stays theirs.

What `tests/strategy/test_strategy_fault_injection.py` claims of the Message API, of the other one:
wherever updates are adjusted the round ends, the model is finite, and the log names the culprit.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from broken_results import BROKEN_RESULTS
from federation import trained
from flwr.client import NumPyClient
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from legacy_federation import (
    INITIAL,
    NAMES,
    OK,
    Fit,
    Metrics,
    PlainClient,
    ask,
    evaluate_round,
    fit_result,
    fit_round,
    manager_of,
    named,
    run_server,
)

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import FedPW, TooFewClientsError
from fedpw_flwr.wire.adjustment import NEEDS_DENSE, REPORT_KEY

NODES = list(range(11, 17))
BAD = 13
OWN_COUNTS = ("fedpw-quarantined", "fedpw-failed", "fedpw-empty")

PLACEMENTS: dict[str, dict[str, Any]] = {
    "server": {},
    "client": {"adjustment": "client"},
    "packed": {"adjustment": "client", "upload": "packed"},
}


def client_of(node: int) -> int:
    """The stable identity of the client at a node."""
    return node - 10


class Trained(NumPyClient):
    """What a user wrote: trains by noise that follows from its node and the model."""

    def __init__(self, node: int, loss: float | None, entry: float | None) -> None:
        self.node = node
        self.loss = loss
        self.entry = entry

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Scalar]
    ) -> tuple[list[np.ndarray], int, Metrics]:
        model = dict(zip(NAMES, parameters, strict=True))
        # A hostile client may have moved the counter, too: any integer is one.
        seen = abs(int(model["norm.num_batches_tracked"])) + 1
        loss = 0.5 + 0.1 * (self.node % 7) + 3.0 / seen if self.loss is None else self.loss
        arrays = [np.asarray(array) for array in trained(model, (self.node, seen)).values()]
        if self.entry is not None:
            arrays[0][2, 1] = self.entry
        return arrays, 10 + self.node % 5, {"train_loss": loss}


def fitting(
    loss: float | None = None,
    client_id: int | None = None,
    entry: float | None = None,
    **metrics: Scalar,
) -> Fit:
    """A client in `FedPWClient`, which follows the server's request; some say what they like."""

    def fit(node: int, ins: FitIns) -> FitRes:
        identity = client_of(node) if client_id is None else client_id
        client = FedPWClient(Trained(node, loss, entry), device="cpu", client_id=identity)
        arrays, count, told = client.fit(parameters_to_ndarrays(ins.parameters), dict(ins.config))
        return FitRes(OK, ndarrays_to_parameters(arrays), count, {**told, **metrics})

    return fit


honest = fitting()


def breaking(kind: str) -> Fit:
    return lambda node, ins: BROKEN_RESULTS[kind].arrives(honest(node, ins))


def clients(nodes: Iterable[int], others: Mapping[int, Fit] | None = None) -> list[ClientProxy]:
    others = others or {}
    return [PlainClient(node, others.get(node, honest)) for node in nodes]


def a_strategy(placement: str, **options: Any) -> FedPW:
    return FedPW(device="cpu", **{"array_names": NAMES, **PLACEMENTS[placement], **options})


@cache
def _two_rounds(placement: str) -> tuple[FedPW, Parameters]:
    strategy, parameters = a_strategy(placement), INITIAL
    for server_round in (1, 2):
        parameters, _ = fit_round(strategy, clients(NODES), parameters, server_round)
    return strategy, parameters


def after_two_rounds(placement: str) -> tuple[FedPW, Parameters]:
    """A federation that masked once: from here on there is a consensus, too."""
    strategy, parameters = _two_rounds(placement)
    return copy.deepcopy(strategy), parameters


def round_of(
    strategy: FedPW, parameters: Parameters, absent: int, server_round: int
) -> tuple[Parameters, Metrics]:
    """A round in which one of those that were asked gives no answer."""
    results, _ = ask(strategy, clients(NODES), parameters, server_round)
    answers = [(proxy, result) for proxy, result in results if proxy.node_id != absent]
    new_parameters, metrics = strategy.aggregate_fit(server_round, answers, [])
    assert new_parameters is not None
    return new_parameters, metrics


def memory(strategy: FedPW) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Everything a strategy carries over, in a form that compares by value."""
    state, tensors = strategy.saved_state()
    return state, {name: tensor.tolist() for name, tensor in tensors.items()}


def decided(metrics: Metrics) -> Metrics:
    return {key: value for key, value in metrics.items() if key not in OWN_COUNTS}


def listed(metrics: Metrics, key: str) -> list[float]:
    value = json.loads(str(metrics[key]))
    assert isinstance(value, list)
    return value


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == "WARNING"]


def assert_finite(parameters: Parameters) -> None:
    for (name, array), before in zip(
        named(parameters).items(), named(INITIAL).values(), strict=True
    ):
        assert (array.shape, array.dtype) == (before.shape, before.dtype), name
        assert np.isfinite(array).all(), name


OF_ARRAYS = {
    kind for kind, broken in BROKEN_RESULTS.items() if re.search("body|norm", broken.reason)
}
"""Kinds that take a dense array apart, which a packed upload may not have."""

KINDS = [
    (placement, kind)
    for placement in PLACEMENTS
    for kind in BROKEN_RESULTS
    if placement != "packed" or kind not in OF_ARRAYS
]
DIVERGED = [math.nan, math.inf, -math.inf, 1e30]
LOSSLESS = {"no loss", "loss as text", "loss as a truth value"}
"""Where no result has a loss, there is an error that says so."""


def assert_costs_only_itself(placement: str, culprit: Fit, log: pytest.LogCaptureFixture) -> None:
    """The round is that in which the culprit is silent, but for the count and a line in the log."""
    strategy, parameters = after_two_rounds(placement)
    without = copy.deepcopy(strategy)
    expected, expected_metrics = round_of(without, parameters, BAD, 3)
    log.clear()
    new_parameters, metrics = fit_round(strategy, clients(NODES, {BAD: culprit}), parameters, 3)
    assert new_parameters == expected
    assert memory(strategy) == memory(without)
    assert decided(metrics) == decided(expected_metrics)
    assert sorted(str(metrics[count]) for count in OWN_COUNTS) == ["0", "0", "1"]
    told = [line for line in warnings(log) if "quarantined" in line or "failed" in line]
    assert len(told) == 1
    assert re.search(rf"round 3, .*node {BAD}\)? (quarantined|failed): .", told[0])


@pytest.mark.parametrize(("placement", "kind"), KINDS)
def test_broken_result_costs_only_itself_wherever_updates_are_adjusted(
    placement: str, kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    assert_costs_only_itself(placement, breaking(kind), flower_log)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("entry", DIVERGED)
def test_training_that_diverged_costs_only_itself_wherever_updates_are_adjusted(
    placement: str, entry: float, flower_log: pytest.LogCaptureFixture
) -> None:
    assert_costs_only_itself(placement, fitting(entry=entry), flower_log)


@pytest.mark.parametrize("kind", BROKEN_RESULTS)
def test_client_that_was_there_before_is_named_by_its_stable_identity(
    kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, parameters = after_two_rounds("server")
    flower_log.clear()
    fit_round(strategy, clients(NODES, {BAD: breaking(kind)}), parameters, 3)
    [told] = warnings(flower_log)
    assert f"round 3, client {client_of(BAD)} (node {BAD}) quarantined" in told


def test_client_that_does_not_answer_is_named(flower_log: pytest.LogCaptureFixture) -> None:
    strategy, parameters = after_two_rounds("server")
    flower_log.clear()
    round_of(strategy, parameters, BAD, 3)
    assert f"client {client_of(BAD)} (node {BAD})" in "\n".join(warnings(flower_log))


def assert_model_stays_where_all_are(culprit: Fit, placement: str) -> None:
    strategy, parameters = after_two_rounds(placement)
    before = memory(strategy)
    all_bad = clients(NODES, dict.fromkeys(NODES, culprit))
    new_parameters, metrics = fit_round(strategy, all_bad, parameters, 3)
    assert new_parameters == parameters
    assert memory(strategy) == before
    assert sum(int(metrics[count]) for count in OWN_COUNTS) == len(NODES)


@pytest.mark.parametrize(("placement", "kind"), [case for case in KINDS if case[1] not in LOSSLESS])
def test_where_all_results_are_bad_the_model_keeps_its_bytes(placement: str, kind: str) -> None:
    assert_model_stays_where_all_are(breaking(kind), placement)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("entry", DIVERGED)
def test_where_all_have_diverged_the_model_keeps_its_bytes(placement: str, entry: float) -> None:
    assert_model_stays_where_all_are(fitting(entry=entry), placement)


def _without_loss(node: int, ins: FitIns) -> FitRes:
    return fit_result(named(ins.parameters), loss=None)


def _behind_a_clipping_mod(node: int, ins: FitIns) -> FitRes:
    raise ValueError(NEEDS_DENSE)


def _as_a_client_app_function_does(node: int, ins: FitIns) -> FitRes:
    raise KeyError("arrays")


@pytest.mark.parametrize(
    "last", [_without_loss, _behind_a_clipping_mod, _as_a_client_app_function_does]
)
def test_the_only_one_to_answer_cannot_end_a_run_that_went_well(last: Fit) -> None:
    strategy, parameters = after_two_rounds("server")
    results, failures = ask(strategy, clients(NODES, {BAD: last}), parameters, 3)
    answers = [(proxy, result) for proxy, result in results if proxy.node_id == BAD]
    new_parameters, metrics = strategy.aggregate_fit(3, answers, failures)
    assert new_parameters == parameters
    assert sum(int(metrics[count]) for count in OWN_COUNTS) == 1


# What a result says beside its arrays.

HOSTILE_METRICS: dict[str, Metrics] = {
    "numbers near the largest": {"accuracy": 1.7e308, "count": 2**64 - 1},
    "text": {"accuracy": "0.9", "note": "x" * 10_000},
    "bytes and truth": {"accuracy": b"\x00\xff", "ready": True},
    "NaN": {"accuracy": math.nan},
    "FedPW's own names": {"fedpw-weight": "[9.0]", "fedpw-client-id": "[99]", "fedpw-failed": 99},
    "a thousand names": {f"metric {number}": number for number in range(1000)},
}


@pytest.mark.parametrize("kind", HOSTILE_METRICS)
def test_what_a_client_says_beside_its_loss_moves_no_model(kind: str) -> None:
    def mean_accuracy(told: list[tuple[int, Metrics]]) -> Metrics:
        return {"clients": len(told), "keys": json.dumps(sorted(told[0][1]))}

    strategy, parameters = after_two_rounds("server")
    strategy.fit_metrics_aggregation_fn = mean_accuracy
    other = copy.deepcopy(strategy)
    liar = fitting(**{"accuracy": 0.5, **HOSTILE_METRICS[kind]})
    usual = dict.fromkeys(NODES, fitting(accuracy=0.5))
    new_parameters, metrics = fit_round(
        strategy, clients(NODES, {**usual, BAD: liar}), parameters, 3
    )
    expected, expected_metrics = fit_round(other, clients(NODES, usual), parameters, 3)
    assert new_parameters == expected
    assert memory(strategy) == memory(other)
    own = [key for key in expected_metrics if key.startswith("fedpw-")]
    assert {key: metrics[key] for key in own} == {key: expected_metrics[key] for key in own}


# Losses that are lies.

MANY = list(range(11, 23))
LIAR = 22
UNBOUNDED: dict[str, Any] = {"max_weight": None, "max_loss_ratio": None}


def rounds_with_a_liar(placement: str, loss: float | None, **options: Any) -> list[Metrics]:
    """Four rounds of eleven honest clients and one that reports a loss of its choice."""
    proxies = clients(MANY, {LIAR: fitting(loss)})
    strategy, parameters = a_strategy(placement, **options), INITIAL
    rounds = []
    for server_round in range(1, 5):
        parameters, metrics = fit_round(strategy, proxies, parameters, server_round)
        assert_finite(parameters)
        rounds.append(metrics)
    return rounds


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("loss", [1e6, 1e300])
def test_huge_loss_grabs_a_bounded_weight(placement: str, loss: float) -> None:
    for metrics in rounds_with_a_liar(placement, loss):
        assert max(listed(metrics, "fedpw-weight")) <= 5 / len(MANY) + 1e-12
        assert metrics["fedpw-bounded"] == 1
    for metrics in rounds_with_a_liar(placement, loss, **UNBOUNDED):
        assert listed(metrics, "fedpw-weight")[-1] > 9 / len(MANY)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("loss", [1e-300, 0.0])
def test_tiny_loss_does_not_take_the_others_masks_away(placement: str, loss: float) -> None:
    def drop_rates(told: float | None, **options: Any) -> np.ndarray:
        rounds = rounds_with_a_liar(placement, told, **options)
        return np.array([listed(metrics, "fedpw-drop-rate")[:-1] for metrics in rounds[2:]])

    usual = drop_rates(None)
    # Its quotient counts 20 times as much as the median's, in a mean over all.
    assert (drop_rates(loss) > len(MANY) / (2 * len(MANY) + 20) * usual).all()
    assert (drop_rates(loss, **UNBOUNDED) < 0.05 * usual).all()


@pytest.mark.parametrize("loss", [1e6, 1e300, 1e-300, 0.0])
def test_liar_is_named_with_the_round_and_what_its_loss_counts_as(
    loss: float, flower_log: pytest.LogCaptureFixture
) -> None:
    rounds_with_a_liar("server", loss)
    told = [line for line in warnings(flower_log) if "max_loss_ratio" in line]
    assert len(told) == 4
    for server_round, line in enumerate(told, start=1):
        said = rf"round {server_round}, client {client_of(LIAR)} reports the loss .* counts as"
        assert re.search(said, line)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_honest_clients_get_the_same_bytes_with_bounds_and_without(placement: str) -> None:
    runs = []
    for options in ({}, UNBOUNDED):
        strategy, parameters, rounds = a_strategy(placement, **options), INITIAL, []
        for server_round in range(1, 6):
            parameters, metrics = fit_round(strategy, clients(MANY), parameters, server_round)
            assert metrics["fedpw-bounded"] == 0
            rounds.append((parameters, metrics))
        runs.append((rounds, memory(strategy)))
    assert runs[0] == runs[1]


# Who is who.


def test_absent_clients_identity_goes_to_whoever_claims_it_within_the_bounds() -> None:
    """What a site that comes back at a new node needs, and what a thief can use."""
    strategy, parameters = after_two_rounds("server")
    history = strategy.state.loss.clients[client_of(BAD)]
    rest = [node for node in NODES if node != BAD]
    thief = fitting(loss=1.0, client_id=client_of(BAD))
    parameters, metrics = fit_round(strategy, clients([*rest, 99], {99: thief}), parameters, 3)
    assert_finite(parameters)
    assert client_of(BAD) in listed(metrics, "fedpw-client-id")
    assert strategy.state.loss.clients[client_of(BAD)].mass > history.mass
    assert max(listed(metrics, "fedpw-weight")) <= 5 / len(NODES)


def test_client_whose_identity_was_taken_while_it_was_away_gets_it_back() -> None:
    strategy, parameters = after_two_rounds("server")
    rest = [node for node in NODES if node != BAD]
    thief = {99: fitting(loss=1.0, client_id=client_of(BAD))}
    parameters, _ = fit_round(strategy, clients([*rest, 99], thief), parameters, 3)
    without = copy.deepcopy(strategy)
    new_parameters, _ = fit_round(strategy, clients([*NODES, 99], thief), parameters, 4)
    expected, _ = fit_round(without, clients(NODES), parameters, 4)
    assert new_parameters == expected


# Everything together, drawn at random.

SCALARS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
METRICS = st.dictionaries(
    st.sampled_from(["train_loss", "client-id", "accuracy", REPORT_KEY, "fedpw-weight", ""]),
    SCALARS,
    max_size=4,
)
HOSTILE = [31, 32, 33]
"""Behind the honest nodes, so that the first to claim an identity is its owner."""

UNIT = st.floats(0, 1, exclude_max=True)


def flipped(which: float, place: float, mask: int) -> Fit:
    def fit(node: int, ins: FitIns) -> FitRes:
        good = honest(node, ins)
        tensors = list(good.parameters.tensors)
        data = bytearray(tensors[int(which * len(tensors))])
        data[int(place * len(data))] ^= mask
        tensors[int(which * len(tensors))] = bytes(data)
        return replace(good, parameters=replace(good.parameters, tensors=tensors))

    return fit


def reordered(order: list[int]) -> Fit:
    def fit(node: int, ins: FitIns) -> FitRes:
        good = honest(node, ins)
        tensors = [good.parameters.tensors[place] for place in order]
        return replace(good, parameters=replace(good.parameters, tensors=tensors))

    return fit


def telling(metrics: Metrics) -> Fit:
    return fitting(**metrics)


def counting(count: int) -> Fit:
    return lambda node, ins: replace(honest(node, ins), num_examples=count)


def raising(text: str) -> Fit:
    def fit(node: int, ins: FitIns) -> FitRes:
        raise RuntimeError(text)

    return fit


FAULTS = st.one_of(
    st.builds(flipped, UNIT, UNIT, st.integers(1, 255)),
    st.builds(reordered, st.lists(st.integers(0, len(NAMES) - 1), max_size=6)),
    st.builds(telling, METRICS),
    st.builds(counting, st.integers(-(2**63), 2**63 - 1)),
    st.builds(raising, st.one_of(st.text(max_size=20), st.just("KeyError: 'arrays'"))),
)

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@FUZZ
@given(
    placement=st.sampled_from(sorted(PLACEMENTS)),
    rounds=st.lists(st.lists(FAULTS, min_size=1, max_size=3), min_size=3, max_size=3),
)
def test_whatever_some_clients_send_the_honest_ones_take_part_and_the_model_is_finite(
    placement: str, rounds: list[list[Fit]]
) -> None:
    strategy, parameters = a_strategy(placement), INITIAL
    for server_round, faults in enumerate(rounds, start=1):
        hostile = dict(zip(HOSTILE, faults, strict=False))
        proxies = clients([*NODES[:4], *hostile], hostile)
        parameters, metrics = fit_round(strategy, proxies, parameters, server_round)
        assert_finite(parameters)
        assert {client_of(node) for node in NODES[:4]} <= set(listed(metrics, "fedpw-client-id"))
        weights = listed(metrics, "fedpw-weight")
        assert math.fsum(weights) == pytest.approx(1.0)
        assert min(weights) >= 0
        assert max(weights) <= 5 / len(weights) + 1e-12


@FUZZ
@example(told=[(1e308, 2, {"accuracy": 0.5})])
@given(
    told=st.lists(
        st.tuples(st.floats(), st.integers(-(2**63), 2**63 - 1), METRICS), min_size=1, max_size=3
    )
)
def test_whatever_some_clients_report_of_an_evaluation_it_ends_with_a_finite_loss(
    told: list[tuple[float, int, Metrics]],
) -> None:
    def reporting(node: int, ins: EvaluateIns) -> EvaluateRes:
        loss, count, metrics = told[node - HOSTILE[0]]
        return EvaluateRes(OK, loss, count, metrics)

    hostile: list[ClientProxy] = [
        PlainClient(node, honest, reporting) for node in HOSTILE[: len(told)]
    ]
    loss, metrics = evaluate_round(a_strategy("server"), [*clients(NODES), *hostile])
    assert loss is not None
    assert math.isfinite(loss)
    assert 0 <= int(metrics["fedpw-quarantined"]) <= len(told)


# Clients that do not come.


class ComingAndGoing(SimpleClientManager):
    """Has the clients of the first look, then of the second, ...; the last stay."""

    def __init__(self, *looks: Iterable[int]) -> None:
        super().__init__()
        self.looks = [list(look) for look in looks]
        self.times_asked = 0

    def all(self) -> dict[str, ClientProxy]:
        self.times_asked += 1
        there = self.looks[min(self.times_asked, len(self.looks)) - 1]
        self.clients = {proxy.cid: proxy for proxy in clients(there)}
        return self.clients


def waiting(seconds: float, **options: Any) -> FedPW:
    return a_strategy("server", min_available_clients=4, wait_for_clients=seconds, **options)


def sampled(strategy: FedPW, manager: ComingAndGoing, server_round: int = 1) -> list[int]:
    instructions = strategy.configure_fit(server_round, INITIAL, manager)
    return sorted(proxy.node_id for proxy, _ in instructions)


def test_run_stops_with_a_reason_where_clients_stay_away() -> None:
    strategy = waiting(0.05, initial_parameters=INITIAL)
    with pytest.raises(TooFewClientsError, match=r"3 of 4 clients are there after 0\.05 s"):
        run_server(strategy, clients([11, 12, 13]), 2)


def test_run_goes_on_with_those_that_are_there_and_says_so(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = waiting(0.05, when_missing="continue", initial_parameters=INITIAL)
    history, parameters = run_server(strategy, clients([11, 12, 13]), 3)
    taken = history.metrics_distributed_fit["fedpw-client-id"]
    assert taken == [(server_round, "[1, 2, 3]") for server_round in (1, 2, 3)]
    assert_finite(parameters)
    assert "3 of 4 clients are there after 0.05 s" in flower_log.text


def test_clients_that_come_in_time_are_waited_for() -> None:
    manager = ComingAndGoing([11], [11, 12, 13, 14])
    assert sampled(waiting(0.05), manager) == [11, 12, 13, 14]


def test_clients_that_come_back_take_part_again_and_are_waited_for_again() -> None:
    few, all_four = [11, 12], [11, 12, 13, 14]
    strategy = waiting(0.05, when_missing="continue")
    manager = ComingAndGoing(few, few, few, all_four, few, few, few)
    rounds = [sampled(strategy, manager, server_round) for server_round in range(1, 6)]
    assert rounds == [few, few, all_four, few, few]
    assert manager.times_asked == 7


def test_where_nobody_is_left_there_is_nothing_to_go_on_with() -> None:
    with pytest.raises(TooFewClientsError, match="nobody is left"):
        waiting(0.05, when_missing="continue").configure_fit(1, INITIAL, manager_of([]))


def test_evaluation_waits_as_training_does() -> None:
    with pytest.raises(TooFewClientsError, match="1 of 4"):
        evaluate_round(waiting(0.05), clients([11]))
    strategy = waiting(0.05, when_missing="continue")
    loss, _ = evaluate_round(strategy, clients([11]))
    assert loss == pytest.approx(0.4)


def test_minima_are_as_they_were_given_after_a_round_with_fewer() -> None:
    strategy = waiting(0.0, when_missing="continue", min_fit_clients=3, min_evaluate_clients=3)
    sampled(strategy, ComingAndGoing([11]))
    evaluate_round(strategy, clients([11]))
    assert (strategy.min_available_clients, strategy.min_fit_clients) == (4, 3)
    assert strategy.min_evaluate_clients == 3
