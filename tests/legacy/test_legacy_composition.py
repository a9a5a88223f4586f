"""Privacy wrappers and secure aggregation are refused at start, classes in a wrong order too."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.server import LegacyContext, ServerConfig
from flwr.server import strategy as flowers
from flwr.server.strategy import FedAdam
from flwr.server.workflow import SecAggPlusWorkflow, SecAggWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, Key
from flwr.server.workflow.default_workflows import default_init_params_workflow
from support.grid import ClientsGrid
from support.legacy_federation import INITIAL, manager_of, plain_clients, run_server

from fedpw_flwr.legacy import FedPW

NODES = [1, 2, 3, 4]


ARGUMENTS: dict[str, dict[str, Any]] = {
    "DPFedAvgFixed": {"num_sampled_clients": 4, "clip_norm": 0.5},
    "DPFedAvgAdaptive": {"num_sampled_clients": 4, "clip_count_stddev": 1.0},
    "FixedClipping": {"noise_multiplier": 1.0, "clipping_norm": 0.5, "num_sampled_clients": 4},
    "AdaptiveClipping": {"noise_multiplier": 0.1, "num_sampled_clients": 4},
}
"""Arguments of Flower's privacy wrappers, by how their names end."""


@pytest.mark.parametrize(
    "wrapper",
    [name for name in flowers.__all__ if name.startswith(("DifferentialPrivacy", "DPFedAvg"))],
)
def test_central_privacy_is_refused_when_the_server_starts(wrapper: str) -> None:
    [arguments] = [given for name, given in ARGUMENTS.items() if wrapper.endswith(name)]
    strategy = getattr(flowers, wrapper)(FedPW(initial_parameters=INITIAL), **arguments)
    with pytest.raises(ValueError, match=f"inside {wrapper}: .*LocalDpMod"):
        run_server(strategy, plain_clients(NODES), 1)


@pytest.mark.parametrize(
    "workflow",
    [SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2), SecAggWorkflow(0.7)],
    ids=lambda workflow: type(workflow).__name__,
)
def test_secure_aggregation_is_refused_before_a_client_is_asked(
    workflow: SecAggPlusWorkflow,
) -> None:
    grid = ClientsGrid({})
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        config=ServerConfig(num_rounds=1),
        strategy=FedPW(initial_parameters=INITIAL),
        client_manager=manager_of(plain_clients(NODES)),
    )
    default_init_params_workflow(grid, context)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    name = type(workflow).__name__
    refused = f"inside {name}: .*secagg_mod .*out of every client.*secure aggregation with FedAvg"
    with pytest.raises(ValueError, match=refused):
        workflow(grid, context)
    assert grid.sent == []


def test_numbers_of_clients_that_a_subclass_chooses_are_kept() -> None:
    class Hook(FedPW):
        def num_fit_clients(self, num_available_clients: int) -> tuple[int, int]:
            return 3, 2

        def num_evaluation_clients(self, num_available_clients: int) -> tuple[int, int]:
            return 9, 9

    manager = manager_of(plain_clients(NODES))
    assert len(Hook().configure_fit(1, INITIAL, manager)) == 3
    # Of 4 that are there, no more can be asked.
    assert len(Hook().configure_evaluate(1, INITIAL, manager)) == 4


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        (flowers.FedProx, r"put FedProx in front, class Mine\(FedProx, FedPW\)"),
        (flowers.FedMedian, "FedMedian aggregates by itself and .* FedPW; leave it out; FedAdam"),
        (FedAdam, r"put FedAdam in front, class Mine\(FedAdam, FedPW\)"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_strategy_that_would_be_skipped_behind_fedpw_is_refused(
    behind: type[flowers.FedAvg], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        type("Mine", (FedPW, behind), {})
