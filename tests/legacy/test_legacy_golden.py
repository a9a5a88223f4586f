"""Golden rounds, replayed through the legacy strategy with real FitRes."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from flwr.common import FitIns, FitRes, ndarrays_to_parameters, parameters_to_ndarrays
from legacy_federation import PlainClient, ask, fit_result
from support.golden import RUNS, golden_run

from fedpw_flwr.legacy import FedPW


@pytest.mark.parametrize("identities", ["client-id", "node id"])
@pytest.mark.parametrize("name", RUNS)
def test_golden_rounds_come_out_of_the_legacy_strategy(name: str, identities: str) -> None:
    run = golden_run(name)
    by_node_id = identities == "node id"
    names = list(run.rounds[0].start)
    strategy = FedPW(
        **run.arguments(),
        device="cpu",
        min_fit_clients=1,
        min_available_clients=1,
        array_names=names,
        on_fit_config_fn=lambda server_round: {"round": server_round - 1},
    )
    # With client-ids, nodes are numbered against the clients' order: only the identity may count.
    node_of = {k: 100 + k if by_node_id else 900 - 7 * k for k in range(8)}
    client_of = {node: k for k, node in node_of.items()}

    def recorded(node: int, ins: FitIns) -> FitRes:
        k = client_of[node]
        reply = run.rounds[int(ins.config["round"])].replies[k]
        identity = {} if by_node_id else {"client-id": k}
        return fit_result(dict(reply.model), reply.loss, **identity)

    shuffle = random.Random(name)
    for number, golden in enumerate(run.rounds, start=1):
        expected = golden.expected
        proxies = [PlainClient(node_of[k], recorded) for k in golden.replies]
        model = ndarrays_to_parameters(list(golden.start.values()))
        results, failures = ask(strategy, proxies, model, number)
        shuffle.shuffle(results)
        parameters, metrics = strategy.aggregate_fit(number, results, failures)

        assert parameters is not None
        assert metrics["fedpw-quarantined"] == metrics["fedpw-failed"] == 0
        assert json.loads(str(metrics["fedpw-client-id"])) == [
            node_of[k] if by_node_id else k for k in expected.clients
        ]
        rates = np.zeros(len(proxies)) if expected.rates is None else expected.rates
        for metric, values in {
            "fedpw-weight": expected.weights,
            "fedpw-p": expected.p,
            "fedpw-q": expected.q,
            "fedpw-loss": [golden.replies[k].loss for k in expected.clients],
            "fedpw-drop-rate": rates,
        }.items():
            np.testing.assert_allclose(
                json.loads(str(metrics[metric])),
                values,
                rtol=0,
                atol=1e-6,
                err_msg=f"{metric}, round {number}",
            )
        for key, array in zip(names, parameters_to_ndarrays(parameters), strict=True):
            assert array.dtype == golden.start[key].dtype
            assert array.shape == golden.start[key].shape
            np.testing.assert_allclose(
                array,
                expected.model[key],
                rtol=0,
                atol=1e-5 if array.dtype.kind == "f" else 0,
                err_msg=f"{key}, round {number}",
            )
