"""A step in stacks is the step of the formulas, in few operations and without asking the device.

The device is the CPU where numbers are compared, and PyTorch's "meta" device, which has none and
refuses to mix with the CPU's tensors, where operations are counted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_kernels import Ledger, stacked_step, tensorwise_step, third_round
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpw_flwr.algorithm import (
    AppliedAdjustment,
    ClientResult,
    Consensus,
    FedPWSettings,
    SentAdjustment,
    TensorKind,
    WeightingState,
    classify_tensors,
    server_step,
)
from fedpw_flwr.algorithm.client_step import AdjustedTensors, is_adjustable
from fedpw_flwr.algorithm.cohort import Cohort
from fedpw_flwr.algorithm.direction import add_tensor_directions
from fedpw_flwr.algorithm.stacked import StackedStep
from fedpw_flwr.algorithm.tensorwise import move_tensor
from fedpw_flwr.models.resnet import ResNet10

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"

SHAPES = {
    "conv.weight": (5, 7, 3, 3),
    "norm.weight": (13,),
    "norm.running_mean": (300,),
    "norm.num_batches_tracked": (),
    "scale": (),
    "none": (0, 3),
    "head.weight": (10, 41),
}
RATE = 0.3
BOUNDS = st.sampled_from([700, 1100, 3000, 1 << 26])
"""So many numbers at a time: one tensor of one client, of some, all tensors of all clients."""

claim = settings(max_examples=25, deadline=None)


def a_model(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    model = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }
    model["norm.num_batches_tracked"] = torch.tensor(7)
    return model


def a_reply(model: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor + 1
        for name, tensor in model.items()
    }


def results_of(
    model: Mapping[str, Tensor], clients: int, generator: torch.Generator
) -> list[ClientResult]:
    return [ClientResult(client, a_reply(model, generator), 1.0) for client in range(clients)]


def a_consensus(model: Mapping[str, Tensor], generator: torch.Generator) -> Consensus:
    """C and f of the last round, of two tensors only."""
    members = {
        name: torch.rand(model[name].numel(), generator=generator) < RATE
        for name in ("conv.weight", "norm.weight")
    }
    return Consensus(2, members, {"conv.weight": 1.5, "norm.weight": 1.1})


def kinds_of(model: Mapping[str, Tensor]) -> dict[str, TensorKind]:
    return classify_tensors({name: tensor.dtype for name, tensor in model.items()})


def equal_weights(cohort: Cohort) -> list[float]:
    return [1.0 / len(cohort.results)] * len(cohort.results)


def assert_moves_as_the_formulas(
    model: Mapping[str, Tensor],
    cohort: Cohort,
    weights: Sequence[float],
    bound: int = 1 << 26,
    tolerance: float = 1e-11,
) -> None:
    kinds = kinds_of(model)
    step = StackedStep(model, kinds, cohort, with_directions=True, together=bound, kept=bound)
    moved = dict(step.move(weights))
    assert moved.keys() == {
        name for name, tensor in model.items() if tensor.is_floating_point() and tensor.numel()
    }
    for name, (found, measured) in moved.items():
        expected, expected_measured = move_tensor(name, model[name], kinds[name], cohort, weights)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert (measured is None) == (expected_measured is None), name
        if measured is not None and expected_measured is not None:
            assert float(measured.factor) == pytest.approx(
                float(expected_measured.factor), abs=tolerance
            )
            assert (measured.members is None) == (expected_measured.members is None)
            if measured.members is not None and expected_measured.members is not None:
                assert torch.equal(measured.members, expected_measured.members)
        if kinds[name] is TensorKind.TRAINABLE:
            directions = [0.0] * len(cohort.results)
            trained = [result.tensors[name] for result in cohort.results]
            add_tensor_directions(directions, model[name], trained)
            assert step.directions(name) == pytest.approx(directions, rel=tolerance, abs=tolerance)
        else:
            assert step.directions(name) is None


@claim
@given(
    seed=st.integers(0, 10**6),
    clients=st.integers(1, 6),
    bound=BOUNDS,
    rate=st.sampled_from([0.0, 0.02, RATE, 1.0]),
    first_round=st.booleans(),
)
def test_updates_that_the_server_masks_are_moved_as_the_formulas_say(
    seed: int, clients: int, bound: int, rate: float, first_round: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = a_model(generator)
    rates = [
        min(1.0, 2 * rate * float(torch.rand((), generator=generator))) for _ in range(clients)
    ]
    weights = torch.rand(clients, generator=generator).tolist()
    cohort = Cohort(
        results_of(model, clients, generator), None if first_round else rates, None, rate, "cpu"
    )
    assert_moves_as_the_formulas(model, cohort, weights, bound)


@claim
@given(
    seed=st.integers(0, 10**6),
    clients=st.integers(1, 6),
    bound=BOUNDS,
    has_consensus=st.booleans(),
    first_round=st.booleans(),
)
def test_updates_that_clients_adjusted_are_measured_as_the_formulas_say(
    seed: int, clients: int, bound: int, has_consensus: bool, first_round: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = a_model(generator)
    consensus = a_consensus(model, generator) if has_consensus else None
    # Some come as they were trained, and are adjusted when their tensors are asked for.
    results = []
    for result in results_of(model, clients, generator):
        tensors = AdjustedTensors(model, result.tensors, RATE, consensus, "cpu")
        if result.client % 2:
            sent_tensors = dict(tensors)
            discarded = {name: tensors.discarded_magnitude(name) for name in model}
            applied = AppliedAdjustment(RATE, discarded, None if consensus is None else 2)
            results.append(ClientResult(result.client, sent_tensors, 1.0, applied=applied))
        else:
            results.append(ClientResult(result.client, tensors, 1.0))
    sent = SentAdjustment(dict.fromkeys(range(clients), RATE), consensus)
    rates = None if first_round else [RATE] * clients
    cohort = Cohort(results, rates, sent, RATE, "cpu")
    assert_moves_as_the_formulas(model, cohort, equal_weights(cohort), bound)


@claim
@given(seed=st.integers(0, 10**6), clients=st.sampled_from([1, 2, 4]), bound=BOUNDS)
def test_equal_magnitudes_are_masked_by_lower_index_to_the_bit(
    seed: int, clients: int, bound: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few different magnitudes, and sums that are exact.
    model = {name: torch.zeros(shape) for name, shape in (("b", (300,)), ("a", (17,)), ("c", (1,)))}
    kinds = dict.fromkeys(model, TensorKind.BUFFER)
    results = [
        ClientResult(
            client,
            {
                name: torch.randint(-3, 4, tensor.shape, generator=generator) / 8
                for name, tensor in model.items()
            },
        )
        for client in range(clients)
    ]
    rates = torch.rand(clients, generator=generator).tolist()
    cohort = Cohort(results, rates, None, RATE, "cpu")
    step = StackedStep(model, kinds, cohort, with_directions=False, together=bound)
    moved = dict(step.move(equal_weights(cohort)))
    for name, tensor in model.items():
        expected, _ = move_tensor(name, tensor, kinds[name], cohort, equal_weights(cohort))
        assert torch.equal(moved[name][0], expected)


def test_equal_scores_enter_the_consensus_by_lower_index() -> None:
    model = {"weight": torch.zeros(10)}
    results = [
        ClientResult(0, {"weight": -torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10])}),
        ClientResult(1, {"weight": -torch.tensor([10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1])}),
    ]
    sent = SentAdjustment({0: 0.5, 1: 0.5})
    masked = [
        ClientResult(r.client, AdjustedTensors(model, r.tensors, 0.5, None, "cpu")) for r in results
    ]
    cohort = Cohort(masked, [0.5, 0.5], sent, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, with_directions=False)
    ((_, (_, measured)),) = step.move([0.5, 0.5])
    assert measured is not None
    assert measured.members is not None
    # Every entry was kept by one of the two, so that all scores are 1.
    assert measured.members.nonzero().reshape(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bound", [1100, 1 << 26])
def test_other_precisions_are_computed_in_float32(dtype: torch.dtype, bound: int) -> None:
    generator = torch.Generator().manual_seed(3)
    model = a_model(generator, dtype)
    model["wide"] = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    cohort = Cohort(results_of(model, 4, generator), [RATE] * 4, None, RATE, "cpu")
    weights = equal_weights(cohort)
    assert_moves_as_the_formulas(model, cohort, weights, bound, tolerance=2e-6)


def test_what_half_precision_cannot_hold_becomes_its_largest_number() -> None:
    model = {"weight": torch.full((4,), 60000.0, dtype=torch.float16)}
    trained = {"weight": torch.full((4,), 65000.0, dtype=torch.float16)}
    cohort = Cohort([ClientResult(0, trained)], None, None, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, with_directions=False)
    ((_, (moved, _)),) = step.move([3.0])
    assert moved.dtype == torch.float16
    assert moved.tolist() == [65504.0] * 4


@pytest.mark.parametrize("magnitude", [1e-25, 1e-35, 1e15, 1e25, 1e37])
def test_products_that_float32_cannot_hold_are_known(magnitude: float) -> None:
    model = {"small": torch.ones(300), "weight": torch.zeros(2)}
    results = [
        ClientResult(
            client, {"small": torch.ones(300) - size, "weight": -magnitude * torch.ones(2) * size}
        )
        for client, size in enumerate((0.25, 0.75))
    ]
    cohort = Cohort(results, None, None, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, with_directions=True)
    product = 2 * magnitude**2
    assert step.directions("weight") == pytest.approx([0.25 * product, 0.75 * product], rel=1e-6)
    assert step.directions("small") == [300 * 0.25, 300 * 0.75]


def test_an_update_that_float32_cannot_hold_is_left_to_direction_and_harms_no_other() -> None:
    model = {"first": torch.full((2,), 3e38), "second": torch.zeros(2)}
    trained = {"first": torch.full((2,), -3e38), "second": torch.ones(2)}
    cohort = Cohort([ClientResult(0, trained)], None, None, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, with_directions=True)
    assert step.directions("first") is None
    assert step.directions("second") == [2.0]


def test_integers_empty_and_too_large_tensors_are_left_to_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    model = {**a_model(generator), "large": torch.zeros(2000)}
    cohort = Cohort(results_of(model, 2, generator), None, None, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, with_directions=True, together=2000)
    assert set(dict(step.move([0.5, 0.5]))) == set(model) - {
        "norm.num_batches_tracked",
        "none",
        "large",
    }
    assert step.directions("large") is None


def test_nothing_is_taken_where_the_device_has_no_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    model = a_model(generator, torch.float32)
    cohort = Cohort(results_of(model, 2, generator), None, None, RATE, "mps")
    assert not dict(StackedStep(model, kinds_of(model), cohort, True).move([0.5, 0.5]))


class Asked(Mapping[str, Tensor]):
    """A model that counts how often each tensor is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.times: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Tensor:
        self.times[name] += 1
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@pytest.mark.parametrize(
    ("together", "kept", "times"), [(1 << 20, 1 << 20, 1), (1 << 20, 0, 2), (800, 0, 3)]
)
def test_a_tensor_is_asked_for_again_only_where_it_could_not_stay(
    together: int, kept: int, times: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = {"weight": torch.zeros(500)}
    asked = [Asked(a_reply(model, generator)) for _ in range(3)]
    results = [ClientResult(client, tensors) for client, tensors in enumerate(asked)]
    cohort = Cohort(results, [RATE] * 3, None, RATE, "cpu")
    step = StackedStep(model, kinds_of(model), cohort, True, together, kept)
    assert len(dict(step.move(equal_weights(cohort)))) == 1
    assert [tensors.times["weight"] for tensors in asked] == [times] * 3


def many_tensors(number: int) -> dict[str, Tensor]:
    """A model of as many entries, whatever the number of its tensors."""
    return {f"layer{place}.weight": torch.randn(76800 // number) for place in range(number)}


def ledger_of(model: Mapping[str, Tensor], clients: int, placement: str) -> Ledger:
    ledger = Ledger()
    with ledger, torch.no_grad():
        stacked_step(model, kinds_of(model), third_round(model, clients, placement, "meta"))
    return ledger


@pytest.mark.parametrize(("placement", "fetched"), [("server", 2), ("client", 4)])
def test_neither_operations_nor_waits_depend_on_the_number_of_tensors(
    placement: str, fetched: int
) -> None:
    few, many = (ledger_of(many_tensors(number), 4, placement) for number in (3, 300))
    assert few.counts() == many.counts()
    # The directions, then what the one stack gives: model and f, or model, a, norms and C.
    # No number is asked for by itself.
    assert few.to_host == Counter({"_to_copy": 1 + fetched})
    assert few.kernels.total() <= 130


@pytest.mark.parametrize("placement", ["server", "client"])
def test_operations_do_not_depend_on_the_number_of_clients(placement: str) -> None:
    model = many_tensors(30)
    few, many = (ledger_of(model, clients, placement) for clients in (2, 40))
    assert few.kernels == many.kernels
    assert few.to_host == many.to_host


@pytest.mark.parametrize(("placement", "clients"), [("server", 20), ("client", 20)])
def test_the_papers_network_needs_a_few_operations_a_tensor(placement: str, clients: int) -> None:
    model = ResNet10(num_classes=10, in_channels=3, width=64).state_dict()
    assert len(model) == 74
    ledger = ledger_of(model, clients, placement)
    # A sort is about ten kernels, what else there is one or two.
    kernels = (
        ledger.kernels.total() + 9 * ledger.kernels["sort"] + 2 * ledger.kernels["segment_reduce"]
    )
    assert kernels <= 30 * len(model)


def test_the_ledger_sees_every_wait_of_a_step_tensor_by_tensor() -> None:
    model = many_tensors(10)
    with Ledger() as ledger, torch.no_grad():
        tensorwise_step(model, kinds_of(model), third_round(model, 2, "server", "meta"))
    # A tensor's products, the new tensor, and its factor.
    assert ledger.to_host.total() >= 3 * len(model)
    with Ledger(), pytest.raises(NotImplementedError):
        torch.nonzero(torch.ones(3, device="meta"))


@pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden rounds are not beside the repository (shared/golden)"
)
@pytest.mark.parametrize("name", ["cnn_bn_5clients", "mlp_6clients"])
@pytest.mark.parametrize("bound", [2000, 1 << 26])
def test_golden_rounds_in_stacks_are_those_of_the_authors(name: str, bound: int) -> None:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = dict(archive)
    names = [str(name) for name in arrays["names"]]

    def a_golden_model(place: str) -> dict[str, Tensor]:
        return {name: torch.from_numpy(arrays[f"{place}/{name}"]) for name in names}

    model, state = a_golden_model("init"), WeightingState()
    method = FedPWSettings(
        avg_drop_rate=float(arrays["avg_drop_rate"]),
        beta=float(arrays["beta"]),
        clip_weights=False,
    )
    for position, losses in enumerate(arrays["losses"]):
        results = [
            ClientResult(client, a_golden_model(f"round{position}/client{client}"), float(loss))
            for client, loss in enumerate(losses)
        ]
        step = server_step(model, results, state, method)
        state = step.state
        cohort = Cohort(results, step.drop_rates, None, method.avg_drop_rate, "cpu")
        stacked = StackedStep(model, kinds_of(model), cohort, True, bound)
        moved = dict(stacked.move(arrays["weights"][position].tolist()))
        expected = a_golden_model(f"round{position}/global")
        taken = {
            name for name in names if is_adjustable(model[name]) and model[name].numel() < 1700
        }
        assert moved.keys() >= taken
        for name, (tensor, _) in moved.items():
            assert float((tensor - expected[name]).abs().max()) <= 1e-5, f"{name}, {position}"
        model = expected
