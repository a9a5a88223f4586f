"""BatchNorm in a list of arrays without names: after some rounds its variance is still one.

Real networks train in real ClientApps behind both of Flower's server APIs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from support.clients import NODES, grid_of
from support.legacy_federation import app_clients, run_server
from torch import Tensor, nn

from fedpw_flwr import FedPW, FedPWClient, fedpw_mod, numpy_client_app
from fedpw_flwr.legacy import FedPW as LegacyFedPW

Arrays = list[npt.NDArray[Any]]

ROUNDS = 4
VARIANCE = 5
"""Index of the running variance among the arrays."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def names_of(model: nn.Module, *, counter: bool) -> list[str]:
    """Return the names in their order; Keras and JAX have no counter of batches."""
    return [name for name in model.state_dict() if counter or "num_batches" not in name]


def arrays_of(model: nn.Module, *, counter: bool = True) -> Arrays:
    state = model.state_dict()
    return [state[name].numpy().copy() for name in names_of(model, counter=counter)]


def loaded(arrays: Arrays) -> nn.Module:
    model = network()
    names = names_of(model, counter=len(arrays) == len(model.state_dict()))
    tensors = (torch.from_numpy(np.array(array)) for array in arrays)
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model


def train(node: int, arrays: Arrays) -> tuple[Arrays, float]:
    """Train on inputs so small that the running variance falls from 1 to nearly 0."""
    model = loaded(arrays).train()
    generator = torch.Generator().manual_seed(node)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(15):
        inputs = 0.03 * torch.randn(16, 6, generator=generator)
        labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.03).long()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    counter = len(arrays) == len(model.state_dict())
    return arrays_of(model, counter=counter), float(np.mean(losses)) * (1 + 0.2 * (node % 3))


class Trains(NumPyClient):
    """The legacy client of many projects: parameters are lists."""

    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        trained, loss = train(self.node, parameters)
        return trained, 10, {"train_loss": loss}


def train_app(mods: list[Any]) -> ClientApp:
    return numpy_client_app(lambda context: Trains(context.node_id), mods=mods)


def wrapped(context: Context) -> NumPyClient:
    return FedPWClient(Trains(context.node_id), device="cpu")


PACKED = {"adjustment": "client", "upload": "packed", "upload_dtype": "float16"}


def after_rounds(app: ClientApp, options: dict[str, Any], *, counter: bool = True) -> Arrays:
    strategy = FedPW(fraction_evaluate=0.0, device="cpu", **options)
    result = strategy.start(
        grid_of(app), ArrayRecord(arrays_of(network(), counter=counter)), num_rounds=ROUNDS
    )
    last = result.train_metrics_clientapp[ROUNDS]
    assert (last["fedpw-quarantined"], last["fedpw-failed"]) == (0, 0)
    assert last["fedpw-amplification"] > 1.0  # type: ignore[operator]
    return [array.numpy() for array in result.arrays.values()]


def after_legacy_rounds(app: ClientApp, options: dict[str, Any]) -> Arrays:
    initial = ndarrays_to_parameters(arrays_of(network()))
    strategy = LegacyFedPW(
        fraction_evaluate=0.0, device="cpu", initial_parameters=initial, **options
    )
    _, parameters = run_server(strategy, app_clients(app, NODES), ROUNDS)
    return parameters_to_ndarrays(parameters)


def assert_usable(arrays: Arrays) -> None:
    assert 0 <= arrays[VARIANCE].min() <= arrays[VARIANCE].max() < 0.5
    outputs: Tensor = loaded(arrays).eval()(0.03 * torch.randn(64, 6))
    assert bool(outputs.isfinite().all())


LEGACY = ClientApp(client_fn=lambda context: wrapped(context).to_client())


@pytest.mark.parametrize(
    ("run", "app", "options"),
    [
        pytest.param(after_rounds, train_app([]), {}, id="server"),
        pytest.param(after_rounds, numpy_client_app(wrapped), PACKED, id="client, packed"),
        pytest.param(after_legacy_rounds, LEGACY, PACKED, id="legacy, client, packed"),
    ],
)
def test_a_model_with_batch_norm_stays_usable_without_names(
    run: Callable[[ClientApp, dict[str, Any]], Arrays],
    app: ClientApp,
    options: dict[str, Any],
    flower_log: pytest.LogCaptureFixture,
) -> None:
    assert_usable(run(app, options))
    said = [line for line in flower_log.messages if "Arrays [4, 5] stand before a counter" in line]
    assert len(said) == 1
    assert "model.state_dict()" in said[0]


def test_a_variance_that_nothing_tells_from_a_weight_stays_one(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    assert_usable(after_rounds(train_app([fedpw_mod]), PACKED, counter=False))
    assert "no names" not in flower_log.text
