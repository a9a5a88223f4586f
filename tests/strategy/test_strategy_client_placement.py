"""FedPW(adjustment="client"), round by round: what is asked, what comes back, and the next model.

Eight numbers and two clients can be worked out by hand. The last test lets rounds be drawn, and
compares with the method written once more in plain NumPy (support/reference.py).
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from adjusting_clients import (
    Plan,
    Round,
    failing,
    following,
    ignoring,
    model_of,
    planned,
    play,
    play_round,
    report_of,
)
from federation import MODEL, good_client, trained
from flwr.app import ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grid import Client, ClientsGrid
from support.records import NDArrays, array_record, ndarrays, payloads
from support.reference import Reply, Server, Settings

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
FACTOR_2 = 1 + 2.5 / 4.875
"""f after round 2, derived where it is asserted."""


def halves(**settings: object) -> FedPW:
    """Equal weights; half of each update is masked on average."""
    return FedPW(
        avg_drop_rate=0.5,
        adapt_weights=False,
        adjustment="client",
        device="cpu",
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module", params=["follow", "ignore", "one of each"])
def rounds(request: pytest.FixtureRequest) -> list[Round]:
    """Rounds 1 to 4 of the plan: by hand they are the same whoever adjusts."""
    follow, ignore = following(planned(PLAN)), ignoring(planned(PLAN))
    clients = {
        "follow": {1: follow, 2: follow},
        "ignore": {1: ignore, 2: ignore},
        "one of each": {1: follow, 2: ignore},
    }[request.param]
    return play(halves(), [clients] * 4, array_record(START))


def change(rounds: list[Round], number: int) -> list[float]:
    """g of a round: how far it moved the model."""
    before = START["weight"] if number == 1 else rounds[number - 2].model["weight"]
    return [float(entry) for entry in before - rounds[number - 1].model["weight"]]


def test_round_1_asks_for_nothing_and_averages_updates_as_they_are(rounds: list[Round]) -> None:
    for request in rounds[0].requests.values():
        assert request.rate == 0.0
        assert request.consensus_round is None
        assert request.factors == {}
    assert change(rounds, 1) == [4.5] * 8
    assert rounds[0].metrics["fedpw-drop-rate"] == [0.0, 0.0]
    assert rounds[0].metrics["fedpw-amplification"] == 1.0


def test_round_2_asks_to_mask_with_rates_from_round_1s_losses(rounds: list[Round]) -> None:
    # 1/ℓ = (1, 1/3) has the mean 2/3: r = 0.5 · (1.5, 0.5).
    assert rounds[1].rates == pytest.approx({1: 0.75, 2: 0.25})
    for request in rounds[1].requests.values():
        assert request.consensus_round is None
        assert request.factors == {}
    # Client 1 keeps 8 and 7; client 2 drops 1 and 2. Nothing is amplified yet.
    assert change(rounds, 2) == pytest.approx([8, 0, 7, 0, 3, 1.5, 2.5, 2], abs=1e-5)
    assert rounds[1].metrics["fedpw-drop-rate"] == pytest.approx([0.75, 0.25])
    assert rounds[1].metrics["fedpw-amplification"] == 1.0


def test_round_3_asks_to_rescale_on_the_consensus_of_round_2(rounds: list[Round]) -> None:
    # The losses of round 2 were (3, 1).
    assert rounds[2].rates == pytest.approx({1: 0.25, 2: 0.75})
    for request in rounds[2].requests.values():
        assert request.consensus_round == 2
        # Both clients kept entries 0 and 2; of those that one kept the lowest are 4 and 5.
        assert request.members == {"weight": [0, 2, 4, 5]}
        # m = ((1+2+3+4+5+6)/6 + (1+2)/2) / 2 = 2.5; a = (8 + 7 + 3 + 1.5) / 4 = 4.875.
        assert request.factors == {"weight": pytest.approx(FACTOR_2)}
    # Client 1 drops 1 and 2 (entries 0 and 2) and has 3 and 6 on C; client 2 keeps 8 and 7.
    f = FACTOR_2
    assert change(rounds, 3) == pytest.approx([0, 8, 0, 7, 1.5 * f, 3 * f, 2, 2.5], abs=1e-5)
    assert rounds[2].metrics["fedpw-amplification"] == pytest.approx(FACTOR_2)


def test_round_4_asks_with_a_factor_from_which_the_last_one_was_divided_out(
    rounds: list[Round],
) -> None:
    assert rounds[3].rates == pytest.approx({1: 0.5, 2: 0.5})
    for request in rounds[3].requests.values():
        assert request.consensus_round == 3
        assert request.members == {"weight": [1, 3, 4, 5]}
        # m = (1.5 + 3.5) / 2; on the sent C f is divided out: a = (8 + 7 + 1.5 + 3) / 4 = 4.875.
        # With f left in, a = (15 + 4.5f) / 4 and the factor were 1.459.
        assert request.factors == {"weight": pytest.approx(1 + 2.5 / 4.875)}
    # Both keep 8, 7, 6 and 5 (entries 0, 2, 4, 6), of which only entry 4 is in C.
    assert change(rounds, 4) == pytest.approx([8, 0, 7, 0, 6 * FACTOR_2, 0, 5, 0], abs=1e-5)


def test_all_clients_get_the_same_consensus_and_their_own_rate(rounds: list[Round]) -> None:
    consensus = {
        message.content.config_records["config"]["fedpw-consensus"]
        for message in rounds[2].messages.values()
    }
    assert len(consensus) == 1
    assert len(set(rounds[2].rates.values())) == 2


def test_consensus_is_sent_as_one_bit_an_entry(rounds: list[Round]) -> None:
    for number, size in ((1, None), (2, None), (3, 1), (4, 1)):
        for message in rounds[number - 1].messages.values():
            bits = message.content.config_records["config"].get("fedpw-consensus")
            assert (len(bits) if isinstance(bits, bytes) else None) == size


def test_a_reply_says_what_was_done_to_it() -> None:
    client = following(planned(PLAN))
    rounds = play(halves(), [{1: client, 2: client}] * 3, array_record(START))
    done = [{node: report_of(reply) for node, reply in each.replies.items()} for each in rounds]
    assert [done[0][1]["rate"], done[0][1]["consensus-round"]] == [0.0, None]
    assert done[0][1]["discarded"] == [0.0]
    assert [done[1][1]["rate"], done[1][1]["consensus-round"]] == [0.75, None]
    assert done[1][1]["discarded"] == [pytest.approx(3.5, rel=1e-6)]
    assert done[1][2]["discarded"] == [pytest.approx(1.5, rel=1e-6)]
    assert [done[2][2]["rate"], done[2][2]["consensus-round"]] == [0.75, 2]


def test_adjusted_updates_arrive_masked_and_rescaled_and_are_only_averaged() -> None:
    client = following(planned(PLAN))
    rounds = play(halves(), [{1: client, 2: client}] * 3, array_record(START))
    sent = rounds[1].model["weight"]
    arrived = [rounds[2].reply_arrays(node)["weight"] for node in (1, 2)]
    f = FACTOR_2
    assert (sent - arrived[0]).tolist() == pytest.approx([0, 8, 0, 7, 3 * f, 6 * f, 4, 5], abs=1e-5)
    assert (sent - arrived[1]).tolist() == pytest.approx([0, 8, 0, 7, 0, 0, 0, 0], abs=1e-5)
    np.testing.assert_allclose(
        rounds[2].model["weight"], (arrived[0] + arrived[1]) / 2, rtol=1e-6, atol=1e-6
    )


def test_users_configuration_reaches_the_train_function_without_fedpws_entries() -> None:
    seen: list[ConfigRecord] = []

    def train(message: Message) -> Message:
        seen.append(message.content.config_records["config"].copy())
        return planned(PLAN)(message)

    client = following(train)
    grid = ClientsGrid({1: client, 2: client})
    strategy = halves(fraction_evaluate=0.0)
    config = ConfigRecord({"lr": 0.1, "names": ["a", "b"]})
    strategy.start(
        grid=grid, initial_arrays=array_record(START), num_rounds=4, train_config=config.copy()
    )
    assert len(seen) == 8
    for number, got in enumerate(seen):
        assert dict(got) == {"lr": 0.1, "names": ["a", "b"], "server-round": number // 2 + 1}
    for message in grid.sent:
        assert "fedpw" in message.content.config_records["config"]


def test_users_own_configuration_object_is_left_alone() -> None:
    config = ConfigRecord({"lr": 0.1})
    strategy = halves()
    grid = ClientsGrid(dict.fromkeys((1, 2), following(planned(PLAN))))
    list(strategy.configure_train(1, array_record(START), config, grid))
    assert "fedpw" not in config


def test_evaluating_clients_are_asked_for_nothing() -> None:
    strategy = halves()
    arrays = play(
        strategy, [dict.fromkeys((1, 2), following(planned(PLAN)))] * 3, array_record(START)
    )[-1].arrays
    grid = ClientsGrid(dict.fromkeys((1, 2), good_client))
    for message in strategy.configure_evaluate(3, arrays, ConfigRecord(), grid):
        assert list(message.content.config_records["config"]) == ["server-round"]


def test_a_strategy_that_continues_from_saved_weights_masks_with_the_mean_rate() -> None:
    # Losses and consensus are of the last round; a new strategy knows neither.
    client = following(planned(PLAN))
    before = halves()
    arrays = play(before, [{1: client, 2: client}] * 2, array_record(START))[-1].arrays
    after = halves()
    after.state = before.state
    rounds = play(after, [{1: client, 2: client}] * 2, arrays, first_round=3)
    assert rounds[0].rates == {1: 0.5, 2: 0.5}
    assert [request.consensus_round for request in rounds[0].requests.values()] == [None, None]
    assert [request.consensus_round for request in rounds[1].requests.values()] == [3, 3]
    assert rounds[1].requests[1].factors


@pytest.mark.parametrize(
    "strategy_settings",
    [{}, {"adjustment": "server"}, {"adjustment": "client", "adjust_parameters": False}],
    ids=["default", "server", "client without adjustment"],
)
def test_nothing_is_asked_where_no_client_is_to_adjust(
    strategy_settings: dict[str, object],
) -> None:
    strategy = FedPW(**strategy_settings)  # type: ignore[arg-type]
    rounds = play(strategy, [dict.fromkeys((1, 2), good_client)] * 3, array_record(MODEL))
    for each in rounds:
        for message in each.messages.values():
            assert list(message.content.config_records["config"]) == ["server-round"]


def test_the_log_says_where_parameters_are_adjusted(flower_log: pytest.LogCaptureFixture) -> None:
    for strategy, place in (
        (FedPW(), "on the server"),
        (FedPW(adjustment="client"), "on the clients"),
        (
            FedPW(adjustment="client", upload="packed", upload_dtype="float16"),
            "on the clients, packed uploads of float16 values",
        ),
        (FedPW(adjustment="client", adjust_parameters=False), "off"),
    ):
        flower_log.clear()
        strategy.summary()
        assert re.search(rf"Parameter adjustment: {place}[ \n|]", flower_log.text)


def test_running_statistics_are_masked_and_never_rescaled_counters_neither() -> None:
    client = following()
    rounds = play(
        FedPW(adjustment="client", avg_drop_rate=0.5),
        [dict.fromkeys((1, 2, 3), client)] * 5,
        array_record(MODEL),
    )
    rescaled: set[str] = set()
    for number, each in enumerate(rounds, start=1):
        for node, request in each.requests.items():
            rescaled |= set(request.factors)
            sent = model_of(each.messages[node])
            arrived = each.reply_arrays(node)
            local = trained(sent, (node, number))
            statistics = "norm.running_mean"
            update = sent[statistics] - local[statistics]
            kept = np.sort(np.argsort(np.abs(update))[int(4 * request.rate + 1e-9) :])
            expected = np.zeros_like(update)
            expected[kept] = update[kept]
            np.testing.assert_allclose(
                sent[statistics] - arrived[statistics], expected, atol=1e-7, rtol=0
            )
            counter = "norm.num_batches_tracked"
            assert arrived[counter].shape == ()
            assert arrived[counter] == local[counter]
    assert rescaled == {"body.weight", "body.bias"}


def test_single_numbers_are_never_adjusted() -> None:
    # A 0-d parameter, as CLIP's logit scale, goes back in the shape in which it came.
    model = {**MODEL, "logit_scale": np.array(2.6, dtype=np.float32)}
    rounds = play(
        FedPW(adjustment="client", avg_drop_rate=0.5),
        [{1: following(), 2: following(), 3: ignoring()}] * 4,
        array_record(model),
    )
    for number, each in enumerate(rounds, start=1):
        assert each.metrics["fedpw-quarantined"] == 0
        assert each.model["logit_scale"].shape == ()
        for node in (1, 2):
            local = trained(model_of(each.messages[node]), (node, number))
            assert each.reply_arrays(node)["logit_scale"] == local["logit_scale"]


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_both_placements_give_the_same_model_once_the_consensus_is_known(upload: str) -> None:
    # Clients that train the same way in every round, from the same model: what they learn in one
    # masked round is what the server would find in the next. Losses are equal, so rates are, too.
    rng = np.random.default_rng(3)
    model: NDArrays = {
        "conv.weight": (0.3 * rng.standard_normal((16, 8, 3, 3))).astype(np.float32),
        "conv.bias": (0.3 * rng.standard_normal(16)).astype(np.float32),
        "bn.running_var": rng.random(16).astype(np.float32),
        "fc.weight": (0.3 * rng.standard_normal((100, 100))).astype(np.float32),
        "bn.num_batches_tracked": np.array(40),
    }
    shared = {name: rng.standard_normal(array.shape) for name, array in model.items()}
    updates = {
        node: {
            name: np.array(-node)
            if array.dtype.kind == "i"
            else (0.02 * (shared[name] + rng.standard_normal(array.shape))).astype(np.float32)
            for name, array in model.items()
        }
        for node in (1, 2, 3)
    }
    plan: Plan = {(number, node): (updates[node], 0.7) for number in (1, 2, 3) for node in updates}
    train = planned(plan, examples={1: 5, 2: 7, 3: 9})
    clients: dict[int, Client] = {1: following(train), 2: ignoring(train), 3: following(train)}
    on_server = FedPW(adapt_weights=False, device="cpu")
    on_clients = FedPW(
        adapt_weights=False,
        device="cpu",
        adjustment="client",
        upload=upload,  # type: ignore[arg-type]
    )
    plain = {node: ignoring(train) for node in clients}
    models: dict[str, NDArrays] = {}
    for number in (1, 2):
        models["server"] = play_round(on_server, plain, array_record(model), number).model
    for number in (1, 2, 3):
        each = play_round(on_clients, clients, array_record(model), number)
        models["client" if number == 3 else "masked"] = each.model
    for name in model:
        assert np.abs(models["client"][name] - models["server"][name]).max() <= 1e-6, name
    assert np.abs(models["masked"]["fc.weight"] - models["server"]["fc.weight"]).max() > 1e-3


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


@settings(max_examples=20, deadline=None)
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
