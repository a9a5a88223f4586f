"""FedPW is the same method under both APIs: equal models, memory and metrics."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from support.federation import LEGACY, MESSAGE, memory, with_lists
from support.legacy_federation import INITIAL, NAMES, NoiseClient, app_clients, app_grid, fit_round
from support.legacy_federation import ask as ask_legacy
from support.records import array_record
from support.small_model import MODEL as SMALL_MODEL

from fedpw_flwr import FedPWClient, numpy_client_app

COHORTS = [[1, 2, 3, 4], [1, 2, 3, 4], [2, 4], [1, 3, 4, 5], [1, 2, 3, 4, 5], [3]]
"""Who takes part in each round: everyone, some, a newcomer, one alone."""

PACKED = {"adjustment": "client", "upload": "packed"}
SETTINGS: dict[str, dict[str, Any]] = {
    "server": {},
    "server, the paper's weights": {"clip_weights": False},
    "server, other rates": {"avg_drop_rate": 0.5, "beta": 0.9},
    "server, trainable by name": {"trainable": ["body.weight"]},
    "without adapted weights": {"adapt_weights": False},
    "without adjustment": {"adjust_parameters": False},
    "without both": {"adapt_weights": False, "adjust_parameters": False},
    "client, dense": {"adjustment": "client"},
    "client, packed": PACKED,
    "client, packed float16": {**PACKED, "upload_dtype": "float16"},
    "client, packed bfloat16": {**PACKED, "upload_dtype": "bfloat16"},
}


def client_of(context: Context) -> NumPyClient:
    """FedPWClients, and one client as it was before; odd ones name themselves."""
    number = int(context.node_config["partition-id"])
    client = NoiseClient(number)
    if number == 4:
        return client
    client_id = 100 - number if number % 2 else None
    return FedPWClient(client, device="cpu", client_id=client_id)


LEGACY_APP = ClientApp(client_fn=lambda context: client_of(context).to_client())


@pytest.mark.parametrize("setting", SETTINGS)
def test_numpy_clients_get_the_same_models_memory_and_metrics(setting: str) -> None:
    options = {**SETTINGS[setting], "device": "cpu", "min_train_nodes": 1, "min_available_nodes": 1}
    legacy, message = LEGACY.strategy(array_names=NAMES, **options), MESSAGE.strategy(**options)
    parameters, arrays = INITIAL, array_record(SMALL_MODEL)
    for server_round, nodes in enumerate(COHORTS, start=1):
        proxies = app_clients(LEGACY_APP, nodes)
        parameters, told = fit_round(legacy, proxies, parameters, server_round)
        clients = app_grid(numpy_client_app(client_of), nodes).clients
        arrays, metrics = MESSAGE.train_round(message, clients, arrays, server_round)
        assert parameters.tensors == [array.data for array in arrays.values()]
        assert memory(legacy) == memory(message)
        own = {key: value for key, value in metrics.items() if key.startswith("fedpw-")}
        assert with_lists(told) == own
        assert LEGACY.counts(told) == (0, 0, 0)


def test_packed_updates_are_what_travels_under_the_legacy_api() -> None:
    strategy = LEGACY.strategy(array_names=NAMES, **SETTINGS["client, packed float16"])
    proxies, parameters = app_clients(LEGACY_APP, [1, 2, 3]), INITIAL
    for server_round in (1, 2):
        parameters, _ = fit_round(strategy, proxies, parameters, server_round)
    results, _ = ask_legacy(strategy, proxies, parameters, 3)
    assert len(results) == 3
    for _, result in results:
        assert len(result.parameters.tensors[0]) < len(parameters.tensors[0])
        assert b"FPW1" in result.parameters.tensors[0]
