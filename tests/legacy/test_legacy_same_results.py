"""Both strategies are the same method: equal models, state and metrics on the same federation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from federation import MODEL
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import FitIns, FitRes
from legacy_federation import (
    INITIAL,
    NAMES,
    NoiseClient,
    PlainClient,
    app_clients,
    app_grid,
    ask,
    fit_result,
    fit_round,
    good_fit,
    named,
    with_server_round,
)
from support.grid import train_round
from support.records import array_record

import fedpw_flwr
from fedpw_flwr import FedPWClient, numpy_client_app
from fedpw_flwr.algorithm import AdjustmentState
from fedpw_flwr.legacy import FedPW
from fedpw_flwr.strategy.fedpw_method import FedPWMethod

COHORTS = [[1, 2, 3, 4], [1, 2, 3, 4], [2, 4], [1, 3, 4, 5], [1, 2, 3, 4, 5], [3]]
"""Who takes part in each round: everyone, some, a newcomer, one alone."""

SETTINGS: dict[str, dict[str, Any]] = {
    "server": {},
    "server, the paper's weights": {"clip_weights": False},
    "server, other rates": {"avg_drop_rate": 0.5, "beta": 0.9},
    "server, trainable by name": {"trainable": ["body.weight"]},
    "without adapted weights": {"adapt_weights": False},
    "without adjustment": {"adjust_parameters": False},
    "without both": {"adapt_weights": False, "adjust_parameters": False},
    "client, dense": {"adjustment": "client"},
    "client, packed": {"adjustment": "client", "upload": "packed"},
    "client, packed float16": {
        "adjustment": "client",
        "upload": "packed",
        "upload_dtype": "float16",
    },
    "client, packed bfloat16": {
        "adjustment": "client",
        "upload": "packed",
        "upload_dtype": "bfloat16",
    },
}


def client_of(context: Context) -> NumPyClient:
    """FedPWClients, and one client as it was before; odd ones name themselves."""
    number = int(context.node_config["partition-id"])
    client = NoiseClient(number)
    if number == 4:
        return client
    client_id = 100 - number if number % 2 else None
    return FedPWClient(client, device="cpu", client_id=client_id)


def legacy_client_of(context: Context) -> Client:
    return client_of(context).to_client()


def bits(state: AdjustmentState) -> dict[str, Any]:
    """An adjustment state that can be compared."""
    consensus = state.consensus
    seen: dict[str, Any] = {"losses": dict(state.relative_losses), "consensus": None}
    if consensus is not None:
        members = {name: chosen.tolist() for name, chosen in consensus.members.items()}
        seen["consensus"] = (consensus.round, members, dict(consensus.factors))
    return seen


def memory(method: FedPWMethod) -> tuple[Any, ...]:
    return method.state, bits(method.adjustment_state)


@pytest.mark.parametrize("setting", SETTINGS)
def test_both_strategies_give_the_same_models_state_and_metrics(setting: str) -> None:
    arguments = {**SETTINGS[setting], "device": "cpu"}
    legacy = FedPW(
        array_names=NAMES,
        on_fit_config_fn=with_server_round,
        min_fit_clients=1,
        min_available_clients=1,
        **arguments,
    )
    message = fedpw_flwr.FedPW(min_train_nodes=1, min_available_nodes=1, **arguments)
    parameters, arrays = INITIAL, array_record(MODEL)
    for server_round, nodes in enumerate(COHORTS, start=1):
        proxies = app_clients(ClientApp(client_fn=legacy_client_of), nodes)
        parameters, legacy_metrics = fit_round(legacy, proxies, parameters, server_round)
        grid = app_grid(numpy_client_app(client_of), nodes)
        arrays, metrics = train_round(message, grid, arrays, server_round)

        assert parameters.tensors == [array.data for array in arrays.values()]
        assert memory(legacy.method) == memory(message.method)
        own = {key: value for key, value in metrics.items() if key.startswith("fedpw-")}
        assert own.keys() == legacy_metrics.keys()
        for key, value in own.items():
            told = legacy_metrics[key]
            assert (json.loads(told) if isinstance(told, str) else told) == value, key
        assert legacy_metrics["fedpw-quarantined"] == legacy_metrics["fedpw-failed"] == 0


def test_packed_updates_are_what_travels() -> None:
    strategy = FedPW(
        adjustment="client",
        upload="packed",
        upload_dtype="float16",
        on_fit_config_fn=with_server_round,
        device="cpu",
    )
    proxies = app_clients(ClientApp(client_fn=legacy_client_of), [1, 2, 3])
    parameters = INITIAL
    for server_round in (1, 2):
        parameters, _ = fit_round(strategy, proxies, parameters, server_round)
    results, _ = ask(strategy, proxies, parameters, 3)
    dense = len(parameters.tensors[0])
    assert len(results) == 3
    for _, result in results:
        assert len(result.parameters.tensors[0]) < dense
        assert b"FPW1" in result.parameters.tensors[0]


def test_int64_counters_stay_int64_and_follow_the_clients() -> None:
    """Flower's own in-place average gives 0 here."""
    counted = {11: 20, 12: 40}

    def fit(node: int, ins: FitIns) -> FitRes:
        model = named(ins.parameters)
        counter = torch.tensor(counted[node]).numpy()
        return fit_result({**model, "norm.num_batches_tracked": counter})

    strategy = FedPW(array_names=NAMES)
    parameters, metrics = fit_round(strategy, [PlainClient(node, fit) for node in counted])
    # Nobody moved and the losses are equal, so the weights are.
    assert json.loads(str(metrics["fedpw-weight"])) == [0.5, 0.5]
    counter = named(parameters)["norm.num_batches_tracked"]
    assert counter.dtype == "int64"
    assert counter.shape == ()
    assert counter == 30


def test_column_major_results_give_the_same_model() -> None:
    def column_major(node: int, ins: FitIns) -> FitRes:
        result = good_fit(node, ins)
        model = named(result.parameters)
        turned = {**model, "body.weight": model["body.weight"].copy(order="F")}
        return fit_result(turned, result.metrics["train_loss"], result.num_examples)

    nodes = [11, 12, 13]
    expected, _ = fit_round(FedPW(array_names=NAMES), [PlainClient(n, good_fit) for n in nodes])
    parameters, _ = fit_round(
        FedPW(array_names=NAMES), [PlainClient(node, column_major) for node in nodes]
    )
    assert parameters == expected
