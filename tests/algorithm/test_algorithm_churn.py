"""Clients that stay away, return and join late: ALGORITHM.md section 4.

Time counts in rounds: what a client missed is caught up on with what it shows when it is back.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.reference import Signal as ReferenceSignal
from support.rounds import doubles

from fedpw_flwr.algorithm import (
    ClientSignal,
    SignalState,
)
from fedpw_flwr.algorithm.adjustment import requested_rates
from fedpw_flwr.algorithm.direction import direction_shares, direction_size
from fedpw_flwr.algorithm.memory import momentum_rate, update_signal
from fedpw_flwr.algorithm.weights import loss_shares, loss_size, relative_losses

BETA = 0.3


class Signal:
    """The package's memory of one signal, a round after the other."""

    def __init__(self) -> None:
        self.state = SignalState()
        self.rounds = 0

    def step(
        self, clients: Sequence[int] | NDArray[np.int64], observed: NDArray[np.float64], size: float
    ) -> NDArray[np.float64]:
        shares, self.brought, self.state = update_signal(
            self.state,
            [int(client) for client in clients],
            torch.from_numpy(observed),
            size,
            BETA,
            self.rounds == 0,
        )
        self.rounds += 1
        return shares.numpy()

    def share(self, clients: Sequence[int]) -> float:
        known = [
            self.state.clients[client].share for client in clients if client in self.state.clients
        ]
        return float(np.mean(known))


def test_participants_bring_at_least_a_quarter_of_what_average_clients_would() -> None:
    memory = {client: ClientSignal(0.01, 0.003, 0.3, -0.3, 0.0) for client in (0, 1)}
    state = SignalState(memory, first_size=1.0, log_kept=-0.7, log_held=-0.2)
    _, brought, after = update_signal(state, [0, 1], doubles(0.5, 0.5), 1.0, BETA, False)
    assert brought == 0.5
    assert after.clients[0].share == pytest.approx(0.25)


def test_a_cohort_whose_shares_sum_to_nothing_shares_equally() -> None:
    memory = {
        0: ClientSignal(-3.0, -0.9, 0.3, 0.0, 0.0),
        1: ClientSignal(0.5, 0.15, 0.3, 0.0, 0.0),
    }
    # A round without a size changes no momentum.
    state = SignalState(memory, first_size=1.0)
    shares, _, after = update_signal(state, [0, 1], doubles(0.5, 0.5), 0.0, BETA, False)
    assert shares.tolist() == [0.5, 0.5]
    assert after.clients[0].share == after.clients[1].share == 0.25


# A random history: who is there in each round, what shares they show, how large the signal is.
histories = st.integers(0, 2**32 - 1)


def random_round(
    rng: np.random.Generator, population: int, *, wild: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    there = rng.choice(population, rng.integers(1, population + 1), replace=False)
    raw = rng.normal(1.0, 3.0 if wild else 0.3, len(there))
    total = raw.sum()
    shares = raw / total if abs(total) > 0.05 else np.full(len(there), 1 / len(there))
    return there, shares, float(rng.choice([0.0, 1e-6, 1e-3, 0.5, 1.0, 3.0]))


@settings(max_examples=60, deadline=None)
@given(histories, st.booleans())
def test_the_memory_is_that_of_the_reference_whoever_attends(seed: int, wild: bool) -> None:
    rng = np.random.default_rng(seed)
    population = int(rng.integers(1, 12))
    ours, reference = Signal(), ReferenceSignal()
    for _ in range(40):
        there, shares, size = random_round(rng, population, wild=wild)
        expected = reference.step(there, shares, size)
        found = ours.step(there, shares, size)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(histories)
def test_with_everybody_present_it_is_the_papers_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    everybody, ours = np.arange(count), Signal()
    delta, p, first_size = np.zeros(count), np.zeros(count), None
    for _ in range(60):
        raw = rng.gamma(2.0, 1.0, count)
        shares, size = raw / raw.sum(), float(rng.uniform(0.01, 2.0))
        first_size = first_size or size
        rate = momentum_rate(BETA, size, first_size)
        delta = (1 - rate) * delta + rate * shares
        p = (p + delta) / (p + delta).sum()
        np.testing.assert_allclose(ours.step(everybody, shares, size), p, atol=1e-11)


@pytest.fixture(scope="module", params=[False, True], ids=["losses stay", "losses fall tenfold"])
def thousand(request: pytest.FixtureRequest) -> dict[str, float]:
    """Of 1000 clients 10 a round; 200 at 3 times the loss, then 200 others, and new ones."""
    rng, signal = np.random.default_rng(0), Signal()
    loss = np.ones(1100)
    loss[:200] = loss[1000:] = 3.0
    found = {}
    for server_round in range(3000):
        if server_round == 1000:
            loss[:200], loss[200:400] = 1.0, 3.0
        # The last hundred join late, and are weak from their first visit.
        population = 1000 if server_round < 1000 else 1100
        there = rng.choice(population, 10, replace=False)
        level = max(0.1, 1 - 0.9 * server_round / 300) if request.param else 1.0
        losses = torch.from_numpy(loss[there] * level)
        signal.step(there, loss_shares(losses).numpy(), loss_size(losses))
        if server_round == 999:
            found["weak"] = signal.share(range(200)) / signal.share(range(400, 1000))
    others = signal.share(range(400, 1000))
    found["newly weak"] = signal.share(range(200, 400)) / others
    found["weak no longer"] = signal.share(range(200)) / others
    found["new and weak"] = signal.share(range(1000, 1100)) / others
    return found


@pytest.mark.parametrize(
    ("who", "expected"),
    [("weak", 3.0), ("newly weak", 3.0), ("weak no longer", 1.0), ("new and weak", 3.0)],
)
def test_clients_at_three_times_the_loss_reach_three_times_the_others_share(
    thousand: dict[str, float], who: str, expected: float
) -> None:
    assert thousand[who] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("attendance", [0.5, 1.0])
@pytest.mark.parametrize("observed", [-30.0, -1.0, 30.0])
def test_a_newcomers_one_odd_observation_is_forgotten_after_thirty_visits(
    observed: float, attendance: float, size: float
) -> None:
    rng, signal = np.random.default_rng(5), Signal()
    everybody = np.arange(10)
    for server_round in range(20):
        signal.step(everybody, np.full(10, 0.1), 1.0 if server_round == 0 else size)
    others = np.full(10, (1 - observed) / 10)
    signal.step(np.arange(11), np.append(others, observed), size)
    visits = 0
    while visits < 30:
        there = [client for client in range(10) if rng.random() < attendance]
        comes = rng.random() < attendance
        there += [10] * comes
        visits += comes
        if there:
            signal.step(there, np.full(len(there), 1 / len(there)), size)
    assert signal.share([10]) == pytest.approx(signal.share(range(10)), rel=0.2)


def test_updates_that_nearly_cancel_in_a_tenth_of_the_rounds_leave_weights_bounded() -> None:
    rng, worst = np.random.default_rng(8), 0.0
    signal = Signal()
    for _ in range(1500):
        count = int(rng.integers(2, 12))
        there = rng.choice(60, count, replace=False)
        updates = rng.normal(size=(count, 40)) + rng.normal(size=40)
        if rng.random() < 0.1:
            # What is left of the sum is a thousandth of an update.
            updates -= updates.mean(axis=0) * (1 - 1e-3)
        directions = torch.from_numpy(updates @ updates.sum(axis=0))
        shares = signal.step(
            there, direction_shares(directions).numpy(), direction_size(directions)
        )
        worst = max(worst, count * float(np.abs(shares).max()))
    assert worst < 20


def test_clients_alike_are_asked_for_the_same_rate_whenever_they_were_last_seen() -> None:
    rng, signal = np.random.default_rng(2), Signal()
    known: dict[int, float] = {}
    for server_round in range(600):
        there = rng.choice(1000, 10, replace=False)
        rates = requested_rates([known.get(int(client)) for client in there], 0.3, 10.0)
        assert all(abs(rate - 0.3) <= 0.001 for rate in rates)
        losses = torch.full((10,), max(0.1, 1 - 0.9 * server_round / 300), dtype=torch.float64)
        signal.step(there, loss_shares(losses).numpy(), loss_size(losses))
        relative = relative_losses(losses, signal.brought).tolist()
        known |= dict(zip(there.tolist(), relative, strict=True))
