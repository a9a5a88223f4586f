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
from hypothesis import given, settings
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
    rounds: Rounds, settings: FedPWSettings, update_scale: float = 1.0, loss_scale: float = 1.0
) -> list[ServerStep]:
    """Run the rounds, each from a model of zeros."""
    model = {"weight": torch.zeros(ENTRIES)}
    state = WeightingState()
    steps = []
    for replies in rounds:
        results = [
            ClientResult(
                reply.client,
                {"weight": -update_scale * torch.tensor(reply.update)},
                loss_scale * reply.loss,
            )
            for reply in replies
        ]
        steps.append(server_step(model, results, state, settings))
        state = steps[-1].state
    return steps


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


@settings(max_examples=60, deadline=None)
@given(identical_federations(), st.booleans(), st.floats(0.01, 1.0))
def test_identical_clients_keep_identical_weights_whatever_their_attendance(
    rounds: Rounds, clip: bool, beta: float
) -> None:
    for step in play(rounds, FedPWSettings(clip_weights=clip, beta=beta)):
        equal = [1 / len(step.clients)] * len(step.clients)
        assert step.weights.weights == pytest.approx(equal, abs=1e-12)
        assert step.weights.direction_term == pytest.approx(equal, abs=1e-12)
        assert step.weights.loss_term == pytest.approx(equal, abs=1e-12)
