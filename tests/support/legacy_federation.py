"""A federation of Flower's legacy server inside one process.

Server, client manager and strategy are Flower's own and the real ones; only the network is missing.
A plain client is a function from its node and Flower's instructions to a result. An app client is a
whole ClientApp behind Flower's own proxy, so its records are made and read by Flower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    ReconnectIns,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.history import History
from flwr.server.server import FitResultsAndFailures, evaluate_clients, fit_clients
from flwr.server.strategy import Strategy

from fedpw_flwr.legacy import CheckpointedServer
from support.grid import ONE_AT_A_TIME, ClientsGrid, running
from support.small_model import MODEL, trained

Fit = Callable[[int, FitIns], FitRes]
Evaluate = Callable[[int, EvaluateIns], EvaluateRes]
Metrics = dict[str, Scalar]

OK = Status(Code.OK, "")
NAMES = list(MODEL)
INITIAL = ndarrays_to_parameters(list(MODEL.values()))
"""The model of the strategy's tests, without its names."""


class PlainClient(ClientProxy):
    """A client that is two functions; Flower's legacy server calls it directly."""

    def __init__(self, node_id: int, fit: Fit, evaluate: Evaluate | None = None) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id
        self._fit = fit
        self._evaluate = good_evaluation if evaluate is None else evaluate

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        with ONE_AT_A_TIME:
            return self._fit(self.node_id, ins)

    def evaluate(
        self, ins: EvaluateIns, timeout: float | None, group_id: int | None
    ) -> EvaluateRes:
        with ONE_AT_A_TIME:
            return self._evaluate(self.node_id, ins)

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        return GetPropertiesRes(OK, {})

    def get_parameters(
        self, ins: GetParametersIns, timeout: float | None, group_id: int | None
    ) -> GetParametersRes:
        return GetParametersRes(OK, INITIAL)

    def reconnect(
        self, ins: ReconnectIns, timeout: float | None, group_id: int | None
    ) -> DisconnectRes:
        return DisconnectRes("")


def fit_result(
    model: Mapping[str, np.ndarray],
    loss: Scalar | None = 1.0,
    num_examples: int = 10,
    **metrics: Scalar,
) -> FitRes:
    if loss is not None:
        metrics["train_loss"] = loss
    return FitRes(OK, ndarrays_to_parameters(list(model.values())), num_examples, metrics)


def named(parameters: Parameters) -> dict[str, np.ndarray]:
    return dict(zip(MODEL, parameters_to_ndarrays(parameters), strict=True))


def good_fit(node: int, ins: FitIns) -> FitRes:
    """The result of a well-behaved client; everything in it follows from its node and the model."""
    model = named(ins.parameters)
    seen = int(model["norm.num_batches_tracked"])
    loss = 0.5 + 0.1 * (node % 7) + 3.0 / seen
    return fit_result(trained(model, (node, seen)), loss, 10 + node % 5)


def good_evaluation(node: int, ins: EvaluateIns) -> EvaluateRes:
    return EvaluateRes(OK, 0.1 * (node % 7), 10 + node % 5, {"accuracy": 0.5 + 0.01 * (node % 7)})


def plain_clients(
    nodes: Iterable[int], others: Mapping[int, Fit] | None = None
) -> list[ClientProxy]:
    """Well-behaved clients, and others at some of the nodes."""
    others = others or {}
    return [PlainClient(node, others.get(node, good_fit)) for node in nodes]


def app_grid(app: ClientApp, nodes: Iterable[int]) -> ClientsGrid:
    """Nodes that run a ClientApp; the partition of a node is its id."""
    contexts = {node: Context(1, node, {"partition-id": node}, RecordDict(), {}) for node in nodes}
    return ClientsGrid({node: running(app, context) for node, context in contexts.items()})


def app_clients(app: ClientApp, nodes: Iterable[int]) -> list[ClientProxy]:
    """Nodes that run a ClientApp, behind the proxies by which Flower's server reaches them."""
    grid = app_grid(app, nodes)
    return [GridClientProxy(node, grid, run_id=1) for node in grid.clients]


def manager_of(clients: Iterable[ClientProxy]) -> SimpleClientManager:
    manager = SimpleClientManager()
    for client in clients:
        manager.register(client)
    return manager


def ask(
    strategy: Strategy, clients: Sequence[ClientProxy], parameters: Parameters, server_round: int
) -> FitResultsAndFailures:
    """The first half of a training round, as Flower's server runs it."""
    instructions = strategy.configure_fit(server_round, parameters, manager_of(clients))
    return fit_clients(instructions, max_workers=None, timeout=None, group_id=server_round)


def fit_round(
    strategy: Strategy,
    clients: Sequence[ClientProxy],
    parameters: Parameters = INITIAL,
    server_round: int = 1,
) -> tuple[Parameters, Metrics]:
    """One training round, as Flower's server runs it."""
    new_parameters, metrics = strategy.aggregate_fit(
        server_round, *ask(strategy, clients, parameters, server_round)
    )
    assert new_parameters is not None
    return new_parameters, metrics


def evaluate_round(
    strategy: Strategy, clients: Sequence[ClientProxy], server_round: int = 1
) -> tuple[float | None, Metrics]:
    instructions = strategy.configure_evaluate(server_round, INITIAL, manager_of(clients))
    results, failures = evaluate_clients(
        instructions, max_workers=None, timeout=None, group_id=server_round
    )
    return strategy.aggregate_evaluate(server_round, results, failures)


def run_server(
    strategy: Strategy, clients: Iterable[ClientProxy], num_rounds: int, **checkpoints: Any
) -> tuple[History, Parameters]:
    """A whole run of Flower's legacy server, or of ours with checkpoints: history, last model."""
    kind = partial(CheckpointedServer, **checkpoints) if checkpoints else Server
    server = kind(client_manager=manager_of(clients), strategy=strategy)
    history, _ = server.fit(num_rounds, timeout=None)
    return history, server.parameters


class NoiseClient(NumPyClient):
    """Trains by adding noise that follows from its number and the round."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_parameters(self, config: dict[str, Scalar]) -> list[np.ndarray]:
        return [array.copy() for array in MODEL.values()]

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Scalar]
    ) -> tuple[list[np.ndarray], int, Metrics]:
        server_round = int(config["server-round"])
        model = trained(dict(zip(MODEL, parameters, strict=True)), (self.number, server_round))
        loss = 0.5 + 0.1 * (self.number % 7) + 0.3 / server_round
        arrays = [np.asarray(array) for array in model.values()]
        return arrays, 10 + self.number, {"train_loss": loss}

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Scalar]
    ) -> tuple[float, int, Metrics]:
        loss = float(np.abs(parameters[0]).mean())
        return loss, 10 + self.number, {"accuracy": 0.1 * self.number}


def with_server_round(server_round: int) -> dict[str, Scalar]:
    """What a Message-API strategy tells its clients by itself."""
    return {"server-round": server_round}
