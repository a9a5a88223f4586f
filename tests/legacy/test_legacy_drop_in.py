"""One changed line in a project with Flower's legacy FedAvg, and everything around it stays."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import FitIns, FitRes, NDArrays, Parameters, Scalar
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from support.legacy_federation import (
    INITIAL,
    NAMES,
    Metrics,
    NoiseClient,
    PlainClient,
    app_clients,
    fit_result,
    fit_round,
    good_fit,
    named,
    plain_clients,
    run_server,
    with_server_round,
)

import fedpw_flwr
from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import FedPW
from fedpw_flwr.strategy.options import (
    FedAvgOptions,
    FedPWOptions,
    LegacyFedAvgOptions,
    LegacyFedPWOptions,
)
from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, REPORT_KEY, REQUEST_KEY

NODES = [11, 12, 13, 14]


def test_it_is_a_fedavg() -> None:
    assert issubclass(FedPW, FedAvg)
    assert isinstance(FedPW(), FedAvg)
    assert repr(FedPW(accept_failures=False)) == "FedPW(accept_failures=False)"


def test_its_options_are_fedavgs_with_their_defaults_and_the_methods() -> None:
    flowers = inspect.signature(FedAvg).parameters
    assert LegacyFedAvgOptions.__annotations__.keys() == flowers.keys()
    ours, theirs = FedPW(), FedAvg()
    assert {name: getattr(ours, name) for name in flowers} == {
        name: getattr(theirs, name) for name in flowers
    }
    # Checkpoints and draws are CheckpointedServer's and OrderedClientManager's here.
    elsewhere = {"checkpoint_dir", "checkpoint_every", "resume", "seed"}
    methods = FedPWOptions.__annotations__.keys() - FedAvgOptions.__annotations__.keys()
    assert LegacyFedPWOptions.__annotations__.keys() == flowers.keys() | (methods - elsewhere)
    assert ours.settings == fedpw_flwr.FedPW().settings


def test_arguments_reach_fedavg() -> None:
    arguments: dict[str, Any] = {
        **{"fraction_fit": 0.5, "fraction_evaluate": 0.25, "min_fit_clients": 3},
        **{"min_evaluate_clients": 4, "min_available_clients": 5, "accept_failures": False},
        **{"evaluate_fn": lambda *told: None, "initial_parameters": INITIAL},
        **{"on_fit_config_fn": with_server_round, "on_evaluate_config_fn": with_server_round},
        "fit_metrics_aggregation_fn": lambda metrics: {},
        "evaluate_metrics_aggregation_fn": lambda metrics: {},
    }
    strategy = FedPW(**arguments)
    assert {name: getattr(strategy, name) for name in arguments} == arguments


def test_history_holds_the_rounds_of_a_whole_run() -> None:
    evaluated: list[int] = []

    def evaluate(
        server_round: int, arrays: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        evaluated.append(server_round)
        return float(np.abs(arrays[0]).mean()), {}

    strategy = FedPW(array_names=NAMES, initial_parameters=INITIAL, evaluate_fn=evaluate)
    history, _ = run_server(strategy, plain_clients(NODES), 3)
    assert evaluated == [0, 1, 2, 3]
    assert len(history.losses_distributed) == 3
    told = history.metrics_distributed_fit
    lists = {"client-id", "weight", "p", "q", "drop-rate", "loss"}
    numbers = {"loss-term-share", "amplification", "bounded", "quarantined", "failed", "empty"}
    assert set(told) == {f"fedpw-{name}" for name in lists | numbers}
    assert all(
        [server_round for server_round, _ in entries] == [1, 2, 3] for entries in told.values()
    )
    for name in lists:
        each = [json.loads(str(text)) for _, text in told[f"fedpw-{name}"]]
        assert [len(values) for values in each] == [len(NODES)] * 3
        if name in ("weight", "p", "q"):
            assert [math.fsum(values) for values in each] == pytest.approx([1, 1, 1])
    assert [json.loads(str(text)) for _, text in told["fedpw-client-id"]] == [NODES] * 3
    assert strategy.state.rounds == 3


def test_run_without_initial_parameters_asks_a_client_for_them() -> None:
    def client_fn(context: Context) -> Client:
        return FedPWClient(NoiseClient(int(context.node_config["partition-id"]))).to_client()

    strategy = FedPW(on_fit_config_fn=with_server_round)
    clients = app_clients(ClientApp(client_fn=client_fn), NODES)
    history, _ = run_server(strategy, clients, 2)
    assert len(history.metrics_distributed_fit["fedpw-weight"]) == 2


@pytest.mark.parametrize("model", [Parameters([], ""), Parameters([b"x"], "torch.tensor")])
def test_run_without_a_model_says_how_to_give_one(model: Parameters) -> None:
    with pytest.raises(ValueError, match="initial_parameters=ndarrays_to_parameters"):
        run_server(FedPW(initial_parameters=model), plain_clients(NODES), 1)


@pytest.mark.parametrize("adjustment", ["server", "client"])
def test_clients_get_the_users_configuration_beside_what_fedpw_asks(adjustment: Any) -> None:
    shared: dict[str, Scalar] = {"lr": 0.1, "epochs": 3, "note": "warm-up"}
    seen: dict[int, dict[str, Scalar]] = {}

    def note(node: int, ins: FitIns) -> FitRes:
        seen[node] = dict(ins.config)
        return good_fit(node, ins)

    strategy = FedPW(
        array_names=NAMES, on_fit_config_fn=lambda server_round: shared, adjustment=adjustment
    )
    clients: list[ClientProxy] = [PlainClient(node, note) for node in NODES]
    parameters = INITIAL
    for server_round in (1, 2, 3):
        parameters, _ = fit_round(strategy, clients, parameters, server_round)
        for config in seen.values():
            assert {key: config[key] for key in shared} == shared
            asked = {REQUEST_KEY, CONSENSUS_KEY} if server_round == 3 else {REQUEST_KEY}
            assert set(config) - set(shared) == (asked if adjustment == "client" else set())
    assert shared == {"lr": 0.1, "epochs": 3, "note": "warm-up"}
    if adjustment == "client":
        assert len({bytes(str(config[REQUEST_KEY]), "ascii") for config in seen.values()}) == 4


def test_when_nobody_is_sampled_the_model_stays() -> None:
    class Picky(SimpleClientManager):
        def sample(self, *arguments: Any, **others: Any) -> list[ClientProxy]:
            return []

    clients = Picky()
    for client in plain_clients(NODES):
        clients.register(client)
    server = Server(client_manager=clients, strategy=FedPW(initial_parameters=INITIAL))
    history, _ = server.fit(2, timeout=None)
    assert server.parameters == INITIAL
    assert history.metrics_distributed_fit == {}


def test_users_metrics_are_aggregated_over_usable_results_without_fedpws_report() -> None:
    given: list[list[tuple[int, Metrics]]] = []

    def note(metrics: list[tuple[int, Metrics]]) -> Metrics:
        given.append(metrics)
        return {"examples": sum(count for count, _ in metrics)}

    class ReportingClient(NoiseClient):
        def fit(
            self, parameters: NDArrays, config: dict[str, Scalar]
        ) -> tuple[NDArrays, int, Metrics]:
            arrays, count, metrics = super().fit(parameters, config)
            if self.number == 3:
                arrays[0][0, 0] = np.nan
            return arrays, count, {**metrics, "note": "abc", "raw": b"12", "number": self.number}

    def client_fn(context: Context) -> Client:
        number = int(context.node_config["partition-id"])
        return FedPWClient(ReportingClient(number), device="cpu").to_client()

    strategy = FedPW(
        adjustment="client",
        on_fit_config_fn=with_server_round,
        fit_metrics_aggregation_fn=note,
    )
    clients = app_clients(ClientApp(client_fn=client_fn), [1, 2, 3])
    _, metrics = fit_round(strategy, clients)
    (seen,) = given
    assert sorted(count for count, _ in seen) == [11, 12]
    assert sorted(int(one["number"]) for _, one in seen) == [1, 2]
    for _, one in seen:
        assert set(one) == {"train_loss", "note", "raw", "number"}
        assert REPORT_KEY not in one
    assert metrics["examples"] == 23
    assert metrics["fedpw-quarantined"] == 1


def test_users_metrics_are_not_asked_for_where_no_result_can_be_used() -> None:
    def fail(metrics: list[tuple[int, Metrics]]) -> Metrics:
        raise AssertionError("called without results")

    def broken(node: int, ins: FitIns) -> FitRes:
        return fit_result(named(ins.parameters), math.nan if node == NODES[0] else -1.0)

    strategy = FedPW(fit_metrics_aggregation_fn=fail)
    _, metrics = fit_round(strategy, plain_clients(NODES, dict.fromkeys(NODES, broken)))
    assert metrics["fedpw-quarantined"] == len(NODES)


def test_an_option_that_it_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="FedPW has no option 'betta'; did you mean beta"):
        FedPW(betta=0.3)  # type: ignore[call-arg]
