"""The server step in blocks is that of the reference, whatever the threads."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import carried_out
from torch import Tensor

from fedpw_flwr.algorithm import (
    ClientResult,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    WeightingState,
    server_step,
)
from fedpw_flwr.algorithm.engine import Measured
from fedpw_flwr.algorithm.reference import Reference
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
    return model


def a_round(
    model: Mapping[str, Tensor], clients: int, generator: torch.Generator, size: float = 1e-2
) -> list[ClientResult]:
    """Clients whose updates are alike in part; those of large parameters are rounded."""
    shared = {
        name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.items()
    }
    results = []
    for client in range(clients):
        trained = {
            name: tensor - size * (shared[name] + torch.randn(tensor.shape, generator=generator))
            if tensor.is_floating_point()
            else tensor + client
            for name, tensor in model.items()
        }
        results.append(ClientResult(client, trained, loss=0.3 + client))
    return results


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
        assert others.double().mean() <= 2 / max(2000, tensor.numel())
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
    results = a_round(model, clients, generator)
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
    trained = a_round(model, clients, generator)
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


def test_equal_magnitudes_are_masked_in_the_order_of_their_index() -> None:
    generator = torch.Generator().manual_seed(0)
    model = {"long": torch.zeros(30000), "short": torch.zeros(500)}
    results = [
        ClientResult(
            client,
            {
                name: torch.randint(-3, 4, tensor.shape, generator=generator).float()
                for name, tensor in model.items()
            },
            loss=1.0 + client,
        )
        for client in range(3)
    ]
    method = FedPWSettings(avg_drop_rate=0.5, adapt_weights=False)
    found = server_step(model, results, LATER, method, engine=CpuEngine)
    expected = server_step(model, results, LATER, method)
    for name in model:
        # Masked entries of clients with the same weight: sums of thirds, equal to rounding.
        torch.testing.assert_close(found.model[name], expected.model[name], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    model = {"large": torch.randn(400000, generator=generator), **a_model(generator)}
    results = a_round(model, 8, generator)
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


def test_tensors_that_nobody_trained_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(2)
    model = a_model(generator)
    results = a_round(model, 3, generator)
    for result in results:
        assert isinstance(result.tensors, dict)
        result.tensors["conv.weight"] = model["conv.weight"]
        result.tensors["norm.weight"] = model["norm.weight"].clone()
    step = server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    assert torch.equal(step.model["conv.weight"], model["conv.weight"])
    assert torch.equal(step.model["norm.weight"], model["norm.weight"])
    assert_same(step, server_step(model, results, LATER, FedPWSettings()))


def test_entries_that_did_not_move_are_masked_without_being_collected() -> None:
    generator = torch.Generator().manual_seed(8)
    model = {"weight": torch.randn(300_000, generator=generator)}
    results = a_round(model, 3, generator)
    for result in results:
        assert isinstance(result.tensors, dict)
        # Most of what is sampled did not move; of one client less than is to be masked.
        still = torch.rand(300_000, generator=generator) < (0.05, 0.7, 0.95)[result.client]
        result.tensors["weight"][still] = model["weight"][still]
    step = server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    assert_same(step, server_step(model, results, LATER, FedPWSettings()))


def test_replies_in_another_order_in_memory_give_the_same() -> None:
    generator = torch.Generator().manual_seed(9)
    model = {"weight": torch.randn(60, 300, generator=generator)}
    results = a_round(model, 3, generator)
    expected = server_step(model, results, LATER, FedPWSettings())
    assert isinstance(results[1].tensors, dict)
    results[1].tensors["weight"] = results[1].tensors["weight"].T.contiguous().T
    assert_same(server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine), expected)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e17])
def test_magnitudes_beyond_float32_sums_are_left_to_the_formulas(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    model = {"weight": torch.zeros(20000)}
    results = a_round(model, 3, generator, size)
    step = server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    expected = server_step(model, results, LATER, FedPWSettings())
    assert step.weights.weights == pytest.approx(expected.weights.weights, abs=1e-6)
    torch.testing.assert_close(
        step.model["weight"] / size, expected.model["weight"] / size, rtol=0, atol=1e-5
    )


def test_it_takes_float32_on_the_cpu_and_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(4)
    model = a_model(generator)
    model["half"], model["double"] = torch.zeros(9).half(), torch.zeros(9).double()
    model["turned"], model["empty"] = torch.zeros(20, 30).T, torch.zeros(0)
    results = a_round(model, 2, generator)
    for result in results:
        assert isinstance(result.tensors, dict)
        result.tensors["half"] = torch.ones(9).half()
        result.tensors["double"] = torch.ones(9).double()
    left: dict[str, set[str]] = {"directions": set(), "tensors": set()}
    add_directions, moved = Reference.add_directions, Reference.moved

    def noted_directions(self: Reference, directions: list[float], name: str) -> None:
        left["directions"].add(name)
        add_directions(self, directions, name)

    def noted_tensor(
        self: Reference, name: str, weights: Sequence[float]
    ) -> tuple[Tensor, Measured | None]:
        left["tensors"].add(name)
        return moved(self, name, weights)

    monkeypatch.setattr(Reference, "add_directions", noted_directions)
    monkeypatch.setattr(Reference, "moved", noted_tensor)
    server_step(model, results, LATER, FedPWSettings(), engine=CpuEngine)
    others = {"norm.num_batches_tracked", "half", "double", "empty"}
    assert left == {"directions": others | {"norm.running_mean"}, "tensors": others}


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
