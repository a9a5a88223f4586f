"""Real simulations of Flower's legacy server: NumPyClients train, ClientApp functions are refused.

Run as a script with the name of a federation, this file is the simulation itself: Flower's
`run_simulation` with Ray, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Parameters, Scalar, ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from support.commands import QUIET, marked
from torch import Tensor, nn
from torch.nn import functional

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import FedPW

pytestmark = pytest.mark.long

CLIENTS, ROUNDS = 4, 3
NDArrays = list[np.ndarray]
Simulation = Callable[[str], subprocess.CompletedProcess[str]]


def network() -> nn.Module:
    """A classifier of points into three classes, with counters among its arrays."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def points(seed: int) -> tuple[Tensor, Tensor]:
    """Points round the corners of a triangle, which every client sees from an angle of its own."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (120,), generator=random)
    angles = 2 * torch.pi * labels / 3 + 0.2 * seed
    corners = torch.stack([angles.cos(), angles.sin()], dim=1)
    return corners + 0.4 * torch.randn(corners.shape, generator=random), labels


def arrays_of(model: nn.Module) -> NDArrays:
    return [tensor.numpy() for tensor in model.state_dict().values()]


def model_of(arrays: NDArrays) -> nn.Module:
    model = network()
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    return model


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs), labels))


class PointsClient(NumPyClient):
    """An ordinary NumPyClient, as it was before FedPW."""

    def __init__(self, partition: int) -> None:
        self.inputs, self.labels = points(partition)

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        model = model_of(parameters)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(self.inputs), self.labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        mean_loss = sum(losses) / len(losses)
        return arrays_of(model), len(self.labels), {"train_loss": mean_loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        return loss_of(model_of(parameters), self.inputs, self.labels), len(self.labels), {}


def numpy_clients() -> ClientApp:
    def client_fn(context: Context) -> Client:
        partition = int(context.node_config["partition-id"])
        client = PointsClient(partition)
        return FedPWClient(client, device="cpu", client_id=partition).to_client()

    return ClientApp(client_fn=client_fn)


class SilentClient(PointsClient):
    """One whose training reports no loss, as several of Flower's quickstarts have it."""

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        arrays, num_examples, _ = super().fit(parameters, config)
        return arrays, num_examples, {}


def silent_clients() -> ClientApp:
    def client_fn(context: Context) -> Client:
        return SilentClient(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn)


def functions_by_name() -> ClientApp:
    """Train as most ClientApps do: the records have the names that FedAvg gives them."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = cast(ArrayRecord, message.content["arrays"])
        model = network()
        model.load_state_dict(arrays.to_torch_state_dict())
        metrics = MetricRecord({"train_loss": 0.5, "num-examples": 3})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def functions_by_kind() -> ClientApp:
    """Train on whatever ArrayRecord comes, and reply under names of its own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = next(iter(message.content.array_records.values()))
        metrics = MetricRecord({"train_loss": 0.5, "num-examples": 3})
        return Message(RecordDict({"model": arrays, "metrics": metrics}), reply_to=message)

    return app


FEDERATIONS: dict[str, Callable[[], ClientApp]] = {
    "numpy clients": numpy_clients,
    "clients without a loss": silent_clients,
    "functions by name": functions_by_name,
    "functions by kind": functions_by_kind,
}


def simulate(federation: str) -> dict[str, Any]:
    """Run a federation of FedPW's legacy strategy, and return what can be seen of the run."""
    test_set = [torch.cat(tensors) for tensors in zip(*map(points, range(CLIENTS)), strict=True)]
    losses: list[float] = []
    dtypes: list[str] = []

    def evaluate(
        server_round: int, arrays: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        losses.append(loss_of(model_of(arrays), *test_set))
        dtypes[:] = [str(array.dtype) for array in arrays]
        return losses[-1], {}

    initial: Parameters = ndarrays_to_parameters(arrays_of(network()))
    strategy = FedPW(
        min_available_clients=CLIENTS,
        min_fit_clients=CLIENTS,
        initial_parameters=initial,
        array_names=list(network().state_dict()),
        evaluate_fn=evaluate,
        adjustment="client",
        loss_source="evaluate" if federation == "clients without a loss" else "train",
        device="cpu",
    )

    def server_fn(context: Context) -> ServerAppComponents:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))

    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=FEDERATIONS[federation](),
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    consensus = strategy.method.adjustment_state.consensus
    return {
        "losses": losses,
        "dtypes": dtypes,
        "rounds": strategy.state.rounds,
        "clients": sorted(strategy.method.adjustment_state.relative_losses),
        "evaluated": sorted(strategy.method.evaluated.last),
        "consensus round": None if consensus is None else consensus.round,
    }


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[Simulation]:
    """Run federations in processes of their own; end whatever Ray leaves behind."""

    def run(federation: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, __file__, federation, str(tmp_path / "result.json")],
            cwd=tmp_path,
            env={
                **{**os.environ, **QUIET, **mark, "FLWR_HOME": str(tmp_path / "home")},
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    with marked() as mark:
        yield run


def test_numpy_clients_learn_under_a_legacy_server_app(
    simulation: Simulation, tmp_path: Path
) -> None:
    done = simulation("numpy clients")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["losses"]) == ROUNDS + 1
    assert result["losses"][-1] < 0.7 * result["losses"][0]
    # Masked from the second round on, so the third one was measured to rescale a fourth.
    assert result["rounds"] == ROUNDS
    assert result["consensus round"] == ROUNDS
    assert result["clients"] == list(range(CLIENTS))
    assert result["dtypes"] == [str(array.dtype) for array in arrays_of(network())]
    assert "int64" in result["dtypes"]
    whole = f"aggregate_fit: Received {CLIENTS} usable results, 0 quarantined and 0 failures"
    assert done.stderr.count(whole) == ROUNDS


def test_numpy_clients_whose_training_reports_no_loss_need_one_argument(
    simulation: Simulation, tmp_path: Path
) -> None:
    done = simulation("clients without a loss")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["losses"][-1] < 0.7 * result["losses"][0]
    # They say no client id: all are known by node, alike in training and evaluation.
    assert len(result["evaluated"]) == CLIENTS
    assert result["evaluated"] == result["clients"]


@pytest.mark.parametrize("federation", ["functions by name", "functions by kind"])
def test_client_app_functions_end_the_run_with_the_fix(
    simulation: Simulation, federation: str
) -> None:
    done = simulation(federation)
    assert done.returncode != 0
    said = "RuntimeError: the clients are ClientApp functions (@app.train)"
    _, found, fix = done.stderr.rpartition(said)
    assert found, done.stderr
    assert "from fedpw_flwr import FedPW" in fix
    assert "ClientApp(client_fn=...)" in fix


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(simulate(sys.argv[1])))
