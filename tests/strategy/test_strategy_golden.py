"""Golden rounds, replayed through the strategy with real Messages."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from support.golden import RUNS, golden_run
from support.records import array_record, ndarrays, train_content

from fedpw_flwr import FedPW


class _Nodes:
    """As much of a Grid as sampling needs."""

    def __init__(self, node_ids: list[int]) -> None:
        self.node_ids = node_ids

    def get_node_ids(self) -> list[int]:
        return self.node_ids


@pytest.mark.parametrize("identities", ["client-id", "node id"])
@pytest.mark.parametrize("name", RUNS)
def test_golden_rounds_come_out_of_the_strategy(name: str, identities: str) -> None:
    run = golden_run(name)
    by_node_id = identities == "node id"
    strategy = FedPW(**run.arguments(), device="cpu", min_train_nodes=1, min_available_nodes=1)
    shuffle = random.Random(name)

    for number, golden in enumerate(run.rounds, start=1):
        expected = golden.expected
        # With client-ids, nodes are numbered against the clients' order: only the identity may
        # count.
        nodes = {k: 100 + k if by_node_id else 900 - 7 * k for k in golden.replies}
        messages = list(
            strategy.configure_train(
                number, array_record(golden.start), ConfigRecord(), _Nodes(list(nodes.values()))
            )
        )
        by_node = {message.metadata.dst_node_id: message for message in messages}
        replies = [
            Message(
                train_content(
                    dict(reply.model), loss=reply.loss, client_id=None if by_node_id else k
                ),
                reply_to=by_node[nodes[k]],
            )
            for k, reply in golden.replies.items()
        ]
        shuffle.shuffle(replies)
        arrays, metrics = strategy.aggregate_train(number, replies)

        assert arrays is not None
        assert metrics is not None
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-client-id"] == [
            nodes[k] if by_node_id else k for k in expected.clients
        ]
        rates = np.zeros(len(nodes)) if expected.rates is None else expected.rates
        for metric, values in {
            "fedpw-weight": expected.weights,
            "fedpw-p": expected.p,
            "fedpw-q": expected.q,
            "fedpw-loss": [golden.replies[k].loss for k in expected.clients],
            "fedpw-drop-rate": rates,
        }.items():
            np.testing.assert_allclose(
                metrics[metric], values, rtol=0, atol=1e-6, err_msg=f"{metric}, round {number}"
            )
        model = ndarrays(arrays)
        assert list(model) == list(expected.model)
        for key, array in model.items():
            assert array.dtype == golden.start[key].dtype
            np.testing.assert_allclose(
                array,
                expected.model[key],
                rtol=0,
                atol=1e-5 if array.dtype.kind == "f" else 0,
                err_msg=f"{key}, round {number}",
            )


@pytest.mark.parametrize("name", RUNS)
def test_both_ablations_off_is_flowers_fedavg_on_the_golden_clients(name: str) -> None:
    options = {"min_train_nodes": 1, "min_available_nodes": 1}
    ours = FedPW(adapt_weights=False, adjust_parameters=False, device="cpu", **options)
    flowers = FedAvg(**options)
    for number, golden in enumerate(golden_run(name).rounds, start=1):
        grid = _Nodes([client + 1 for client in golden.replies])
        results = []
        for strategy in (ours, flowers):
            messages = strategy.configure_train(
                number, array_record(golden.start), ConfigRecord(), grid
            )
            replies = []
            for message in messages:
                reply = golden.replies[message.metadata.dst_node_id - 1]
                content = train_content(
                    dict(reply.model), loss=reply.loss, num_examples=int(reply.examples)
                )
                replies.append(Message(content, reply_to=message))
            arrays, metrics = strategy.aggregate_train(number, replies)
            assert arrays is not None
            assert metrics is not None
            results.append((ndarrays(arrays), metrics["train_loss"]))
        (our_model, our_loss), (flowers_model, flowers_loss) = results
        assert our_loss == pytest.approx(flowers_loss, rel=1e-12)
        for key, array in flowers_model.items():
            if golden.start[key].dtype.kind == "f":
                np.testing.assert_allclose(our_model[key], array, rtol=1e-5, atol=1e-6)
            else:
                assert our_model[key] == np.rint(array)
