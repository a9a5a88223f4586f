"""The authors' rounds, replayed through the legacy strategy with real FitRes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from flwr.common import FitIns, FitRes, ndarrays_to_parameters, parameters_to_ndarrays
from legacy_federation import PlainClient, ask, fit_result

from fedpw_flwr.legacy import FedPW

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
RUNS = ["cnn_bn_5clients", "mlp_6clients"]


def golden_run(name: str) -> dict[str, np.ndarray]:
    file = GOLDEN / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"needs the golden rounds, {file.name}, in ../shared/golden")
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def golden_model(golden: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: golden[f"{prefix}/{name}"] for name in golden["names"].tolist()}


@pytest.mark.parametrize("identities", ["client-id", "node id"])
@pytest.mark.parametrize("run", RUNS)
def test_golden_rounds_come_out_of_the_legacy_strategy(run: str, identities: str) -> None:
    golden = golden_run(run)
    rounds, clients = golden["losses"].shape
    by_node_id = identities == "node id"
    # With client-ids, nodes are numbered against the clients' order: only the identity may count.
    number_of = {100 + k if by_node_id else 900 - 7 * k: k for k in range(clients)}
    names = golden["names"].tolist()
    strategy = FedPW(
        avg_drop_rate=float(golden["avg_drop_rate"]),
        beta=float(golden["beta"]),
        clip_weights=False,
        device="cpu",
        array_names=names,
        on_fit_config_fn=lambda server_round: {"round": server_round - 1},
    )

    def recorded(node: int, ins: FitIns) -> FitRes:
        t, k = int(ins.config["round"]), number_of[node]
        model = golden_model(golden, f"round{t}/client{k}")
        identity = {} if by_node_id else {"client-id": k}
        return fit_result(model, float(golden["losses"][t, k]), **identity)

    proxies = [PlainClient(node, recorded) for node in number_of]
    shuffle = random.Random(run)

    start = golden_model(golden, "init")
    for t in range(rounds):
        model = ndarrays_to_parameters(list(start.values()))
        results, failures = ask(strategy, proxies, model, t + 1)
        shuffle.shuffle(results)
        parameters, metrics = strategy.aggregate_fit(t + 1, results, failures)

        assert parameters is not None
        assert metrics["fedpw-quarantined"] == metrics["fedpw-failed"] == 0
        expected_ids = list(number_of) if by_node_id else list(range(clients))
        assert json.loads(str(metrics["fedpw-client-id"])) == expected_ids
        for metric, key in {
            "fedpw-weight": "weights",
            "fedpw-p": "direction_term",
            "fedpw-q": "loss_term",
            "fedpw-loss": "losses",
        }.items():
            np.testing.assert_allclose(
                json.loads(str(metrics[metric])), golden[key][t], rtol=0, atol=1e-6, err_msg=key
            )
        # The files give the first round's rates too, but nothing is dropped in it.
        rates = golden["drop_rates"][t] if t else np.zeros(clients)
        np.testing.assert_allclose(
            json.loads(str(metrics["fedpw-drop-rate"])), rates, rtol=0, atol=1e-6
        )
        expected = golden_model(golden, f"round{t}/global")
        for name, array in zip(names, parameters_to_ndarrays(parameters), strict=True):
            assert array.dtype == start[name].dtype
            assert array.shape == start[name].shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(
                    array, expected[name], rtol=0, atol=1e-5, err_msg=f"{name}, round {t}"
                )
        start = {name: np.asarray(array) for name, array in expected.items()}
