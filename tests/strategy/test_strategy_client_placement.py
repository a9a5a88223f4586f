"""FedPW(adjustment="client"), round by round: what is asked, what comes back, and the next model.

Eight numbers and two clients can be worked out by hand. The last test lets rounds be drawn, and
compares with the method written once more in plain NumPy (support/reference.py).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adjusting_clients import Plan, failing, following, ignoring, planned, play, play_round
from support.grid import Client, ClientsGrid
from support.records import NDArrays, array_record, ndarrays, payloads
from support.reference import Reply, Server, Settings
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW

FIRST = np.array([8.0, 1, 7, 2, 6, 3, 5, 4], dtype=np.float32)
LATER = np.array([1.0, 8, 2, 7, 3, 6, 4, 5], dtype=np.float32)
START = {"weight": np.zeros(8, dtype=np.float32)}

# Client 1 is the strong one in round 1 and the weak one in round 2: it drops three quarters of its
# update in round 2, one quarter in round 3. In round 4 the losses are equal.
PLAN: Plan = {
    (1, 1): ({"weight": FIRST}, 1.0),
    (1, 2): ({"weight": LATER}, 3.0),
    (2, 1): ({"weight": FIRST}, 3.0),
    (2, 2): ({"weight": FIRST}, 1.0),
    (3, 1): ({"weight": LATER}, 2.0),
    (3, 2): ({"weight": LATER}, 2.0),
    (4, 1): ({"weight": FIRST}, 2.0),
    (4, 2): ({"weight": FIRST}, 2.0),
}
FOLLOWING = dict.fromkeys((1, 2), following(planned(PLAN)))
IGNORING = dict.fromkeys((1, 2), ignoring(planned(PLAN)))

# After round 2 both clients kept entries 0 and 2; of those that one kept the lowest are 4 and 5:
# C = {0, 2, 4, 5}. m = ((1+2+3+4+5+6)/6 + (1+2)/2) / 2 = 2.5; a = (8 + 7 + 3 + 1.5) / 4 = 4.875.
# After round 3 m = (1.5 + 3.5) / 2; on the C that was sent f is divided out, and a is as before.
# With f left in, a = (15 + 4.5f) / 4 and the factor were 1.459.
F = 1 + 2.5 / 4.875
ASKED: list[tuple[list[float], int | None, list[int]]] = [
    # 1/ℓ = (1, 1/3) has the mean 2/3: r = 0.5 · (1.5, 0.5) in round 2.
    ([0.0, 0.0], None, []),
    ([0.75, 0.25], None, []),
    ([0.25, 0.75], 2, [0, 2, 4, 5]),
    ([0.5, 0.5], 3, [1, 3, 4, 5]),
]
CHANGES = [
    [4.5] * 8,
    # Client 1 keeps 8 and 7; client 2 drops 1 and 2. Nothing is amplified yet.
    [8, 0, 7, 0, 3, 1.5, 2.5, 2],
    # Client 1 drops 1 and 2 (entries 0 and 2) and has 3 and 6 on C; client 2 keeps 8 and 7.
    [0, 8, 0, 7, 1.5 * F, 3 * F, 2, 2.5],
    # Both keep 8, 7, 6 and 5 (entries 0, 2, 4, 6), of which only entry 4 is in C.
    [8, 0, 7, 0, 6 * F, 0, 5, 0],
]
"""g of each round: how far it moves the model."""


def halves(**settings: Any) -> FedPW:
    """Equal weights; half of each update is masked on average."""
    return FedPW(
        avg_drop_rate=0.5, adapt_weights=False, adjustment="client", device="cpu", **settings
    )


@pytest.mark.parametrize(
    "clients",
    [FOLLOWING, IGNORING, {1: FOLLOWING[1], 2: IGNORING[2]}],
    ids=["follow", "ignore", "one of each"],
)
def test_four_rounds_are_those_worked_out_by_hand_whoever_adjusts(
    clients: dict[int, Client],
) -> None:
    before = START["weight"]
    rounds = play(halves(), [clients] * 4, array_record(START))
    for each, asked, change in zip(rounds, ASKED, CHANGES, strict=True):
        rates, consensus_round, members = asked
        for request, rate in zip(each.requests.values(), rates, strict=True):
            assert request.rate == pytest.approx(rate)
            assert request.consensus_round == consensus_round
            assert request.members == ({"weight": members} if members else {})
            assert request.factors == ({"weight": pytest.approx(F)} if members else {})
        for message in each.messages.values():
            # One bit an entry, the same for all.
            bits: Any = message.content["config"].get("fedpw-consensus", b"")
            assert len(bits) == (1 if members else 0)
        assert (before - each.model["weight"]).tolist() == pytest.approx(change, abs=1e-5)
        before = each.model["weight"]
        assert each.metrics["fedpw-drop-rate"] == pytest.approx(rates)
        assert each.metrics["fedpw-amplification"] == pytest.approx(F if members else 1.0)


def test_neither_the_users_configuration_nor_an_evaluation_has_fedpws_entries() -> None:
    strategy, config = halves(), ConfigRecord({"lr": 0.1})
    grid = ClientsGrid(FOLLOWING)
    list(strategy.configure_train(1, array_record(START), config, grid))
    assert "fedpw" not in config
    strategy = halves()
    arrays = play(strategy, [FOLLOWING] * 3, array_record(START))[-1].arrays
    for message in strategy.configure_evaluate(3, arrays, ConfigRecord(), grid):
        assert list(message.content.config_records["config"]) == ["server-round"]


def test_a_strategy_that_continues_from_saved_weights_masks_with_the_mean_rate() -> None:
    # Losses and consensus are of the last round; a new strategy knows neither.
    before, after = halves(), halves()
    arrays = play(before, [FOLLOWING] * 2, array_record(START))[-1].arrays
    after.state = before.state
    rounds = play(after, [FOLLOWING] * 2, arrays, first_round=3)
    assert rounds[0].rates == {1: 0.5, 2: 0.5}
    assert [request.consensus_round for request in rounds[0].requests.values()] == [None, None]
    assert [request.consensus_round for request in rounds[1].requests.values()] == [3, 3]
    assert rounds[1].requests[1].factors


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "on the server"),
        ({"adjustment": "client", "adjust_parameters": False}, "off"),
        ({"adjustment": "client"}, "on the clients"),
        (
            {"adjustment": "client", "upload": "packed", "upload_dtype": "float16"},
            "on the clients, packed uploads of float16 values",
        ),
    ],
)
def test_the_log_says_where_parameters_are_adjusted_and_only_there_clients_are_asked(
    options: dict[str, Any], where: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy = FedPW(**options)
    strategy.summary()
    assert re.search(rf"Parameter adjustment: {where}[ \n|]", flower_log.text)
    [each] = play(strategy, [dict.fromkeys((1, 2), good_client)], array_record(MODEL))
    for message in each.messages.values():
        assert ("fedpw" in message.content.config_records["config"]) == ("clients" in where)


# --- Drawn rounds against the method written once more ------------------------------------------

SHAPES = {
    "a.weight": (3, 4),
    "a.bias": (5,),
    "bn.running_mean": (6,),
    "b.weight": (2, 7),
    "bn.num_batches_tracked": (),
}
COUNTER = "bn.num_batches_tracked"


def drawn_model(rng: np.random.Generator) -> NDArrays:
    return {
        name: np.array(4) if name == COUNTER else rng.standard_normal(shape)
        for name, shape in SHAPES.items()
    }


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_round_is_that_of_the_plain_reimplementation(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    adapt = data.draw(st.booleans(), label="adaptive weights")
    mean_rate = data.draw(st.sampled_from([0.1, 0.3, 0.5, 0.7]), label="average drop rate")
    pool = range(1, data.draw(st.integers(2, 4), label="clients") + 1)

    reference = Server(
        Settings(avg_drop_rate=mean_rate, adapt_weights=adapt, max_weight=None, max_loss_ratio=None)
    )
    strategy = FedPW(
        min_train_nodes=1,
        min_available_nodes=1,
        avg_drop_rate=mean_rate,
        adapt_weights=adapt,
        adjustment="client",
        device="cpu",
        max_weight=None,
        max_loss_ratio=None,
    )
    arrays = array_record(drawn_model(rng))
    for number in range(1, data.draw(st.integers(3, 5), label="rounds") + 1):
        present = data.draw(st.sets(st.sampled_from(pool), min_size=1), label="present")
        lost = data.draw(st.sets(st.sampled_from(sorted(present))), label="lost")
        if number == 1:
            # Three rounds from the start in which all are lost would end the run.
            lost = lost - {min(present)}
        follow = data.draw(st.sets(st.sampled_from(sorted(present))), label="following")
        plan: Plan = {
            (number, node): (
                {
                    name: np.array(-3) if name == COUNTER else 0.3 * rng.standard_normal(shape)
                    for name, shape in SHAPES.items()
                },
                data.draw(st.floats(0.05, 5.0), label="loss"),
            )
            for node in sorted(present)
        }
        examples = {node: 5 + 3 * node for node in pool}
        train = planned(plan, examples)
        clients: dict[int, Client] = {
            node: failing
            if node in lost
            else following(train)
            if node in follow
            else ignoring(train)
            for node in sorted(present)
        }
        asked = reference.ask(sorted(present))
        each = play_round(strategy, clients, arrays, number)
        for node, request in each.requests.items():
            assert request.rate == pytest.approx(
                0.0 if asked.rates is None else asked.rates[node], abs=1e-12
            )
            assert request.members == {
                name: np.flatnonzero(agreed.members).tolist()
                for name, agreed in asked.consensus.items()
            }
            assert request.factors == pytest.approx(
                {name: agreed.factor for name, agreed in asked.consensus.items()}, rel=1e-9
            )
        before = ndarrays(arrays)
        if lost == present:
            assert payloads(each.arrays) == payloads(arrays)
            continue
        replies = {}
        for node in sorted(present - lost):
            update, loss = plan[number, node]
            after = {name: array - update[name] for name, array in before.items()}
            replies[node] = Reply(after, loss, examples[node])
        expected = reference.step(before, replies, asked)
        assert each.metrics["fedpw-weight"] == pytest.approx(expected.weights.tolist(), abs=1e-9)
        for name, array in expected.model.items():
            np.testing.assert_allclose(each.model[name], array, atol=1e-9, rtol=0, err_msg=name)
        known = strategy.method.adjustment_state.relative_losses
        assert known == pytest.approx(reference.relative_losses, abs=1e-9)
        arrays = each.arrays
