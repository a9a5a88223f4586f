"""Whatever clients send, in whatever order, the run goes on with a sound model."""

from __future__ import annotations

import numpy as np
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.federation import assert_sound, assert_sound_metrics
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, train_content

from fedpw_flwr import FedPW

NODES = [51, 52, 53, 54, 55]
FUZZ = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    model_scale=st.sampled_from([0.0, 1e-30, 1.0, 1e4]),
    steps=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([0.0, 1e-40, 1e-20, 1e-3, 1.0, -1.0, 100.0]),
                st.sampled_from([0.0, 5e-324, 1e-300, 1e-9, 0.5, 3.0, 1e9, 1e300]),
                st.sampled_from([0, 1, 10**9, 2**62]),
            ),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    alike=st.booleans(),
)
def test_extreme_but_honest_clients_give_a_finite_model(
    dtype: str, model_scale: float, steps: list[list[tuple[float, float, int]]], alike: bool
) -> None:
    noise = np.random.default_rng(0).standard_normal((6, 5))
    start = {"w": (model_scale * noise).astype(dtype), "n": np.array(3)}
    strategy = FedPW(min_train_nodes=1, min_available_nodes=1)
    arrays, trained_rounds = array_record(start), 0
    for server_round, clients in enumerate(steps, start=1):

        def client(
            message: Message, clients: list[tuple[float, float, int]] = clients
        ) -> list[Message]:
            node = message.metadata.dst_node_id
            scale, loss, examples = clients[node]
            direction = np.random.default_rng(7 if alike else node).standard_normal((6, 5))
            sent = ndarrays(message.content["arrays"])
            moved = (sent["w"].astype(np.float64) + scale * direction).astype(dtype)
            content = train_content({"w": moved, "n": sent["n"] + 1}, loss, examples)
            return [Message(content, reply_to=message)]

        grid = ClientsGrid(dict.fromkeys(range(len(clients)), client))
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-empty"] == sum(examples == 0 for _, _, examples in clients)
        trained_rounds += any(examples for _, _, examples in clients)
        assert_sound(arrays, start)
        assert_sound_metrics(metrics)
        assert ndarrays(arrays)["n"] == 3 + trained_rounds
