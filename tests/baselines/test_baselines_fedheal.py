"""Claims about FedHEAL: who discards an entry has no say in it, and distance brings weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from support.baselines_federation import MODEL, Local, after_rounds, client_of, drawn, flat, local
from support.grid import ClientsGrid, train_round
from support.records import array_record

from fedpw_flwr.baselines import FedHEAL
from fedpw_flwr.baselines.fedheal import ClientMemory, average_weight


def test_what_a_client_keeps_worked_out_by_hand() -> None:
    """τ = 0.6, shares of earlier rounds. Round 2: the first and the last entry fall as in 1 of 1;
    the second fell in 0 of 1; the third, which did not move, counts as falling in 1 of 1. Round 3:
    the first rose in 0 of 2; the second fell in 1 of 2; the last two in 2 of 2. Round 4: the first
    two fell in 2 of 3; the last two in 3 of 3, and the last, which does not move, is kept."""
    rounds = {
        1: [local([1, -1, 0, 1])],
        2: [local([1, 1, 1, 1])],
        3: [local([-1, 1, 1, 1])],
        4: [local([1, 1, 1, 0])],
    }
    strategy = FedHEAL(tau=0.6, min_train_nodes=1, min_available_nodes=1)
    models, _ = after_rounds(strategy, rounds)
    steps = -np.diff([flat(model) for model in models], axis=0)
    expected = [[1, -1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(steps[:, :4], expected, atol=1e-6)


def test_two_rounds_with_weights_worked_out_by_hand() -> None:
    """β = 0.4. Round 1: d = ‖(3, 4)‖ + ‖(0, 1)‖ = 6 and 1 + 1 = 2, so in units of 1/N
    δp = 0.8 · (3/4, 1/4) = 0.6, 0.2 and p = 1.6, 1.2: weights 4/7, 3/7.

    Round 2: d = 1 + 1 = 2 and 6 + 0 = 6; δp = 0.6 · (0.6, 0.2) + 0.8 · (1/4, 3/4) = 0.56, 0.72 and
    p = 2.16, 1.92: weights 9/17, 8/17. Both keep every entry, also those that they do not move.
    """
    rounds = {
        1: [local([3, 4, 0, 0], (0, 1)), local([1, 0, 0, 0], (1, 0))],
        2: [local([0.6, 0.8, 0, 0], (0, 1)), local([6, 0, 0, 0])],
    }
    strategy = FedHEAL(tau=0.3, beta=0.4)
    models, weights = after_rounds(strategy, rounds)
    steps = -np.diff([flat(model) for model in models], axis=0)
    assert weights[0] == pytest.approx([4 / 7, 3 / 7])
    first = [(4 * 3 + 3 * 1) / 7, 4 * 4 / 7, 0, 0, 3 / 7, 4 / 7]
    np.testing.assert_allclose(steps[0], first, atol=1e-6)
    assert weights[1] == pytest.approx([9 / 17, 8 / 17])
    second = [(9 * 0.6 + 8 * 6) / 17, 9 * 0.8 / 17, 0, 0, 0, 9 / 17]
    np.testing.assert_allclose(steps[1], second, atol=1e-6)
    remembered = [(one.momentum, one.weight) for one in strategy.memory.values()]
    assert remembered == [pytest.approx((0.56, 2.16)), pytest.approx((0.72, 1.92))]


def plainly(
    rounds: Mapping[int, list[Local]], tau: float, beta: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The docstring's formulas on whole histories in double precision, all clients taking part."""
    clients = len(rounds[1])
    p, momentum = np.full(clients, 1 / clients), np.zeros(clients)
    past: list[np.ndarray] = []
    steps, weights = [], []
    for locals_ in rounds.values():
        updates = np.stack([one.flat() for one in locals_])
        kept = np.ones_like(updates, dtype=bool)
        if past:
            same = np.mean([(one >= 0) == (updates >= 0) for one in past], axis=0)
            kept = same > tau
        past.append(updates)
        masked = kept * updates
        # body.weight and body.bias
        d = np.array([np.linalg.norm(one[:4]) + np.linalg.norm(one[4:]) for one in masked])
        share = d / d.sum() if d.any() else np.full(clients, 1 / clients)
        momentum = (1 - beta) * momentum + beta * share
        p = p + momentum
        counted = p @ kept
        steps.append(np.divide(p @ masked, counted, np.zeros(6), where=counted > 0))
        weights.append(p / p.sum())
    return steps, weights


@pytest.mark.parametrize(("tau", "beta"), [(0.0, 0.4), (0.3, 0.4), (0.55, 1.0), (0.9, 0.1)])
def test_many_rounds_are_those_of_the_plain_formulas(tau: float, beta: float) -> None:
    rounds = {now: [drawn(one, now) for one in range(4)] for now in range(1, 9)}
    expected_steps, expected_weights = plainly(rounds, tau, beta)
    models, weights = after_rounds(FedHEAL(tau=tau, beta=beta), rounds)
    steps = -np.diff([flat(model) for model in models], axis=0)
    np.testing.assert_allclose(steps, expected_steps, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-5)


def test_statistics_and_counters_are_never_discarded() -> None:
    there = local([1, 1, 1, 1], mean=(0.25, 0), batches=2)
    back = local([-1, -1, -1, -1], mean=(-0.25, 0), batches=2)
    models, _ = after_rounds(FedHEAL(tau=0.9), {1: [there] * 2, 2: [back] * 2})
    model = models[-1]
    np.testing.assert_allclose(flat(model)[:4], flat(MODEL)[:4] - 1, atol=1e-6)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5, 1.0], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 14


def test_an_absent_client_keeps_weight_momentum_and_counts() -> None:
    strategy = FedHEAL()
    clients = {100 + one: client_of(drawn, one) for one in range(3)}
    arrays, _ = train_round(strategy, ClientsGrid(clients), array_record(MODEL))
    before = strategy.memory
    present = ClientsGrid({node: clients[node] for node in (100, 102)})
    train_round(strategy, present, arrays, 2)
    after = strategy.memory
    assert after[1] is before[1]
    assert [after[one].rounds for one in range(3)] == [2, 1, 2]


def test_who_is_drawn_more_often_does_not_count_more() -> None:
    """Clients whose updates are as long as the others' count equally, in their tenth round and in
    their first."""
    strategy, arrays = FedHEAL(), array_record(MODEL)
    often, too, rare = (client_of(lambda who, now: local([1, 1, 1, 1]), one) for one in range(3))
    for server_round in range(1, 10):
        grid = ClientsGrid({100: often, 101: too})
        arrays, _ = train_round(strategy, grid, arrays, server_round)
    _, metrics = train_round(strategy, ClientsGrid({100: often, 102: rare}), arrays, 10)
    assert metrics["client-weight"] == pytest.approx([0.5, 0.5])
    assert strategy.memory[0].weight > 5 * strategy.memory[2].weight


def test_what_an_average_client_accumulates_worked_out_by_hand() -> None:
    """β = 0.4: δp = 0.4, 0.64, 0.784."""
    assert [average_weight(rounds, 0.4) for rounds in range(4)] == pytest.approx(
        [1.0, 1.4, 2.04, 2.824]
    )
    assert average_weight(100, 0.0) == 1.0


@pytest.mark.parametrize(("rounds", "dtype"), [(255, torch.uint8), (256, torch.int16)])
def test_counts_take_a_larger_type_before_they_overflow(rounds: int, dtype: torch.dtype) -> None:
    start, trained = {"weight": torch.zeros(3)}, {"weight": torch.tensor([-1.0, 1.0, 0.0])}
    memory = ClientMemory()
    for _ in range(rounds):
        memory, _ = memory.observed(start, trained, 0.3)
    assert memory.rose["weight"].dtype == dtype
    assert memory.rose["weight"].tolist() == [0, rounds, 0]
    kept = memory.kept("weight", torch.tensor([1.0, 1.0, 0.0]), 0.3)
    assert kept.tolist() == [True, False, True]


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("rounds", [10, 30, 110])
def test_a_share_has_to_be_above_the_threshold(tenths: int, rounds: int) -> None:
    """4 of 10 rounds are more than τ = 0.3, 3 of 10 are not, whatever 0.3 is in binary."""
    even = tenths * rounds // 10
    rose = [rounds - even - 1, rounds - even, even + 1, even]
    counts = {"weight": torch.tensor(rose, dtype=torch.uint8)}
    memory = ClientMemory(rounds=rounds, rose=counts)
    update = torch.tensor([0.1, 0.1, -0.1, -0.1])
    assert memory.kept("weight", update, tenths / 10).tolist() == [True, False, True, False]
