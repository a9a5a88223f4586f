"""Parameter Adjustment on the clients: rounds by hand, mixed replies, and the server's placement.

The hand computations start from Δ_k, the updates as trained. `carried_out` is what an honest client
sends: its update adjusted as it was asked, with the report of what it did.
"""

import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.rounds import a_round, carried_out, drawn_results
from torch import Tensor

from fedpw_flwr.algorithm import (
    ClientResult,
    Consensus,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    WeightingState,
    server_step,
)

SECOND_ROUND, THIRD_ROUND = WeightingState(rounds=1), WeightingState(rounds=2)
PA_ALONE = FedPWSettings(avg_drop_rate=0.5, adapt_weights=False)
"""Equal weights, since no client reports its number of examples; half of each update is masked."""
NOTHING = SentAdjustment()


def adjusted_step(
    model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    sent: SentAdjustment,
    state: WeightingState,
) -> ServerStep:
    return server_step(model, carried_out(model, results, sent), state, PA_ALONE, sent=sent)


def consensus_of(indices: Sequence[int], entries: int, factor: float, round_: int) -> Consensus:
    members = torch.zeros(entries, dtype=torch.bool)
    members[list(indices)] = True
    return Consensus(round_, {"weight": members}, {"weight": factor})


def member_indices(consensus: Consensus | None, name: str = "weight") -> list[int]:
    assert consensus is not None
    return [int(index) for index in consensus.members[name].nonzero()]


def assert_same_step(one: ServerStep, other: ServerStep) -> None:
    """Bit for bit the same round: model, weights, memory, and the next consensus."""
    for what in ("weights", "state", "drop_rates", "amplification"):
        assert getattr(other, what) == getattr(one, what)
    assert (one.consensus is None) == (other.consensus is None)
    compared = [(one.model, other.model)]
    if one.consensus is not None and other.consensus is not None:
        assert other.consensus.round == one.consensus.round
        assert other.consensus.factors == one.consensus.factors
        compared.append((dict(one.consensus.members), dict(other.consensus.members)))
    for expected, found in compared:
        assert list(found) == list(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Eight entries, two clients. Client 0 drops three quarters of its update in round 2 and client 1 a
# quarter; in round 3 it is the other way round.
EIGHT = {"weight": torch.zeros(8)}
ROUND_2 = [8.0, 1, 7, 2, 6, 3, 5, 4]
ROUND_3 = [1.0, 8, 2, 7, 3, 6, 4, 5]


def test_third_round_applies_what_was_rescaled_and_divides_it_out_of_the_next_factor() -> None:
    f = 1.5
    sent = SentAdjustment({0: 0.25, 1: 0.75}, consensus_of([0, 2, 4, 5], 8, f, round_=2))
    results = a_round(EIGHT, {0: ROUND_3, 1: ROUND_3}, {0: 1.0, 1: 1.0})
    step = server_step(EIGHT, carried_out(EIGHT, results, sent), THIRD_ROUND, PA_ALONE, sent=sent)
    # Client 0 drops 1 and 2 (entries 0 and 2), client 1 keeps 8 and 7 (entries 1 and 3). On the
    # sent C, client 0's entries 4 and 5 are rescaled: 3f and 6f. Half of its update arrives in g.
    g = [0, 8, 0, 7, 1.5 * f, 3 * f, 2, 2.5]
    assert step.model["weight"].tolist() == [-entry for entry in g]
    assert step.amplification == {"weight": f}
    # Both kept 1 and 3; of the others (score 1) the lowest two are 4 and 5.
    assert member_indices(step.consensus) == [1, 3, 4, 5]
    # m = (1.5 + 3.5) / 2. f divided out on entries 4 and 5 alone: a = (8 + 7 + 1.5 + 3) / 4.
    expected = 1 + 2.5 / 4.875
    not_divided = 1 + 2.5 / ((8 + 7 + 1.5 * f + 3 * f) / 4)
    divided_on_the_next_set = 1 + 2.5 / ((8 / f + 7 / f + 1.5 + 3) / 4)
    assert step.consensus is not None
    assert step.consensus.round == 3
    assert step.consensus.factors["weight"] == pytest.approx(expected)
    assert step.consensus.factors["weight"] != pytest.approx(not_divided, rel=0.02)
    assert step.consensus.factors["weight"] != pytest.approx(divided_on_the_next_set, rel=0.02)


def test_a_tensor_that_one_client_could_not_mask_has_no_consensus_next() -> None:
    model = {"weight": torch.zeros(4), "long": torch.zeros(10)}
    update = {
        "weight": torch.tensor([4.0, 3.0, 2.0, 1.0]),
        "long": torch.arange(1.0, 11.0),
    }
    sent = SentAdjustment(rates={0: 0.5, 1: 0.2})
    results = a_round(model, {0: update, 1: update})
    step = adjusted_step(model, results, sent, SECOND_ROUND)
    # ⌊4 · 0.2⌋ = 0, ⌊10 · 0.2⌋ = 2: only the long tensor is rescaled in the next round.
    assert step.model["weight"].tolist() == [-4.0, -3.0, -1.0, -0.5]
    assert step.consensus is not None
    assert list(step.consensus.factors) == ["long"]
    assert list(step.consensus.members) == ["long"]


def test_a_sent_factor_is_not_carried_over_a_round_that_measures_none() -> None:
    model = {"weight": torch.zeros(4)}
    sent = SentAdjustment({0: 0.5, 1: 0.2}, consensus_of([0, 1], 4, 1.5, round_=2))
    results = a_round(model, {0: [4.0, 3, 2, 1], 1: [4.0, 3, 2, 1]})
    step = adjusted_step(model, results, sent, THIRD_ROUND)
    # This round is rescaled as asked, also for the client that masked nothing.
    assert step.model["weight"].tolist() == [-6.0, -4.5, -1.0, -0.5]
    assert step.consensus is not None
    assert step.consensus.round == 3
    assert step.consensus.factors == {}


def test_counters_and_single_numbers_are_only_averaged() -> None:
    model = {
        "weight": torch.zeros(4),
        "scale": torch.tensor(2.0),
        "steps": torch.tensor([4, 5]),
        "bn.num_batches_tracked": torch.tensor(4),
    }
    update = {
        "weight": torch.tensor([4.0, 3.0, 0.5, 1.0]),
        "scale": torch.tensor(0.5),
        "steps": torch.tensor([-2, -3]),
        "bn.num_batches_tracked": torch.tensor(-1),
    }
    results = a_round(model, {0: update, 1: update})
    # With the rate 1 every entry of a tensor is masked, and ⌊1 · r⌋ would be 1 for a 0-d one.
    sent = SentAdjustment({0: 1.0, 1: 0.5}, consensus_of([0, 1], 4, 1.25, round_=2))
    step = adjusted_step(model, results, sent, THIRD_ROUND)
    assert step.model["weight"].tolist() == [-2.5, -1.875, 0.0, 0.0]
    assert step.model["scale"].item() == 1.5
    assert step.model["steps"].tolist() == [6, 8]
    assert step.model["bn.num_batches_tracked"].item() == 5
    assert_same_step(step, server_step(model, results, THIRD_ROUND, PA_ALONE, sent=sent))


# --- Mixed replies ------------------------------------------------------------------------------

MIXED_MODEL = {
    "body.weight": torch.linspace(-1.0, 1.0, 24).reshape(6, 4),
    "body.bias": torch.linspace(0.0, 0.3, 4),
    "norm.running_mean": torch.linspace(0.5, 0.8, 4),
    "norm.num_batches_tracked": torch.tensor(10),
    "logit_scale": torch.tensor(1.5),
}


@st.composite
def sent_adjustments(draw: st.DrawFn, clients: Sequence[int]) -> SentAdjustment:
    rates = {client: draw(st.floats(0.01, 1.0)) for client in clients}
    if not draw(st.booleans()):
        return SentAdjustment(rates)
    names = draw(st.sets(st.sampled_from(["body.weight", "body.bias"])))
    sizes = {name: MIXED_MODEL[name].numel() for name in sorted(names)}
    members = {
        name: torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        for name, size in sizes.items()
    }
    factors = {name: draw(st.floats(1.01, 1.99)) for name in members}
    return SentAdjustment(rates, Consensus(2, members, factors))


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    sent_adjustments(range(4)),
    st.sets(st.integers(0, 3)),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 2**16),
    st.randoms(use_true_random=False),
)
def test_any_mixture_of_replies_in_any_order_gives_the_same_round(
    sent: SentAdjustment,
    followers: set[int],
    adapt: bool,
    dtype: torch.dtype,
    seed: int,
    shuffler: random.Random,
) -> None:
    model = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in MIXED_MODEL.items()
    }
    raw = drawn_results(model, range(4), torch.Generator().manual_seed(seed), 0.3)
    followed = carried_out(model, raw, sent)
    mixed = [(followed if k in followers else raw)[k] for k in range(4)]
    shuffler.shuffle(mixed)
    steps = [
        server_step(model, results, THIRD_ROUND, FedPWSettings(adapt_weights=adapt), sent=sent)
        for results in (followed, mixed)
    ]
    assert_same_step(*steps)
    assert all(torch.isfinite(tensor).all() for tensor in steps[0].model.values())


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.booleans())
def test_the_first_round_is_the_same_in_both_placements(seed: int, adapt: bool) -> None:
    settings = FedPWSettings(adapt_weights=adapt)
    raw = drawn_results(MIXED_MODEL, range(3), torch.Generator().manual_seed(seed), 0.3)
    assert_same_step(
        server_step(MIXED_MODEL, raw, WeightingState(), settings),
        server_step(
            MIXED_MODEL,
            carried_out(MIXED_MODEL, raw, NOTHING),
            WeightingState(),
            settings,
            sent=NOTHING,
        ),
    )


def test_an_entry_that_rescaling_overflows_stays_finite() -> None:
    largest = torch.finfo(torch.float16).max
    model = {"weight": torch.tensor([60000.0, -60000.0, 0.0, 0.0], dtype=torch.float16)}
    results = a_round(model, {k: [-5000.0, 5000.0, 4000.0, 4000.0] for k in (0, 1)})
    sent = SentAdjustment({0: 0.5, 1: 0.5}, consensus_of([0, 1], 4, 1.8, round_=2))
    step = adjusted_step(model, results, sent, THIRD_ROUND)
    # 1.8 · 5000 takes ±60000 to ±69000, beyond float16's 65504.
    assert step.model["weight"].tolist() == [largest, -largest, 0.0, 0.0]
    assert step.consensus is not None
    assert all(math.isfinite(factor) for factor in step.consensus.factors.values())
