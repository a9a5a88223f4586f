"""Finite numbers, however large, small or cancelling, never end in a model of NaN."""

import math

import pytest
import torch
from support.rounds import a_round

from fedpw_flwr.algorithm import FedPWSettings, WeightingState, server_step
from fedpw_flwr.algorithm.reference import Reference, StartEngine
from fedpw_flwr.engines.cpu import CpuEngine

both_engines = pytest.mark.parametrize("engine", [Reference, CpuEngine])


@both_engines
@pytest.mark.parametrize("magnitude", [1e15, 1e25, 1e37])
def test_a_diverged_but_finite_client_leaves_model_and_memory_finite(
    magnitude: float, engine: StartEngine
) -> None:
    model = {"weight": torch.zeros(4)}
    results = a_round(model, {0: [1.0] * 4, 1: [2.0] * 4, 2: [magnitude] * 4})
    state = WeightingState()
    for _ in range(2):
        step = server_step(model, results, state, FedPWSettings(), engine=engine)
        state = step.state
        assert torch.isfinite(step.model["weight"]).all()
        assert sum(step.weights.weights) == pytest.approx(1.0)
        assert state.direction.first_size is None or math.isfinite(state.direction.first_size)
        assert all(math.isfinite(c.share) for c in state.direction.clients.values())


@both_engines
@pytest.mark.parametrize("magnitude", [1e-10, 1e-18, 1e-25, 1e-35])
def test_tiny_updates_have_the_weights_of_large_ones(magnitude: float, engine: StartEngine) -> None:
    model = {"weight": torch.zeros(2)}
    results = a_round(model, {0: [3 * magnitude] * 2, 1: [magnitude] * 2})
    step = server_step(model, results, WeightingState(), FedPWSettings(), engine=engine)
    assert step.weights.direction_term == pytest.approx((0.75, 0.25), rel=1e-5)


@both_engines
def test_updates_that_cancel_up_to_rounding_count_as_cancelling(engine: StartEngine) -> None:
    model = {"weight": torch.zeros(4)}
    updates = {
        0: [0.1, 0.7, 0.3, 0.9],
        1: [0.2, 0.11, -0.77, 0.3],
        2: [-0.3, -0.81, 0.47, -1.2],
    }
    step = server_step(
        model, a_round(model, updates), WeightingState(), FedPWSettings(), engine=engine
    )
    assert step.weights.direction_term == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert step.state.direction.first_size is None
