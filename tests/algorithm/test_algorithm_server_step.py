"""Whole server steps small enough to compute by hand: masks, consensus, dtypes, errors."""

import copy

import pytest
import torch
from support.rounds import a_round, drawn_results

from fedpw_flwr.algorithm import FedPWSettings, WeightingState, server_step

SECOND_ROUND = WeightingState(rounds=1)
PA_ALONE = FedPWSettings(avg_drop_rate=0.5, adapt_weights=False, max_loss_ratio=None)
"""Equal weights, since no client reports its number of examples; half of each update is masked."""


def test_without_parameter_adjustment_updates_are_averaged_as_they_are() -> None:
    model = {"weight": torch.zeros(4)}
    results = a_round(model, {0: [4.0, 3.0, 0.5, 1.0], 1: [4.0, 1.0, -3.0, 0.5]}, losses=None)
    settings = FedPWSettings(adapt_weights=False, adjust_parameters=False)
    step = server_step(model, results, SECOND_ROUND, settings)
    assert step.model["weight"].tolist() == [-4.0, -2.0, 1.25, -0.75]
    assert step.drop_rates is None


@pytest.mark.parametrize("settings", [PA_ALONE, FedPWSettings(avg_drop_rate=0.5)])
@pytest.mark.parametrize("update", [[0.0] * 4, [4.0, -3.0, 0.0, 0.0]])
def test_zero_and_cancelling_updates_leave_the_model_alone(
    settings: FedPWSettings, update: list[float]
) -> None:
    model = {"weight": torch.tensor([1.0, -2.0, 3.0, 4.0])}
    results = a_round(model, {0: update, 1: [-entry for entry in update]})
    step = server_step(model, results, SECOND_ROUND, settings)
    assert torch.equal(step.model["weight"], model["weight"])
    assert sum(step.weights.weights) == pytest.approx(1.0)


def test_named_tensors_alone_decide_direction_and_consensus() -> None:
    model = {"body": torch.zeros(4), "head": torch.zeros(4)}
    entries = torch.tensor([4.0, 3.0, 0.5, 1.0])
    updates = {
        0: {"body": -10 * entries, "head": 3 * entries},
        1: {"body": 20 * entries, "head": entries},
    }
    settings = FedPWSettings(avg_drop_rate=0.5, trainable=("head",))
    first = server_step(model, a_round(model, updates), WeightingState(), settings)
    assert first.weights.direction_term == pytest.approx((0.75, 0.25))
    second = server_step(model, a_round(model, updates), first.state, settings)
    assert set(second.amplification) == {"head"}
    assert second.model["body"].tolist()[2:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("examples", "expected"),
    [({0: 1, 1: 3}, 10), ({0: 3, 1: 1}, 9), ({0: 1, 1: 10_000_000}, 10)],
)
def test_counters_are_averaged_and_rounded_to_nearest(
    examples: dict[int, float] | None, expected: int
) -> None:
    model = {"weight": torch.zeros(1), "bn.num_batches_tracked": torch.tensor(4)}
    updates = {
        0: {"weight": torch.tensor([1.0]), "bn.num_batches_tracked": torch.tensor(4 - 9)},
        1: {"weight": torch.tensor([1.0]), "bn.num_batches_tracked": torch.tensor(4 - 10)},
    }
    results = a_round(model, updates, examples=examples)
    step = server_step(model, results, SECOND_ROUND, PA_ALONE)
    counter = step.model["bn.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter.shape == ()
    assert counter.item() == expected
    assert set(step.amplification) == {"weight"}


def test_large_counters_are_exact() -> None:
    model = {"weight": torch.zeros(1), "count": torch.tensor([2**40 + 1])}
    update = {"weight": torch.ones(1), "count": torch.tensor([-2])}
    results = a_round(model, {0: update, 1: update, 2: update})
    step = server_step(model, results, WeightingState(), FedPWSettings())
    assert step.model["count"].tolist() == [2**40 + 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    model = {"weight": torch.zeros(4, dtype=dtype)}
    # 600² overflows float16.
    results = a_round(model, {0: [300.0] * 4, 1: [600.0] * 4})
    step = server_step(model, results, WeightingState(), FedPWSettings())
    assert step.weights.direction_term == pytest.approx((1 / 3, 2 / 3), rel=1e-2)
    assert step.model["weight"].dtype == dtype
    assert step.model["weight"].tolist() == pytest.approx([-500.0] * 4, rel=1e-2)


@pytest.mark.parametrize("state", [WeightingState(), SECOND_ROUND])
def test_scalars_and_empty_tensors_pass_through_a_step(state: WeightingState) -> None:
    model = {
        "scale": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
        "no.running_mean": torch.zeros(0),
        "weight": torch.zeros(2, 2),
    }
    update = {name: torch.full_like(tensor, 0.5) for name, tensor in model.items()}
    step = server_step(model, a_round(model, {0: update, 1: update}), state, FedPWSettings())
    assert list(step.model) == list(model)
    for name, tensor in model.items():
        assert step.model[name].shape == tensor.shape
        assert step.model[name].dtype == tensor.dtype
    assert step.model["scale"].item() == 1.5


def test_parameters_that_require_gradients_are_aggregated_without_them() -> None:
    network = torch.nn.Linear(4, 2)
    model = dict(network.named_parameters())
    updates = {
        client: {name: torch.randn(tensor.shape) for name, tensor in model.items()}
        for client in range(3)
    }
    step = server_step(model, a_round(model, updates), SECOND_ROUND, FedPWSettings())
    assert not any(tensor.requires_grad for tensor in step.model.values())


def test_a_step_modifies_none_of_its_inputs() -> None:
    generator = torch.Generator().manual_seed(3)
    model = {
        "fc.weight": torch.randn(7, 9, generator=generator),
        "bn.running_var": torch.rand(11, generator=generator),
        "bn.num_batches_tracked": torch.tensor(5),
    }
    results = drawn_results(model, (30, 4, 17, 8), generator, 1.0)
    state = server_step(model, results, WeightingState(), FedPWSettings()).state
    before = copy.deepcopy((model, results, state))
    step = server_step(model, results, state, FedPWSettings())
    for tensor in step.model.values():
        tensor.zero_()
    assert state == before[2]
    for name in model:
        assert torch.equal(model[name], before[0][name])
        for result, kept in zip(results, before[1], strict=True):
            assert torch.equal(result.tensors[name], kept.tensors[name])


def test_lists_run_over_the_clients_in_order_of_identity() -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, {9: [1.0], 2: [3.0], 5: [4.0]}, {9: 1.0, 2: 2.0, 5: 5.0})
    step = server_step(model, results, SECOND_ROUND, FedPWSettings())
    inverse = (1 / 2, 1 / 5, 1.0)
    assert step.clients == (2, 5, 9)
    assert step.drop_rates == pytest.approx([0.3 * v / (sum(inverse) / 3) for v in inverse])
    first = server_step(model, results, WeightingState(), FedPWSettings())
    assert first.weights.direction_term == pytest.approx((3 / 8, 4 / 8, 1 / 8))
    assert first.weights.loss_term == pytest.approx((2 / 8, 5 / 8, 1 / 8))


def test_a_round_without_results_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        server_step({"weight": torch.zeros(1)}, [], WeightingState(), FedPWSettings())


def test_a_client_that_appears_twice_is_named() -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, {0: [1.0], 41: [1.0]}) + a_round(model, {41: [2.0]})
    with pytest.raises(ValueError, match=r"41.*twice"):
        server_step(model, results, WeightingState(), FedPWSettings())


@pytest.mark.parametrize("loss", [None, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "settings",
    [FedPWSettings(), FedPWSettings(adapt_weights=False), FedPWSettings(adjust_parameters=False)],
)
def test_a_missing_or_impossible_loss_names_the_client(
    settings: FedPWSettings, loss: float | None
) -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, {0: [1.0], 41: [1.0]}, {0: 1.0, 41: loss})
    with pytest.raises(ValueError, match=r"client 41.*loss"):
        server_step(model, results, WeightingState(), settings)


def test_clients_without_a_number_of_examples_among_others_are_named() -> None:
    model = {"weight": torch.zeros(1)}
    results = a_round(model, {0: [1.0], 41: [3.0]}, examples={0: 10, 41: None})
    with pytest.raises(ValueError, match="41"):
        server_step(model, results, WeightingState(), FedPWSettings(adapt_weights=False))
