"""Adjustment on the clients when they join late, stay away, fail, or move to another node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flwr.app import Message
from support.adjusting_clients import Train, failing, following, ignoring, play, play_round, silent
from support.grid import Client
from support.records import array_record, payloads
from support.small_model import MODEL, train_reply

from fedpw_flwr import FedPW

MEAN = 0.3


def strategy_for_any_number(**settings: Any) -> FedPW:
    return FedPW(
        min_train_nodes=1,
        min_available_nodes=1,
        adjustment="client",
        avg_drop_rate=MEAN,
        device="cpu",
        max_loss_ratio=None,
        **settings,
    )


def clients_with(
    losses: Mapping[int, float],
    client_of: Callable[[Train], Client] = following,
    client_id: Callable[[int], int | None] = lambda node: None,
) -> dict[int, Client]:
    """Clients whose losses, and client ids, are given by node."""

    def train(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return train_reply(message, loss=losses[node], client_id=client_id(node))

    return dict.fromkeys(losses, client_of(train))


STEADY = clients_with({1: 1.0, 2: 3.0, 3: 2.0})


def rates_by_hand(losses: Mapping[int, float]) -> dict[int, float]:
    """r_k = min(1, r̄ · (1/ℓ_k) / mean_j(1/ℓ_j))."""
    mean = sum(1 / loss for loss in losses.values()) / len(losses)
    return {node: min(1.0, MEAN / loss / mean) for node, loss in losses.items()}


PERFECT = {1: 0.0, 2: 1.0, 3: 2.0}
"""A loss of 0 enters the quotient as a thousandth of the mean."""
STRONGEST = {1: 0.01, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
"""1/ℓ = (100, 1, 1, 1, 1), and its mean 20.8: client 1 loses its whole update."""


@pytest.mark.parametrize(
    ("first", "second", "rates"),
    [
        ({1: 1.0, 2: 3.0}, {1: 1.0, 2: 3.0}, {1: 0.45, 2: 0.15}),
        ({1: 1.0, 2: 3.0}, {3: 0.1, 4: 7.0}, {3: MEAN, 4: MEAN}),
        ({1: 0.2, 2: 3.0}, {1: 0.2, 3: 3.0}, {1: MEAN, 3: MEAN}),
        (PERFECT, PERFECT, rates_by_hand({1: 0.001, 2: 1.0, 3: 2.0})),
        (STRONGEST, STRONGEST, {1: 1.0, **dict.fromkeys((2, 3, 4, 5), MEAN / 20.8)}),
    ],
    ids=["known", "all new", "one of them new", "a perfect client", "far the strongest"],
)
@pytest.mark.parametrize("client_of", [following, ignoring])
def test_rates_are_those_of_the_losses_of_the_first_round_and_newcomers_get_the_mean(
    first: dict[int, float],
    second: dict[int, float],
    rates: dict[int, float],
    client_of: Callable[[Train], Client],
) -> None:
    clients = [clients_with(first, client_of), clients_with(second, client_of)]
    rounds = play(strategy_for_any_number(), clients, array_record(MODEL))
    assert rounds[1].rates == pytest.approx(rates)
    assert rounds[1].metrics["fedpw-client-id"] == list(second)
    assert rounds[1].metrics["fedpw-quarantined"] == 0


def test_newcomer_gets_the_mean_rate_and_everybodys_consensus_and_moves_no_one_elses() -> None:
    two, three = clients_with({1: 1.0, 2: 3.0}), clients_with({1: 1.0, 2: 3.0, 3: 0.01})
    rounds = play(strategy_for_any_number(), [two, two, three, three], array_record(MODEL))
    assert rounds[2].rates == pytest.approx({1: 0.45, 2: 0.15, 3: MEAN})
    requests = rounds[2].requests
    assert requests[3].consensus_round == 2
    assert requests[3].factors == requests[1].factors != {}
    assert requests[3].members == requests[1].members
    # From its second round on it counts like everybody: 1/ℓ = (1, 1/3, 100).
    assert rounds[3].rates == pytest.approx(rates_by_hand({1: 1.0, 2: 3.0, 3: 0.01}))


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
    # It is sent the consensus of a round that it missed.
    assert [request.consensus_round for request in rounds[3].requests.values()] == [3, 3, 3]
    assert rounds[4].rates == pytest.approx(rates_by_hand({1: 0.7, 2: 0.5, 3: 1.7}))


@pytest.mark.parametrize(
    ("skipped", "lost"),
    # What all clients share in the first round ends the run.
    [(1, failing), (1, silent), (2, silent), (4, failing)],
)
def test_after_a_round_without_usable_replies_the_same_is_asked_again(
    skipped: int, lost: Client
) -> None:
    strategy = strategy_for_any_number()
    arrays = array_record(MODEL)
    if skipped > 1:
        arrays = play(strategy, [STEADY] * (skipped - 1), arrays)[-1].arrays
    before, _ = strategy.method.saved_memory()
    empty = play_round(strategy, dict.fromkeys(STEADY, lost), arrays, skipped)
    assert payloads(empty.arrays) == payloads(arrays)
    assert strategy.method.saved_memory()[0] == before
    again = play_round(strategy, STEADY, arrays, skipped + 1)
    for node in STEADY:
        first = empty.messages[node].content.config_records["config"]
        second = again.messages[node].content.config_records["config"]
        assert {**second, "server-round": skipped} == dict(first)
    assert again.metrics["fedpw-client-id"] == [1, 2, 3]
