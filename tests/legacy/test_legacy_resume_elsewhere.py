"""A legacy run that goes on at other nodes, as every restart does, ends with the same bits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.client import NumPyClient
from flwr.common import (
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    NDArrays,
    ReconnectIns,
    ndarrays_to_parameters,
)
from flwr.server.client_proxy import ClientProxy

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import CheckpointedServer, FedPW, OrderedClientManager

SITES = 6
ROUNDS = 6
INITIAL = ndarrays_to_parameters([np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)])


class Killed(Exception):
    """Stands for a process that is killed: nothing after it is done."""


class Site(NumPyClient):
    """Trains by noise that follows from the site and the round; some sites are weak."""

    def __init__(self, site: int) -> None:
        self.site = site

    def fit(self, parameters: NDArrays, config: dict[str, Any]) -> Any:
        noise = np.random.default_rng([self.site, int(config["round"])])
        trained = [
            array - noise.normal(0.1, 0.05, array.shape).astype(np.float32) for array in parameters
        ]
        return trained, 8, {"train_loss": 0.4 + 0.3 * self.site + 0.01 * noise.random()}


class AtNode(ClientProxy):
    """A real client of this process behind Flower's interface."""

    def __init__(self, node_id: int, site: int) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id
        self._client = FedPWClient(Site(site), client_id=site).to_client()

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        return self._client.get_properties(ins)

    def get_parameters(
        self, ins: GetParametersIns, timeout: float | None, group_id: int | None
    ) -> GetParametersRes:
        raise NotImplementedError

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        return self._client.fit(ins)

    def evaluate(
        self, ins: EvaluateIns, timeout: float | None, group_id: int | None
    ) -> EvaluateRes:
        raise NotImplementedError

    def reconnect(
        self, ins: ReconnectIns, timeout: float | None, group_id: int | None
    ) -> DisconnectRes:
        return DisconnectRes("")


def run(
    folder: Path, adjustment: Any, fraction: float, killed_in: int | None = None, nodes: int = 0
) -> list[bytes]:
    """Run, or go on, at nodes whose ids follow from the number `nodes`."""

    def evaluate(server_round: int, arrays: Any, config: Any) -> None:
        if server_round == killed_in:
            raise Killed

    clients = OrderedClientManager()
    ids = np.random.default_rng(nodes).permutation(10**6)[:SITES].tolist()
    for site in np.random.default_rng(nodes).permutation(SITES).tolist():
        clients.register(AtNode(ids[site], site))
    strategy = FedPW(
        fraction_fit=fraction,
        fraction_evaluate=0.0,
        initial_parameters=INITIAL,
        on_fit_config_fn=lambda server_round: {"round": server_round},
        evaluate_fn=evaluate,
        adjustment=adjustment,
        device="cpu",
    )
    server = CheckpointedServer(
        client_manager=clients, strategy=strategy, checkpoint_dir=folder, resume=True
    )
    random.seed(0)
    server.fit(ROUNDS, timeout=None)
    return server.parameters.tensors


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("adjustment", ["server", "client"])
def test_a_run_that_goes_on_at_other_nodes_has_the_same_bits(
    adjustment: str, fraction: float, tmp_path: Path
) -> None:
    expected = run(tmp_path / "whole", adjustment, fraction)
    with pytest.raises(Killed):
        run(tmp_path / "killed", adjustment, fraction, killed_in=4, nodes=1)
    assert run(tmp_path / "killed", adjustment, fraction, nodes=2) == expected
