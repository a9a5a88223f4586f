"""What one client reports moves a round only within bounds, and rounds within them not at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.rounds import doubles

from fedpw_flwr.algorithm import (
    ClientResult,
    FedPWSettings,
    ServerStep,
    WeightingState,
    server_step,
)
from fedpw_flwr.algorithm.bounds import bounded_losses, bounded_weights

LOSSES = st.lists(st.floats(0, 1e300), min_size=1, max_size=12)
WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda each: sum(each) > 0)


def test_a_huge_loss_counts_as_ten_times_the_median() -> None:
    assert bounded_losses(doubles(1.0, 2.0, 3.0, 1e6, 2.0), 10.0).tolist() == [1, 2, 3, 20, 2]


@pytest.mark.parametrize("reported", [(0.0, 0.0, 5.0), (1e308, 1e308, 0.0), (0.0,)])
def test_a_median_that_gives_no_bounds_changes_nothing(reported: tuple[float, ...]) -> None:
    assert bounded_losses(doubles(*reported), 10.0).tolist() == list(reported)


@given(LOSSES, st.floats(1, 100))
def test_losses_within_the_ratio_keep_their_bits(values: list[float], ratio: float) -> None:
    reported = doubles(*values)
    bounded = bounded_losses(reported, ratio)
    median = float(torch.quantile(reported, 0.5))
    for before, after in zip(values, bounded.tolist(), strict=True):
        assert after == before or not median / ratio <= before <= median * ratio


@pytest.mark.parametrize(
    ("weights", "most", "expected"),
    [
        ([0.7, 0.2, 0.1, 0.0], 1.6, [0.4, 0.4, 0.2, 0.0]),
        # One that is pushed over the bound stops there; others without any weight share equally.
        ([0.58, 0.38, 0.02, 0.01, 0.01], 2.0, [0.4, 0.4, 0.1, 0.05, 0.05]),
        ([1.0, 0.0, 0.0, 0.0], 3.0, [0.75] + 3 * [0.25 / 3]),
    ],
)
def test_what_a_weight_has_too_much_goes_to_the_others_in_proportion(
    weights: list[float], most: float, expected: list[float]
) -> None:
    assert bounded_weights(weights, most) == pytest.approx(expected)


def test_weights_at_the_bound_stay_there_whatever_is_left_for_the_others() -> None:
    bounded = bounded_weights([0.55, 0.44, 0.01, 1e-20, 0.0, 0.0, 0.0, 0.0, 0.0], 3.0)
    assert math.fsum(bounded) == pytest.approx(1.0)
    assert bounded[:3] == pytest.approx([1 / 3] * 3)


@given(
    WEIGHTS | st.lists(st.floats(-1, 1), max_size=20).filter(lambda each: sum(each) > 0.2),
    st.floats(1, 6),
)
def test_bounded_weights_sum_to_one_and_keep_their_order(raw: list[float], most: float) -> None:
    weights = [weight / sum(raw) for weight in raw]
    bounded = bounded_weights(weights, most)
    assert math.fsum(bounded) == pytest.approx(1.0)
    assert max(bounded) <= most / len(weights) * (1 + 1e-12) or max(weights) * len(weights) <= most
    ranked = sorted(range(len(weights)), key=weights.__getitem__)
    in_order = [bounded[place] for place in ranked]
    assert in_order == sorted(in_order)


@given(WEIGHTS)
def test_weights_within_the_bound_keep_their_bits(raw: list[float]) -> None:
    weights = [weight / sum(raw) for weight in raw]
    assert bounded_weights(weights, 12.0) == tuple(weights)


@pytest.mark.parametrize("loss", [1e6, 1e300])
def test_a_liar_gets_no_more_than_its_bound_and_is_named(loss: float) -> None:
    bounded = play(loss, FedPWSettings())
    assert bounded.weights.weights[3] <= 3 / 20 + 1e-12
    assert bounded.bounded == (3,)
    assert play(loss, FedPWSettings(max_weight=None, max_loss_ratio=None)).weights.weights[3] > 0.9


def test_a_tiny_loss_does_not_switch_the_masking_of_the_others_off() -> None:
    bounded = play(1e-9, FedPWSettings())
    assert bounded.drop_rates is not None
    assert min(bounded.drop_rates) > 0.1
    unbounded = play(1e-9, FedPWSettings(max_weight=None, max_loss_ratio=None))
    assert unbounded.drop_rates is not None
    assert min(unbounded.drop_rates) < 0.01


def play(loss: float, settings: FedPWSettings) -> ServerStep:
    """Twenty clients, of which client 3 reports `loss`, after eight rounds of like updates."""
    generator = torch.Generator().manual_seed(0)
    model = {"weight": torch.zeros(1000)}
    shared = torch.randn(1000, generator=generator)
    results = [
        ClientResult(
            client,
            {"weight": shared + 0.01 * torch.randn(1000, generator=generator)},
            loss if client == 3 else 1.0 + 0.01 * client,
        )
        for client in range(20)
    ]
    state = WeightingState()
    for _ in range(8):
        step = server_step(model, results, state, settings)
        state = step.state
    return step
