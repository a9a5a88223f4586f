"""Adjustment on the clients when they join late, stay away, fail, or move to another node."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from adjusting_clients import (
    Plan,
    Train,
    failing,
    following,
    ignoring,
    memory,
    planned,
    play,
    play_round,
    silent,
)
from broken_replies import BROKEN_REPLIES
from federation import MODEL, good_client, train_reply
from flwr.app import Message
from support.grid import Client
from support.records import array_record, payloads

from fedpw_flwr import FedPW

MEAN = 0.3


def strategy_for_any_number(**settings: object) -> FedPW:
    return FedPW(
        min_train_nodes=1,
        min_available_nodes=1,
        adjustment="client",
        avg_drop_rate=MEAN,
        device="cpu",
        max_loss_ratio=None,
        **settings,  # type: ignore[arg-type]
    )


def reporting(losses: Mapping[int, float]) -> Train:
    """Clients whose losses are given by node."""
    return lambda message: train_reply(message, loss=losses[message.metadata.dst_node_id])


def clients_with(losses: Mapping[int, float]) -> dict[int, Client]:
    return dict.fromkeys(losses, following(reporting(losses)))


def nan_client(message: Message) -> list[Message]:
    """Its model is broken; the loss beside it is 100."""
    return BROKEN_REPLIES["NaN entry"].arrives(message, train_reply(message, loss=100.0))


def rates_by_hand(losses: Mapping[int, float]) -> dict[int, float]:
    """r_k = min(1, r̄ · (1/ℓ_k) / mean_j(1/ℓ_j))."""
    mean = sum(1 / loss for loss in losses.values()) / len(losses)
    return {node: min(1.0, MEAN / loss / mean) for node, loss in losses.items()}


def test_newcomer_is_asked_for_the_mean_rate_and_moves_no_one_elses() -> None:
    rounds = play(
        strategy_for_any_number(),
        [
            clients_with({1: 1.0, 2: 3.0}),
            clients_with({1: 1.0, 2: 3.0}),
            clients_with({1: 1.0, 2: 3.0, 3: 0.01}),
            clients_with({1: 1.0, 2: 3.0, 3: 0.01}),
        ],
        array_record(MODEL),
    )
    assert rounds[1].rates == pytest.approx({1: 0.45, 2: 0.15})
    assert rounds[2].rates == pytest.approx({1: 0.45, 2: 0.15, 3: MEAN})
    # From its second round on it counts like everybody: 1/ℓ = (1, 1/3, 100).
    assert rounds[3].rates == pytest.approx(rates_by_hand({1: 1.0, 2: 3.0, 3: 0.01}))


def test_newcomer_gets_the_consensus_that_everybody_gets() -> None:
    rounds = play(
        strategy_for_any_number(),
        [*[clients_with({1: 1.0, 2: 1.5})] * 2, clients_with({1: 1.0, 2: 1.5, 3: 1.0})],
        array_record(MODEL),
    )
    requests = rounds[2].requests
    assert requests[3].consensus_round == 2
    assert requests[3].factors == requests[1].factors != {}
    assert requests[3].members == requests[1].members


def test_round_of_newcomers_alone_masks_with_the_mean_rate() -> None:
    rounds = play(
        strategy_for_any_number(),
        [clients_with({1: 1.0, 2: 3.0}), clients_with({3: 0.1, 4: 7.0})],
        array_record(MODEL),
    )
    assert rounds[1].rates == {3: MEAN, 4: MEAN}


def test_one_client_seen_before_among_newcomers_gets_the_mean_rate_too() -> None:
    rounds = play(
        strategy_for_any_number(),
        [clients_with({1: 0.2, 2: 3.0}), clients_with({1: 0.2, 3: 3.0})],
        array_record(MODEL),
    )
    assert rounds[1].rates == pytest.approx({1: MEAN, 3: MEAN})


def test_returning_client_is_judged_by_the_loss_it_reported_last() -> None:
    rounds = play(
        strategy_for_any_number(),
        [
            clients_with({1: 1.0, 2: 3.0, 3: 2.0}),
            clients_with({1: 0.9, 3: 1.9}),
            clients_with({1: 0.8, 3: 1.8}),
            clients_with({1: 0.7, 2: 0.5, 3: 1.7}),
            clients_with({1: 0.7, 2: 0.5, 3: 1.7}),
        ],
        array_record(MODEL),
    )
    # Absent clients' losses are in nobody's mean.
    assert rounds[1].rates == pytest.approx(rates_by_hand({1: 1.0, 3: 2.0}))
    assert rounds[2].rates == pytest.approx(rates_by_hand({1: 0.9, 3: 1.9}))
    # Losses of different rounds compare by u: client 2's is 3 beside the mean 2. The others brought
    # 0.5 + 1.0 of q, 0.75 each on average, and reported 0.8 and 1.8 beside the mean 1.3.
    u = {1: 0.75 * 0.8 / 1.3, 2: 3.0 / 2.0, 3: 0.75 * 1.8 / 1.3}
    assert rounds[3].rates == pytest.approx(rates_by_hand(u))
    assert rounds[4].rates == pytest.approx(rates_by_hand({1: 0.7, 2: 0.5, 3: 1.7}))


def test_returning_client_is_sent_the_consensus_of_a_round_it_missed() -> None:
    everyone, two = clients_with({1: 1.0, 2: 3.0, 3: 2.0}), clients_with({1: 1.0, 3: 2.0})
    rounds = play(
        strategy_for_any_number(), [everyone, everyone, two, everyone], array_record(MODEL)
    )
    assert [request.consensus_round for request in rounds[3].requests.values()] == [3, 3, 3]
    assert rounds[3].metrics["fedpw-client-id"] == [1, 2, 3]


@pytest.mark.parametrize("lost", [failing, silent, nan_client])
def test_a_reply_that_cannot_be_used_leaves_no_loss_behind(lost: Client) -> None:
    steady = clients_with({1: 1.0, 2: 3.0, 3: 2.0})
    rounds = play(
        strategy_for_any_number(),
        [steady, {**steady, 2: lost}, steady],
        array_record(MODEL),
    )
    assert rounds[1].metrics["fedpw-client-id"] == [1, 3]
    assert rounds[2].rates == pytest.approx(rates_by_hand({1: 1.0, 2: 3.0, 3: 2.0}))


@pytest.mark.parametrize("lost", [failing, silent, nan_client])
def test_lost_client_does_not_keep_the_others_from_a_consensus(lost: Client) -> None:
    steady = clients_with({1: 1.0, 2: 3.0, 3: 2.0})
    with_lost, without = strategy_for_any_number(), strategy_for_any_number()
    arrays = play(with_lost, [steady] * 2, array_record(MODEL))[-1].arrays
    play(without, [steady] * 2, array_record(MODEL))
    each = play_round(with_lost, {**steady, 2: lost}, arrays, 3)
    # The same requests, to a client that answers nothing.
    expected = play_round(without, {**steady, 2: silent}, arrays, 3)
    assert each.rates == expected.rates
    assert payloads(each.arrays) == payloads(expected.arrays)
    assert memory(with_lost.method.adjustment_state) == memory(without.method.adjustment_state)
    assert with_lost.state == without.state


@pytest.mark.parametrize(
    ("skipped", "lost"),
    # What all clients share in the first round ends the run.
    [(1, failing), (1, silent), *itertools.product((2, 3, 4), (failing, silent, nan_client))],
)
def test_after_a_round_without_usable_replies_the_same_is_asked_again(
    skipped: int, lost: Client
) -> None:
    steady = clients_with({1: 1.0, 2: 3.0, 3: 2.0})
    strategy = strategy_for_any_number()
    arrays = array_record(MODEL)
    if skipped > 1:
        arrays = play(strategy, [steady] * (skipped - 1), arrays)[-1].arrays
    before = memory(strategy.method.adjustment_state)
    empty = play_round(strategy, dict.fromkeys((1, 2, 3), lost), arrays, skipped)
    assert payloads(empty.arrays) == payloads(arrays)
    assert memory(strategy.method.adjustment_state) == before
    again = play_round(strategy, steady, arrays, skipped + 1)
    for node in (1, 2, 3):
        first = empty.messages[node].content.config_records["config"]
        second = again.messages[node].content.config_records["config"]
        assert {**second, "server-round": skipped} == dict(first)
    assert again.metrics["fedpw-client-id"] == [1, 2, 3]


def test_rounds_that_were_skipped_change_nothing_in_those_that_were_not() -> None:
    # Trained models depend on Flower's round number here, so both runs use the same numbers.
    steady = clients_with({1: 1.0, 2: 3.0, 3: 2.0})
    lost = dict.fromkeys((1, 2, 3), failing)
    interrupted, steadily = strategy_for_any_number(), strategy_for_any_number()
    arrays, expected = array_record(MODEL), array_record(MODEL)
    for number in (1, 2, 3, 4, 5, 6):
        arrays = play_round(interrupted, steady if number % 2 else lost, arrays, number).arrays
    for number in (1, 3, 5):
        expected = play_round(steadily, steady, expected, number).arrays
    assert payloads(arrays) == payloads(expected)
    assert memory(interrupted.method.adjustment_state) == memory(steadily.method.adjustment_state)


def test_client_that_returns_on_another_node_keeps_its_loss_from_its_second_round_on() -> None:
    losses = {1: 1.0, 2: 3.0, 52: 3.0}

    def train(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return train_reply(message, loss=losses[node], client_id=1000 + node % 50)

    client = following(train)
    strategy = strategy_for_any_number()
    rounds = play(
        strategy,
        [{1: client, 2: client}, {1: client, 52: client}, {1: client, 52: client}],
        array_record(MODEL),
    )
    # Whose node 52 is, is only known once it has answered.
    assert rounds[1].rates == pytest.approx({1: MEAN, 52: MEAN})
    assert rounds[1].metrics["fedpw-client-id"] == [1001, 1002]
    assert rounds[1].metrics["fedpw-drop-rate"] == pytest.approx([MEAN, MEAN])
    assert rounds[2].rates == pytest.approx({1: 0.45, 52: 0.15})
    # 1 and 3 beside their mean, 2.
    known = strategy.method.adjustment_state.relative_losses
    assert known == pytest.approx({1001: 0.5, 1002: 1.5})


def test_clients_that_name_themselves_are_asked_by_their_own_losses() -> None:
    # Identities run against the node ids: a rate that went by the wrong one would show.
    losses = {1: 1.0, 2: 3.0, 3: 2.0}

    def train(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return train_reply(message, loss=losses[node], client_id=10 - node)

    for client in (following(train), ignoring(train)):
        rounds = play(
            strategy_for_any_number(), [dict.fromkeys(losses, client)] * 3, array_record(MODEL)
        )
        assert rounds[1].rates == pytest.approx(rates_by_hand(losses))
        assert rounds[2].metrics["fedpw-client-id"] == [7, 8, 9]
        expected = rates_by_hand(losses)
        assert rounds[2].metrics["fedpw-drop-rate"] == pytest.approx(
            [expected[3], expected[2], expected[1]]
        )


def test_tensor_too_small_for_one_clients_rate_is_not_rescaled_in_the_next_round() -> None:
    # In round 2 client 1 drops ⌊10 · 0.55⌋ of the small tensor, client 2 ⌊10 · 0.05⌋ = 0; in round
    # 3 losses are equal and both drop 3; ⌊100 · 0.05⌋ = 5 is enough in the large one.
    model = {
        "large": np.zeros(100, dtype=np.float32),
        "small": np.zeros(10, dtype=np.float32),
    }
    update = {
        "large": np.linspace(1.0, 2.0, 100, dtype=np.float32),
        "small": np.linspace(1.0, 2.0, 10, dtype=np.float32),
    }
    losses = {1: (1.0, 11.0), 2: (1.0, 1.0), 3: (1.0, 1.0), 4: (1.0, 1.0)}
    plan: Plan = {
        (number, node): (update, losses[number][node - 1]) for number in losses for node in (1, 2)
    }
    client = following(planned(plan))
    rounds = play(
        strategy_for_any_number(adapt_weights=False),
        [{1: client, 2: client}] * 4,
        array_record(model),
    )
    assert rounds[1].rates == pytest.approx({1: 0.55, 2: 0.05})
    assert list(rounds[2].requests[1].factors) == ["large"]
    assert list(rounds[2].requests[1].members) == ["large"]
    assert list(rounds[3].requests[1].factors) == ["large", "small"]
    # It is masked and averaged all the same: client 1 lost the 5 smallest, client 2 nothing.
    g = rounds[0].model["small"] - rounds[1].model["small"]
    assert g.tolist() == pytest.approx(
        [entry * (0.5 if place < 5 else 1.0) for place, entry in enumerate(update["small"])],
        abs=1e-6,
    )


def test_strongest_client_may_lose_its_whole_update() -> None:
    # 1/ℓ = (100, 1, 1, 1, 1): its rate is min(1, 0.3 · 100/20.8) = 1, the others' 0.3/20.8.
    losses = {1: 0.01, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
    for client in (following(reporting(losses)), ignoring(reporting(losses))):
        rounds = play(
            strategy_for_any_number(), [dict.fromkeys(losses, client)] * 3, array_record(MODEL)
        )
        assert rounds[1].rates == pytest.approx(rates_by_hand(losses))
        assert rounds[1].rates[1] == 1.0
        assert rounds[1].metrics["fedpw-quarantined"] == 0
        assert rounds[2].metrics["fedpw-client-id"] == [1, 2, 3, 4, 5]


def test_perfect_client_has_a_finite_rate() -> None:
    # A loss of 0 enters the quotient as a thousandth of the mean.
    losses = {1: 0.0, 2: 1.0, 3: 2.0}
    rounds = play(strategy_for_any_number(), [clients_with(losses)] * 2, array_record(MODEL))
    assert rounds[1].rates == pytest.approx(rates_by_hand({1: 0.001, 2: 1.0, 3: 2.0}))


def test_unmodified_clients_alone_give_finite_masked_rounds() -> None:
    rounds = play(
        strategy_for_any_number(), [dict.fromkeys((1, 2, 3), good_client)] * 4, array_record(MODEL)
    )
    for number, each in enumerate(rounds, start=1):
        assert each.metrics["fedpw-quarantined"] == 0
        assert [request.consensus_round for request in each.requests.values()] == [
            None if number < 3 else number - 1
        ] * 3
