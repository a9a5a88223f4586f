"""Golden rounds, replayed through the strategy with real Messages."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flwr.app import Message
from support.golden import RUNS, GoldenRound, golden_run
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, train_content

from fedpw_flwr import FedPW


def grid_of(golden: GoldenRound, by_node_id: bool, shuffle: random.Random) -> ClientsGrid:
    """Clients at nodes that give the golden replies, in any order.

    Those that name themselves are at nodes numbered against their client ids: only these may count.
    """
    at_node = {k if by_node_id else 900 - 7 * k: k for k in golden.replies}

    def client(message: Message) -> list[Message]:
        k = at_node[message.metadata.dst_node_id]
        reply = golden.replies[k]
        content = train_content(
            dict(reply.model), loss=reply.loss, client_id=None if by_node_id else k
        )
        return [Message(content, reply_to=message)]

    return ClientsGrid(
        dict.fromkeys(at_node, client),
        arrange=lambda replies: shuffle.sample(replies, len(replies)),
    )


@pytest.mark.parametrize("by_node_id", [False, True], ids=["client id", "node id"])
@pytest.mark.parametrize("name", RUNS)
def test_golden_rounds_come_out_of_the_strategy(name: str, by_node_id: bool) -> None:
    run = golden_run(name)
    strategy = FedPW(**run.arguments(), device="cpu", min_train_nodes=1, min_available_nodes=1)
    shuffle = random.Random(name)
    for number, golden in enumerate(run.rounds, start=1):
        expected = golden.expected
        grid = grid_of(golden, by_node_id, shuffle)
        arrays, metrics = train_round(strategy, grid, array_record(golden.start), number)
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-client-id"] == list(expected.clients)
        for metric, values in {
            "fedpw-weight": expected.weights,
            "fedpw-p": expected.p,
            "fedpw-q": expected.q,
            "fedpw-loss": [golden.replies[k].loss for k in expected.clients],
            "fedpw-drop-rate": 0.0 if expected.rates is None else expected.rates,
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
