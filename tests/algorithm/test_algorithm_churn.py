"""Clients that stay away, return and join late: ALGORITHM.md section 4, computed by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from fedpw_flwr.algorithm import (
    ClientResult,
    ClientSignal,
    FedPWSettings,
    SignalState,
    WeightingState,
    server_step,
)
from fedpw_flwr.algorithm.weighting import update_signal

RoundBuilder = Callable[..., list[ClientResult]]

AWA_ALONE = FedPWSettings(adjust_parameters=False)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_partial_participation_and_a_newcomer_give_the_hand_computed_weights(
    a_round: RoundBuilder,
) -> None:
    model = {"weight": torch.zeros(1)}
    first = a_round(model, {0: [3.0], 1: [2.0], 2: [1.0]}, {0: 1.0, 1: 2.0, 2: 3.0})
    state = server_step(model, first, WeightingState(), AWA_ALONE).state
    # d = (18, 12, 6): p = (1.5, 1, 0.5) and δp = 0.3·p. Losses: q = (0.5, 1, 1.5), δq = 0.3·q.
    for client, p, q in ((0, 1.5, 0.5), (1, 1.0, 1.0), (2, 0.5, 1.5)):
        assert state.direction.clients[client].share == pytest.approx(p)
        assert state.direction.clients[client].momentum == pytest.approx(0.3 * p)
        assert state.loss.clients[client].share == pytest.approx(q)
        assert state.loss.clients[client].momentum == pytest.approx(0.3 * q)

    second = a_round(model, {0: [1.0], 2: [2.0], 7: [3.0]}, {0: 1.0, 2: 1.0, 7: 2.0})
    step = server_step(model, second, state, AWA_ALONE)

    # Client 7 enters with p = 1 and the mean δp of clients 0 and 2. d = (6, 12, 18), its size is
    # the squared mean update: 2² both times, so β_dir = 0.3.
    brought = 1.5 + 0.5 + 1.0
    before = (0.45, 0.15, (0.45 + 0.15) / 2)
    delta = [0.7 * before[k] + 0.3 * 3 * (6, 12, 18)[k] / 36 for k in range(3)]
    raw = [(1.5, 0.5, 1.0)[k] / brought + delta[k] / 3 for k in range(3)]
    shares_p = [value / sum(raw) for value in raw]
    # ℓ̄ was 2 and is 4/3.
    beta = 0.3 * (4 / 3) / 2
    brought_q = 0.5 + 1.5 + 1.0
    before_q = (0.15, 0.45, (0.15 + 0.45) / 2)
    delta_q = [(1 - beta) * before_q[k] + beta * 3 * (1, 1, 2)[k] / 4 for k in range(3)]
    raw_q = [(0.5, 1.5, 1.0)[k] / brought_q + delta_q[k] / 3 for k in range(3)]
    shares_q = [value / sum(raw_q) for value in raw_q]
    spread_p = math.sqrt(sum((value - 1 / 3) ** 2 for value in shares_p) / 2)
    spread_q = math.sqrt(sum((value - 1 / 3) ** 2 for value in shares_q) / 2)
    weights = [
        (spread_p * shares_p[k] + spread_q * shares_q[k]) / (spread_p + spread_q) for k in range(3)
    ]

    assert step.clients == (0, 2, 7)
    assert step.weights.direction_term == pytest.approx(shares_p, abs=1e-12)
    assert step.weights.loss_term == pytest.approx(shares_q, abs=1e-12)
    assert step.weights.weights == pytest.approx(weights, abs=1e-12)
    for position, client in enumerate((0, 2, 7)):
        memory = step.state.direction.clients[client]
        assert memory.share == pytest.approx(brought * shares_p[position], abs=1e-12)
        assert memory.momentum == pytest.approx(delta[position], abs=1e-12)
        assert step.state.loss.clients[client].share == pytest.approx(
            brought_q * shares_q[position], abs=1e-12
        )


def test_absent_client_keeps_its_memory_untouched(a_round: RoundBuilder) -> None:
    model = {"weight": torch.zeros(1)}
    first = a_round(model, {0: [3.0], 1: [2.0], 2: [1.0]}, {0: 1.0, 1: 2.0, 2: 3.0})
    before = server_step(model, first, WeightingState(), AWA_ALONE).state
    second = a_round(model, {0: [-5.0], 2: [7.0]}, {0: 9.0, 2: 0.1})
    after = server_step(model, second, before, AWA_ALONE).state
    assert after.direction.clients[1] == before.direction.clients[1]
    assert after.loss.clients[1] == before.loss.clients[1]


def test_a_cohort_keeps_the_total_share_it_brought() -> None:
    memory = {
        client: ClientSignal(share=share, momentum=0.2, mass=0.3)
        for client, share in ((0, 0.3), (1, 0.5), (2, 2.2))
    }
    state = SignalState(clients=memory, first_size=1.0)
    _, after = update_signal(state, [0, 1], doubles(0.9, 0.1), 1.0, 0.3, False)
    assert after.clients[0].share + after.clients[1].share == pytest.approx(0.3 + 0.5)
    assert after.clients[2] is memory[2]


def test_momentum_from_different_attendance_is_brought_to_the_mean_mass() -> None:
    # Client 0 has momentum from two rounds (mass 0.7·0.3 + 0.3), client 1 from one.
    memory = {
        0: ClientSignal(share=1.2, momentum=0.66, mass=0.51),
        1: ClientSignal(share=0.8, momentum=0.24, mass=0.3),
    }
    state = SignalState(clients=memory, first_size=4.0)
    terms, after = update_signal(state, [0, 1], doubles(0.4, 0.6), 2.0, 0.3, False)
    beta = 0.3 * 2.0 / 4.0
    mean = (0.51 + 0.3) / 2
    delta = [
        (1 - beta) * 0.66 * mean / 0.51 + beta * 2 * 0.4,
        (1 - beta) * 0.24 * mean / 0.3 + beta * 2 * 0.6,
    ]
    raw = [1.2 / 2 + delta[0] / 2, 0.8 / 2 + delta[1] / 2]
    assert terms.tolist() == pytest.approx([raw[0] / sum(raw), raw[1] / sum(raw)], abs=1e-12)
    for client in (0, 1):
        assert after.clients[client].momentum == pytest.approx(delta[client], abs=1e-12)
        assert after.clients[client].mass == pytest.approx((1 - beta) * mean + beta, abs=1e-12)


def test_a_newcomer_among_strangers_enters_with_an_average_share_and_no_momentum() -> None:
    memory = {0: ClientSignal(share=1.4, momentum=0.5, mass=0.3)}
    state = SignalState(clients=memory, first_size=4.0)
    terms, after = update_signal(state, [8, 9], doubles(0.9, 0.1), 4.0, 0.3, False)
    delta = [0.3 * 2 * 0.9, 0.3 * 2 * 0.1]
    raw = [0.5 + delta[0] / 2, 0.5 + delta[1] / 2]
    assert terms.tolist() == pytest.approx([raw[0] / sum(raw), raw[1] / sum(raw)], abs=1e-12)
    assert after.clients[8].momentum == pytest.approx(delta[0], abs=1e-12)


def test_a_cohort_whose_shares_sum_to_nothing_starts_from_equal_shares() -> None:
    memory = {
        0: ClientSignal(share=-1.0, momentum=0.0, mass=0.3),
        1: ClientSignal(share=0.5, momentum=0.0, mass=0.3),
    }
    state = SignalState(clients=memory, first_size=1.0)
    terms, after = update_signal(state, [0, 1], doubles(0.5, 0.5), 1.0, 0.3, False)
    assert terms.tolist() == pytest.approx([0.5, 0.5])
    assert after.clients[0].share == after.clients[1].share > 0


def test_momentum_that_outweighs_every_share_gives_equal_shares() -> None:
    memory = {
        0: ClientSignal(share=1.5, momentum=-9.0, mass=0.3),
        1: ClientSignal(share=0.5, momentum=-3.0, mass=0.3),
    }
    state = SignalState(clients=memory, first_size=1.0)
    # A size of 0 keeps the momentum: 1 + (-9 - 3) / 2 is not positive.
    terms, after = update_signal(state, [0, 1], doubles(0.5, 0.5), 0.0, 0.3, False)
    assert terms.tolist() == [0.5, 0.5]
    assert (after.clients[0].share, after.clients[1].share) == (1.0, 1.0)


def test_a_client_that_returns_alone_keeps_its_share() -> None:
    memory = {
        0: ClientSignal(share=0.4, momentum=0.1, mass=0.3),
        1: ClientSignal(share=1.6, momentum=0.5, mass=0.3),
    }
    state = SignalState(clients=memory, first_size=1.0)
    terms, after = update_signal(state, [0], doubles(1.0), 1.0, 0.3, False)
    assert terms.tolist() == [1.0]
    assert after.clients[0].share == pytest.approx(0.4)
