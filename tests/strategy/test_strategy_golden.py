"""The authors' rounds, replayed through the strategy with real Messages."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from model_records import array_record, ndarrays, train_content

from fedpw_flwr import FedPW

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
RUNS = ["cnn_bn_5clients", "mlp_6clients"]


class _Nodes:
    """As much of a Grid as sampling needs."""

    def __init__(self, node_ids: list[int]) -> None:
        self.node_ids = node_ids

    def get_node_ids(self) -> list[int]:
        return self.node_ids


def _golden_run(name: str) -> dict[str, np.ndarray]:
    file = GOLDEN / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"needs the golden rounds, {file.name}, in ../shared/golden")
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def _model(golden: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: golden[f"{prefix}/{name}"] for name in golden["names"].tolist()}


@pytest.mark.parametrize("identities", ["client-id", "node id"])
@pytest.mark.parametrize("run", RUNS)
def test_golden_rounds_come_out_of_the_strategy(run: str, identities: str) -> None:
    golden = _golden_run(run)
    rounds, clients = golden["losses"].shape
    by_node_id = identities == "node id"
    # With client-ids, nodes are numbered against the clients' order: only the identity may count.
    nodes = {k: 100 + k if by_node_id else 900 - 7 * k for k in range(clients)}
    strategy = FedPW(
        avg_drop_rate=float(golden["avg_drop_rate"]),
        beta=float(golden["beta"]),
        clip_weights=False,
        device="cpu",
    )
    grid = _Nodes(list(nodes.values()))
    shuffle = random.Random(run)

    start = _model(golden, "init")
    for t in range(rounds):
        messages = list(strategy.configure_train(t + 1, array_record(start), ConfigRecord(), grid))
        by_node = {message.metadata.dst_node_id: message for message in messages}
        replies = [
            Message(
                train_content(
                    _model(golden, f"round{t}/client{k}"),
                    loss=float(golden["losses"][t, k]),
                    client_id=None if by_node_id else k,
                ),
                reply_to=by_node[node],
            )
            for k, node in nodes.items()
        ]
        shuffle.shuffle(replies)
        arrays, metrics = strategy.aggregate_train(t + 1, replies)

        assert arrays is not None
        assert metrics is not None
        assert metrics["fedpw-quarantined"] == 0
        expected_ids = [nodes[k] for k in range(clients)] if by_node_id else list(range(clients))
        assert metrics["fedpw-client-id"] == expected_ids
        for metric, key in {
            "fedpw-weight": "weights",
            "fedpw-p": "direction_term",
            "fedpw-q": "loss_term",
            "fedpw-loss": "losses",
        }.items():
            np.testing.assert_allclose(
                metrics[metric], golden[key][t], rtol=0, atol=1e-6, err_msg=f"{key}, round {t}"
            )
        # The files give the first round's rates too, but nothing is dropped in it.
        rates = golden["drop_rates"][t] if t else np.zeros(clients)
        np.testing.assert_allclose(metrics["fedpw-drop-rate"], rates, rtol=0, atol=1e-6)
        model, expected = ndarrays(arrays), _model(golden, f"round{t}/global")
        assert list(model) == list(expected)
        for name, array in model.items():
            assert array.dtype == start[name].dtype
            if array.dtype.kind == "f":
                np.testing.assert_allclose(
                    array, expected[name], rtol=0, atol=1e-5, err_msg=f"{name}, round {t}"
                )
        start = {name: np.asarray(array) for name, array in expected.items()}


@pytest.mark.parametrize("run", RUNS)
def test_both_ablations_off_is_flowers_fedavg_on_the_golden_clients(run: str) -> None:
    golden = _golden_run(run)
    rounds, clients = golden["losses"].shape
    grid = _Nodes(list(range(1, clients + 1)))
    ours = FedPW(adapt_weights=False, adjust_parameters=False, device="cpu")
    flowers = FedAvg()
    for t in range(rounds):
        start = _model(golden, f"round{t - 1}/global" if t else "init")
        results = []
        for strategy in (ours, flowers):
            messages = strategy.configure_train(t + 1, array_record(start), ConfigRecord(), grid)
            replies = [
                Message(
                    train_content(
                        _model(golden, f"round{t}/client{message.metadata.dst_node_id - 1}"),
                        loss=float(golden["losses"][t, message.metadata.dst_node_id - 1]),
                        num_examples=10 * message.metadata.dst_node_id,
                    ),
                    reply_to=message,
                )
                for message in messages
            ]
            arrays, metrics = strategy.aggregate_train(t + 1, replies)
            assert arrays is not None
            assert metrics is not None
            results.append((ndarrays(arrays), metrics["train_loss"]))
        (our_model, our_loss), (flowers_model, flowers_loss) = results
        assert our_loss == pytest.approx(flowers_loss, rel=1e-12)
        for name, array in flowers_model.items():
            if start[name].dtype.kind == "f":
                np.testing.assert_allclose(our_model[name], array, rtol=1e-5, atol=1e-6)
            else:
                assert our_model[name] == np.rint(array)
