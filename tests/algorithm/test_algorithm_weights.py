"""Adaptive weights with everybody present: ALGORITHM.md section 1, computed by hand."""

import math

import pytest
import torch
from support.rounds import a_round, doubles

from fedpw_flwr.algorithm import FedPWSettings, WeightingState, server_step
from fedpw_flwr.algorithm.direction import add_tensor_directions
from fedpw_flwr.algorithm.memory import momentum_rate
from fedpw_flwr.algorithm.weights import loss_size, mix_terms

AWA_ALONE = FedPWSettings(adjust_parameters=False)


def test_shape_and_memory_layout_do_not_matter_to_a_direction() -> None:
    start = torch.zeros(2, 3)
    trained = -torch.arange(6.0).reshape(3, 2).T
    assert not trained.is_contiguous()
    directions = [0.0]
    add_tensor_directions(directions, start, [trained])
    assert directions == [0 + 1 + 4 + 9 + 16 + 25]


@pytest.mark.parametrize(
    ("size", "first", "expected"),
    [
        (2.0, 4.0, 0.15),
        (40.0, 4.0, 1.0 - 1e-12),
        (1e300, 1e-300, 1.0 - 1e-12),
        (0.0, 4.0, 0.0),
        (-1e-9, 4.0, 0.0),
        (0.0, None, 0.0),
    ],
)
def test_momentum_is_proportional_to_the_size_of_a_round_and_below_one(
    size: float, first: float | None, expected: float
) -> None:
    assert momentum_rate(0.3, size, first) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("updates", [{0: [0.0], 1: [0.0]}, {0: [1.0], 1: [-1.0]}])
def test_zero_or_cancelling_updates_give_equal_shares_and_no_baseline(
    updates: dict[int, list[float]],
) -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, updates, {0: 1.0, 1: 3.0})
    step = server_step(model, results, WeightingState(), AWA_ALONE)
    assert step.weights.direction_term == (0.5, 0.5)
    # The direction does not spread, so the losses decide alone.
    assert step.weights.weights == (0.25, 0.75)
    assert step.state.direction.first_size is None


def test_all_zero_losses_share_equally_and_set_no_baseline() -> None:
    model = {"weight": torch.zeros(1)}
    step = server_step(
        model, a_round(model, {0: [3.0], 1: [1.0]}, 0.0), WeightingState(), AWA_ALONE
    )
    assert step.weights.loss_term == (0.5, 0.5)
    assert step.weights.weights == (0.75, 0.25)
    assert step.state.loss.first_size is None


def test_size_of_the_loss_is_its_mean_even_near_the_largest_double() -> None:
    assert loss_size(doubles(1.0, 2.0, 6.0)) == pytest.approx(3.0)
    assert loss_size(doubles(1.5e308, 1.5e308, 0.9e308)) == pytest.approx(1.3e308)
    assert loss_size(doubles(0.0, 0.0)) == 0.0


def test_terms_are_mixed_by_their_sample_standard_deviation() -> None:
    p, q = (0.5, 0.3, 0.2), (0.1, 0.1, 0.8)
    mean = 1 / 3
    spread_p = math.sqrt(sum((value - mean) ** 2 for value in p) / 2)
    spread_q = math.sqrt(sum((value - mean) ** 2 for value in q) / 2)
    expected = [(spread_p * p[k] + spread_q * q[k]) / (spread_p + spread_q) for k in range(3)]
    weights, loss_share = mix_terms(doubles(*p), doubles(*q))
    assert weights.tolist() == pytest.approx(expected, abs=1e-12)
    assert loss_share == pytest.approx(spread_q / (spread_p + spread_q), abs=1e-12)


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ({0: 30, 1: 10}, (0.75, 0.25)),
        (None, (0.5, 0.5)),
        ({0: 0, 1: 0}, (0.5, 0.5)),
    ],
)
def test_without_adaptive_weights_clients_count_by_their_examples(
    examples: dict[int, float] | None, expected: tuple[float, float]
) -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, {0: [4.0], 1: [8.0]}, examples=examples)
    settings = FedPWSettings(adapt_weights=False, adjust_parameters=False)
    step = server_step(model, results, WeightingState(), settings)
    assert step.weights.weights == expected
    assert step.model["weight"].item() == -(expected[0] * 4 + expected[1] * 8)
    assert step.weights.direction_term is None
    assert step.weights.loss_term is None
    assert step.weights.loss_term_share is None
