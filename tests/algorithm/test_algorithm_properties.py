"""What must hold for any federation: invariants of the method, over generated rounds.

Updates are small integers over 8, so that products and sums in them are exact and a difference
between two results is a difference in the method, not in rounding.
"""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedpw_flwr.algorithm import (
    ClientResult,
    FedPWSettings,
    ServerStep,
    WeightingState,
    server_step,
)

Vector = npt.NDArray[np.float64]
ENTRIES = 10

claim = settings(max_examples=60, deadline=None)
entry = st.integers(-16, 16).map(lambda value: value / 8)
update = st.lists(entry, min_size=ENTRIES, max_size=ENTRIES)
loss = st.floats(0.1, 10.0)


@dataclass(frozen=True)
class Reply:
    """One client's round: its update of a single tensor, and its loss."""

    client: int
    update: list[float]
    loss: float


Rounds = list[list[Reply]]


def replies_of(clients: list[int]) -> st.SearchStrategy[list[Reply]]:
    return st.tuples(*(st.builds(Reply, st.just(client), update, loss) for client in clients)).map(
        list
    )


@st.composite
def federations(draw: st.DrawFn, full: bool = False) -> Rounds:
    """Rounds of a federation of up to five clients; each round a subset, or everybody."""
    pool = draw(st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True))
    subset = (
        st.just(pool)
        if full
        else st.lists(st.sampled_from(pool), min_size=1, max_size=len(pool), unique=True)
    )
    return [draw(subset.flatmap(replies_of)) for _ in range(draw(st.integers(1, 4)))]


def play(
    rounds: Rounds,
    settings: FedPWSettings,
    update_scale: float = 1.0,
    loss_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    state: WeightingState | None = None,
) -> list[ServerStep]:
    """Run the rounds, each from a model of zeros."""
    model = {"weight": torch.zeros(ENTRIES, dtype=dtype)}
    state = state or WeightingState()
    steps = []
    for replies in rounds:
        results = [
            ClientResult(
                reply.client,
                {"weight": -update_scale * torch.tensor(reply.update, dtype=dtype)},
                loss_scale * reply.loss,
            )
            for reply in replies
        ]
        steps.append(server_step(model, results, state, settings))
        state = steps[-1].state
    return steps


def directions(replies: list[Reply]) -> Vector:
    updates = np.array([reply.update for reply in replies])
    return np.asarray(updates @ updates.sum(axis=0))


@claim
@given(federations(), st.booleans(), st.booleans())
def test_weights_and_both_terms_sum_to_one(rounds: Rounds, clip: bool, adjust: bool) -> None:
    for step in play(rounds, FedPWSettings(clip_weights=clip, adjust_parameters=adjust)):
        for values in (
            step.weights.weights,
            step.weights.direction_term,
            step.weights.loss_term,
        ):
            assert values is not None
            assert sum(values) == pytest.approx(1.0, abs=1e-12 * max(1.0, *map(abs, values)))


@claim
@given(federations())
def test_clipped_weights_are_never_negative(rounds: Rounds) -> None:
    for step in play(rounds, FedPWSettings()):
        assert min(step.weights.weights) >= 0
        assert torch.isfinite(step.model["weight"]).all()


@claim
@given(federations(), st.randoms(use_true_random=False))
def test_any_order_of_the_clients_gives_the_same_result(
    rounds: Rounds, shuffler: random.Random
) -> None:
    shuffled = [shuffler.sample(replies, len(replies)) for replies in rounds]
    for one, other in zip(
        play(rounds, FedPWSettings()), play(shuffled, FedPWSettings()), strict=True
    ):
        assert other.weights == one.weights
        assert other.state == one.state
        assert other.drop_rates == one.drop_rates
        assert torch.equal(other.model["weight"], one.model["weight"])


@claim
@given(federations(), st.integers(-20, 20), st.integers(-12, 12))
def test_doubling_all_losses_or_all_updates_of_all_rounds_changes_no_weight(
    rounds: Rounds, loss_power: int, update_power: int
) -> None:
    plain = play(rounds, FedPWSettings())
    scaled = play(rounds, FedPWSettings(), 2.0**update_power, 2.0**loss_power)
    for one, other in zip(plain, scaled, strict=True):
        assert other.weights == one.weights
        assert other.drop_rates == one.drop_rates
        assert torch.equal(other.model["weight"], 2.0**update_power * one.model["weight"])


@claim
@given(federations(), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_scaling_all_losses_or_all_updates_of_all_rounds_leaves_the_weights_alone(
    rounds: Rounds, loss_scale: float, update_scale: float
) -> None:
    # Where directions cancel, shares divide by nothing, and rounding decides.
    assume(all(directions(replies).sum() > 0.01 for replies in rounds))
    for one, other in zip(
        play(rounds, FedPWSettings(), dtype=torch.float64),
        play(rounds, FedPWSettings(), update_scale, loss_scale, dtype=torch.float64),
        strict=True,
    ):
        assert other.weights.weights == pytest.approx(one.weights.weights, abs=1e-9)
        assert (other.drop_rates or ()) == pytest.approx(one.drop_rates or (), rel=1e-9)


@claim
@given(federations())
def test_the_state_of_an_absent_client_stands_still(rounds: Rounds) -> None:
    before = WeightingState()
    for replies, step in zip(rounds, play(rounds, FedPWSettings()), strict=True):
        present = {reply.client for reply in replies}
        for old, new in (
            (before.direction, step.state.direction),
            (before.loss, step.state.loss),
        ):
            assert set(new.clients) == set(old.clients) | present
            for client in set(old.clients) - present:
                assert new.clients[client] == old.clients[client]
        before = step.state


@st.composite
def identical_federations(draw: st.DrawFn) -> Rounds:
    """Rounds in which all who are there send the same; attendance is arbitrary."""
    pool = range(draw(st.integers(2, 7)))
    rounds = []
    for _ in range(draw(st.integers(2, 10))):
        present = draw(st.sets(st.sampled_from(list(pool)), min_size=1))
        same_update = draw(st.one_of(update, st.just([0.0] * ENTRIES)))
        same_loss = draw(st.one_of(loss, st.just(0.0)))
        rounds.append([Reply(client, same_update, same_loss) for client in present])
    return rounds


@settings(max_examples=120, deadline=None)
@given(identical_federations(), st.booleans(), st.floats(0.01, 1.0))
def test_identical_clients_keep_identical_weights_whatever_their_attendance(
    rounds: Rounds, clip: bool, beta: float
) -> None:
    for step in play(rounds, FedPWSettings(clip_weights=clip, beta=beta)):
        equal = [1 / len(step.clients)] * len(step.clients)
        assert step.weights.weights == pytest.approx(equal, abs=1e-12)
        assert step.weights.direction_term == pytest.approx(equal, abs=1e-12)
        assert step.weights.loss_term == pytest.approx(equal, abs=1e-12)


@claim
@given(federations(full=True), st.floats(0.01, 1.0))
def test_full_participation_is_the_plain_formula_of_the_paper(rounds: Rounds, beta: float) -> None:
    rounds = [sorted(replies, key=lambda reply: reply.client) for replies in rounds]
    assume(all(directions(replies).sum() > 0 for replies in rounds))
    paper = FedPWSettings(beta=beta, clip_weights=False, max_weight=None, max_loss_ratio=None)
    steps = play(rounds, paper, dtype=torch.float64)

    count = len(rounds[0])
    p = q = delta_p = delta_q = np.zeros(count)
    first_direction = first_loss = None
    for replies, step in zip(rounds, steps, strict=True):
        d = directions(replies)
        losses = np.array([reply.loss for reply in replies])
        direction_size, loss_size = d.mean() / count, losses.mean()
        if first_direction is None:
            first_direction, first_loss = direction_size, loss_size
        beta_direction = min(1.0, beta * direction_size / first_direction)
        beta_loss = min(1.0, beta * loss_size / first_loss)
        delta_p = (1 - beta_direction) * delta_p + beta_direction * d / d.sum()
        delta_q = (1 - beta_loss) * delta_q + beta_loss * losses / losses.sum()
        p, q = (p + delta_p) / (p + delta_p).sum(), (q + delta_q) / (q + delta_q).sum()
        spread_p, spread_q = p.std(ddof=1), q.std(ddof=1)
        # Terms that differ by rounding alone have no spread to compare.
        clear = spread_p + spread_q > 1e-6

        np.testing.assert_allclose(np.array(step.weights.direction_term), p, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.array(step.weights.loss_term), q, rtol=1e-9, atol=1e-9)
        if clear:
            expected = (spread_p * p + spread_q * q) / (spread_p + spread_q)
            np.testing.assert_allclose(
                np.array(step.weights.weights), expected, rtol=1e-9, atol=1e-9
            )


def literal_adjustment(
    updates: Vector, weights: Vector, losses: Vector, mean_rate: float
) -> Vector:
    """Section 2 of ALGORITHM.md with sorts and an N×n matrix; returns the amplified g."""
    entries = updates.shape[1]
    rates = np.minimum(1.0, mean_rate * (1 / losses) / (1 / losses).mean())
    counts = [int(np.floor(entries * rate + 1e-9)) for rate in rates]
    masked, taken = updates.copy(), []
    for row, count in enumerate(counts):
        smallest = np.argsort(np.abs(updates[row]), kind="stable")[:count]
        taken.append(np.abs(updates[row, smallest]).mean() if count else 0.0)
        masked[row, smallest] = 0.0
    g = np.asarray(weights @ masked)
    if not all(counts):
        return g
    norms = np.sqrt((masked**2).sum(axis=1, keepdims=True))
    x = np.divide(masked, norms, out=np.zeros_like(masked), where=norms > 0)
    squares = (x**2).sum(axis=0)
    score = np.divide(x.sum(axis=0) ** 2, squares, out=np.zeros(entries), where=squares > 0)
    # Rounding to 12 digits keeps ties that are exact on paper.
    order = np.argsort(-score.round(12), kind="stable")
    consensus = order[: int(np.floor(entries * mean_rate + 1e-9))]
    size = np.abs(g[consensus]).mean()
    if size > 0 and np.mean(taken) / size < 1:
        g[consensus] *= 1 + np.mean(taken) / size
    return g


@claim
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
)
def test_parameter_adjustment_is_that_of_sorts_and_matrices(
    seed: int, clients: int, entries: int, rate: float
) -> None:
    generator = np.random.default_rng(seed)
    common = generator.normal(size=entries)
    updates = common + generator.normal(size=(clients, entries))
    losses = generator.uniform(0.2, 5.0, size=clients)
    results = [
        ClientResult(k, {"weight": -torch.from_numpy(updates[k])}, float(losses[k]))
        for k in range(clients)
    ]
    model = {"weight": torch.zeros(entries, dtype=torch.float64)}
    settings = FedPWSettings(avg_drop_rate=rate, max_loss_ratio=None)
    step = server_step(model, results, WeightingState(rounds=1), settings)
    expected = literal_adjustment(updates, np.array(step.weights.weights), losses, rate)
    np.testing.assert_allclose(-step.model["weight"].numpy(), expected, rtol=1e-9, atol=1e-12)
