"""The server step in blocks is that of the reference, whatever the threads."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import carried_out, drawn_results
from torch import Tensor

from fedpw_flwr.algorithm import (
    ClientResult,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    WeightingState,
    classify_tensors,
    server_step,
)
from fedpw_flwr.algorithm.reference import Cohort
from fedpw_flwr.engines.cpu import CpuEngine

SHAPES = {
    "conv.weight": (70, 130, 3, 3),
    "norm.weight": (130,),
    "norm.running_mean": (9000,),
    "norm.num_batches_tracked": (),
    "scale": (),
    "head.weight": (10, 410),
}
LATER = WeightingState(rounds=1)
claim = settings(max_examples=15, deadline=None)


def a_model(generator: torch.Generator) -> dict[str, Tensor]:
    model = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    model["norm.num_batches_tracked"] = torch.tensor(7)
    model["half"], model["double"] = torch.zeros(9).half(), torch.zeros(9).double()
    model["turned"], model["empty"] = torch.zeros(20, 30).T, torch.zeros(0)
    return model


def assert_same(found: ServerStep, expected: ServerStep, size: float = 1e-2) -> None:
    assert found.weights.weights == pytest.approx(expected.weights.weights, abs=1e-6)
    assert found.model.keys() == expected.model.keys()
    exact = True
    for name, tensor in expected.model.items():
        assert found.model[name].dtype == tensor.dtype
        assert found.model[name].shape == tensor.shape
        difference = (found.model[name] - tensor).abs().double()
        # An entry at the edge of C may fall on the other side: its score is the same to rounding.
        others = difference > 1e-5 * size + 1e-6
        assert others.sum() <= 2 * tensor.numel() / max(2000, tensor.numel())
        exact = exact and not others.any()
    # f is that of the mean magnitude on C, which an entry at its edge moves by its share.
    tolerance = 1e-6 if exact else 1e-4
    assert found.amplification == pytest.approx(expected.amplification, abs=tolerance)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@claim
@given(
    seed=st.integers(0, 10**6),
    clients=st.integers(1, 5),
    avg_drop_rate=st.sampled_from([0.0, 0.05, 0.3, 0.7]),
    state=st.sampled_from([WeightingState(), LATER]),
    adapt_weights=st.booleans(),
    adjust_parameters=st.booleans(),
)
def test_a_step_in_blocks_is_the_step_of_the_formulas(
    seed: int,
    clients: int,
    avg_drop_rate: float,
    state: WeightingState,
    adapt_weights: bool,
    adjust_parameters: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = a_model(generator)
    results = drawn_results(model, range(clients), generator, 1e-2)
    method = FedPWSettings(
        avg_drop_rate=avg_drop_rate,
        adapt_weights=adapt_weights,
        adjust_parameters=adjust_parameters,
    )
    found = server_step(model, results, state, method, engine=CpuEngine)
    assert_same(found, server_step(model, results, state, method))


@claim
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 5), adjusting=st.integers(0, 5))
def test_adjusted_updates_are_averaged_and_measured_alike(
    seed: int, clients: int, adjusting: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = a_model(generator)
    rates = {client: 0.1 + 0.8 * client / clients for client in range(clients)}
    sent = SentAdjustment(rates, None)
    trained = drawn_results(model, range(clients), generator, 1e-2)
    # The server adjusts what the others send.
    results = carried_out(model, trained[:adjusting], sent) + trained[adjusting:]
    found = server_step(model, results, LATER, FedPWSettings(), sent=sent, engine=CpuEngine)
    expected = server_step(model, results, LATER, FedPWSettings(), sent=sent)
    assert_same(found, expected)
    assert found.consensus is not None
    assert expected.consensus is not None
    assert found.consensus.factors.keys() == expected.consensus.factors.keys()
    for name, members in expected.consensus.members.items():
        others = int((found.consensus.members[name] != members).sum())
        assert others <= 4
        # f is that of the mean magnitude on C, which an entry at its edge moves by its share.
        by_others = 4 * others / int(members.sum())
        factor = expected.consensus.factors[name]
        assert found.consensus.factors[name] == pytest.approx(factor, abs=1e-6 + by_others)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    model = {"large": torch.randn(400000, generator=generator), **a_model(generator)}
    results = drawn_results(model, range(8), generator, 1e-2)
    steps = []
    # Many equal magnitudes: all of them are collected.
    for result in results:
        assert isinstance(result.tensors, dict)
        difference = (model["large"] - result.tensors["large"]).mul_(50).round_().div_(50)
        result.tensors["large"] = model["large"] - difference
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        steps.append(server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine))
        assert torch.get_num_threads() == threads
    for step in steps[1:]:
        assert step.weights == steps[0].weights
        assert step.amplification == steps[0].amplification
        for name, tensor in steps[0].model.items():
            assert torch.equal(step.model[name], tensor)


def untrained(generator: torch.Generator, update: Tensor, client: int) -> Tensor:
    return torch.zeros_like(update)


def mostly_untrained(generator: torch.Generator, update: Tensor, client: int) -> Tensor:
    """Most of what is sampled did not move; of one client less than is to be masked."""
    still = torch.rand(update.shape, generator=generator) < (0.05, 0.7, 0.95)[client]
    return update.masked_fill(still, 0.0)


def tied(generator: torch.Generator, update: Tensor, client: int) -> Tensor:
    return torch.randint(-3, 4, update.shape, generator=generator).float() / 64


@pytest.mark.parametrize("changed", [untrained, mostly_untrained, tied])
@pytest.mark.parametrize("shape", [(500, 600), (30, 20)])
def test_updates_of_few_values_are_masked_by_lower_index(
    changed: Callable[[torch.Generator, Tensor, int], Tensor], shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(8)
    model = {"weight": torch.randint(-9, 9, shape, generator=generator).float()}
    results = drawn_results(model, range(3), generator, 1e-2)
    for result in results:
        assert isinstance(result.tensors, dict)
        update = model["weight"] - result.tensors["weight"]
        trained = model["weight"] - changed(generator, update, result.client)
        # One of them lies in memory by columns.
        result.tensors["weight"] = trained.T.contiguous().T if result.client else trained
    method = FedPWSettings(adapt_weights=changed is not tied)
    step = server_step(model, results, LATER, method, engine=CpuEngine)
    assert_same(step, server_step(model, results, LATER, method))


def test_float32_on_the_cpu_is_computed_in_blocks_and_the_rest_as_the_paper_writes_it() -> None:
    generator = torch.Generator().manual_seed(4)
    model = a_model(generator)
    kinds, cohort = (
        classify_tensors(model),
        Cohort(drawn_results(model, range(2), generator, 1e-2), None, None, 0.3),
    )
    blocks = CpuEngine(model, kinds, cohort)._blocks
    others = {name for name, tensor in blocks.items() if tensor is None}
    assert others == {"norm.num_batches_tracked", "half", "double", "empty"}


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e17])
def test_magnitudes_beyond_float32_sums_are_left_to_the_formulas(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    model = {"weight": torch.zeros(20000)}
    results = drawn_results(model, range(3), generator, size)
    step = server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    expected = server_step(model, results, LATER, FedPWSettings())
    assert step.weights.weights == pytest.approx(expected.weights.weights, abs=1e-6)
    torch.testing.assert_close(
        step.model["weight"] / size, expected.model["weight"] / size, rtol=0, atol=1e-5
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("clients", [4, 40])
def test_what_is_held_does_not_grow_with_the_clients(clients: int) -> None:
    generator = torch.Generator().manual_seed(6)
    # Nine entries in ten were not trained: all of them stand at the threshold.
    model = {"weight": torch.zeros(200_000)}
    moved = torch.rand(200_000, generator=generator) < 0.1
    trained = torch.where(moved, torch.randn(200_000, generator=generator), 0.0)
    results = [ClientResult(client, {"weight": trained}, loss=1.0) for client in range(clients)]
    torch.set_num_threads(1)
    # Once before: what is compiled or loaded for the first step stays.
    server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    tracemalloc.start()
    server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # NumPy's arrays; a block holds all clients' updates, in 3 MiB.
    assert peak < 3 * model["weight"].nbytes + 5 * 2**20
