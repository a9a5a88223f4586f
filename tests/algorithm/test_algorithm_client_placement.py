"""Parameter Adjustment on the clients: what is never adjusted, mixed replies, the first round.

The golden rounds "clients" have the rest. `carried_out` is what an honest client sends: its update
adjusted as it was asked, with the report of what it did.
"""

import math
import random
from collections.abc import Mapping, Sequence

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
from fedpw_flwr.algorithm.client_step import AdjustedTensors

THIRD_ROUND = WeightingState(rounds=2)
PA_ALONE = FedPWSettings(avg_drop_rate=0.5, adapt_weights=False)
"""Equal weights, since no client reports its number of examples; half of each update is masked."""
NOTHING = SentAdjustment()


def adjusted_step(
    model: Mapping[str, Tensor], results: Sequence[ClientResult], sent: SentAdjustment
) -> ServerStep:
    return server_step(model, carried_out(model, results, sent), THIRD_ROUND, PA_ALONE, sent=sent)


def first_two_of_four(factor: float) -> Consensus:
    members = torch.tensor([True, True, False, False])
    return Consensus(2, {"weight": members}, {"weight": factor})


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
    sent = SentAdjustment({0: 1.0, 1: 0.5}, first_two_of_four(1.25))
    step = adjusted_step(model, results, sent)
    assert step.model["weight"].tolist() == [-2.5, -1.875, 0.0, 0.0]
    assert step.model["scale"].item() == 1.5
    assert step.model["steps"].tolist() == [6, 8]
    assert step.model["bn.num_batches_tracked"].item() == 5
    assert_same_step(step, server_step(model, results, THIRD_ROUND, PA_ALONE, sent=sent))


def test_discarded_magnitude_may_be_asked_before_or_after_the_tensor() -> None:
    model = {"weight": torch.zeros(4), "scale": torch.tensor(1.0), "count": torch.tensor(3)}
    trained = {**model, "weight": -torch.tensor([4.0, 3.0, 2.0, 1.0])}
    before, after = (AdjustedTensors(model, trained, 0.5, None) for _ in range(2))
    assert before.discarded_magnitude("weight") == 1.5
    assert after["weight"].tolist() == [-4.0, -3.0, 0.0, 0.0]
    assert after.discarded_magnitude("weight") == 1.5
    assert before.discarded_magnitude("scale") == 0.0
    assert before.discarded_magnitude("count") == 0.0


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
    sent = SentAdjustment({0: 0.5, 1: 0.5}, first_two_of_four(1.8))
    step = adjusted_step(model, results, sent)
    # 1.8 · 5000 takes ±60000 to ±69000, beyond float16's 65504.
    assert step.model["weight"].tolist() == [largest, -largest, 0.0, 0.0]
    assert step.consensus is not None
    assert all(math.isfinite(factor) for factor in step.consensus.factors.values())
