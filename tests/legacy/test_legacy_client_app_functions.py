"""ClientApp functions cannot talk to a legacy server: the run ends, and the error says what to do.

Failing NumPyClients are something else: they are failures, and the run goes on.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, NDArrays, Parameters, Scalar, Status
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from support.grid import Client as GridClient
from support.grid import ClientsGrid
from support.legacy_federation import (
    INITIAL,
    NoiseClient,
    app_grid,
    fit_round,
    plain_clients,
    run_server,
)

from fedpw_flwr import fedpw_mod, numpy_client_app
from fedpw_flwr.legacy import FedPW

NODES = [1, 2, 3]
Wire = Callable[[GridClient], GridClient]


def as_reported_by(text_of: Callable[[Exception], str]) -> Wire:
    """An exception arrives as a text, and this is how it reads."""

    def wire(client: GridClient) -> GridClient:
        def answer(message: Message) -> list[Message]:
            try:
                return list(client(message))
            except Exception as error:
                raise RuntimeError(text_of(error)) from None

        return answer

    return wire


WIRES: dict[str, Wire] = {
    "in process": lambda client: client,
    "Ray": as_reported_by(lambda error: traceback.format_exc()),
    "SuperNodes": as_reported_by(lambda error: f"{type(error)}:<'{error}'>"),
}


def clients_of(app: ClientApp, wire: Wire) -> list[ClientProxy]:
    grid = ClientsGrid(
        {node: wire(client) for node, client in app_grid(app, NODES).clients.items()}
    )
    return [GridClientProxy(node, grid, run_id=1) for node in NODES]


def functions(take: Callable[[Message], ArrayRecord], **arguments: Any) -> ClientApp:
    """ClientApp functions that find their arrays in a message in their own way."""
    app = ClientApp()

    @app.train(**arguments)
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"train_loss": 0.5, "num-examples": 3})
        content = RecordDict({"arrays": take(message), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def by_name(message: Message) -> ArrayRecord:
    return cast(ArrayRecord, message.content["arrays"])


def by_configuration(message: Message) -> ArrayRecord:
    assert message.content["config"]["lr"]
    return ArrayRecord()


FUNCTIONS: dict[str, ClientApp] = {
    "read content['arrays']": functions(by_name),
    "read content['config']": functions(by_configuration),
    "take the first ArrayRecord": functions(
        lambda message: next(iter(message.content.array_records.values()))
    ),
    "have fedpw_mod": functions(by_name, mods=[fedpw_mod]),
    "come from numpy_client_app": numpy_client_app(lambda context: NoiseClient(1)),
}


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("functions", FUNCTIONS)
def test_functions_end_the_run_with_the_fix(functions: str, wire: Wire) -> None:
    strategy = FedPW(initial_parameters=INITIAL)
    with pytest.raises(RuntimeError, match=r"ClientApp functions \(@app.train\)") as raised:
        run_server(strategy, clients_of(FUNCTIONS[functions], wire), 2)
    assert "from fedpw_flwr import FedPW" in str(raised.value)
    assert "ClientApp(client_fn=...)" in str(raised.value)


def test_one_numpy_client_among_them_is_enough_to_go_on() -> None:
    odd = clients_of(FUNCTIONS["read content['arrays']"], WIRES["in process"])
    _, metrics = fit_round(FedPW(), [*odd, *plain_clients([9])])
    assert metrics["fedpw-client-id"] == "[9]"
    assert metrics["fedpw-failed"] == len(NODES)


class Broken(NumPyClient):
    """A NumPyClient with a mistake in its fit."""

    def __init__(self, mistake: Callable[[NDArrays], tuple[NDArrays, int, Any]]) -> None:
        self.mistake = mistake

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        return self.mistake(parameters)


def wrong_key(parameters: NDArrays) -> tuple[NDArrays, int, Any]:
    data: dict[str, NDArrays] = {"labels": parameters}
    return data["images"], 1, {}


def wrong_metric(parameters: NDArrays) -> tuple[NDArrays, int, Any]:
    return parameters, 1, {"train_loss": np.float32(0.5)}


@pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES)
@pytest.mark.parametrize("mistake", [wrong_key, wrong_metric])
def test_numpy_clients_that_all_fail_are_failures(
    mistake: Callable[[NDArrays], tuple[NDArrays, int, Any]], wire: Wire
) -> None:
    def client_fn(context: Context) -> Client:
        return Broken(mistake).to_client()

    clients = clients_of(ClientApp(client_fn=client_fn), wire)
    parameters, metrics = fit_round(FedPW(), clients)
    assert parameters == INITIAL
    assert metrics == {"fedpw-quarantined": 0, "fedpw-failed": len(NODES), "fedpw-empty": 0}


def test_results_that_say_why_they_failed_are_no_functions() -> None:
    """Only a Client of the legacy API gives a status."""

    def caught(node: int, ins: FitIns) -> FitRes:
        status = Status(Code.FIT_NOT_IMPLEMENTED, "KeyError: 'config'")
        return FitRes(status, Parameters([], ""), 0, {})

    _, metrics = fit_round(FedPW(), plain_clients(NODES, dict.fromkeys(NODES, caught)))
    assert metrics["fedpw-failed"] == len(NODES)
