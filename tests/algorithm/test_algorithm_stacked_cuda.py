"""The step in stacks on a real GPU: its numbers, its kernels, its waits, its memory."""

import warnings
from collections.abc import Mapping

import pytest
import torch
from cuda_kernels import profiled, stacked_step, third_round
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult, TensorKind, classify_tensors
from fedpw_flwr.algorithm.cohort import Cohort
from fedpw_flwr.algorithm.stacked import StackedStep
from fedpw_flwr.algorithm.tensorwise import move_tensor
from fedpw_flwr.models.resnet import ResNet10

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"
)

RATES = [0.1, 0.2, 0.4, 0.5]
WEIGHTS = [0.4, 0.3, 0.2, 0.1]


def kinds_of(model: Mapping[str, Tensor]) -> dict[str, TensorKind]:
    return classify_tensors({name: tensor.dtype for name, tensor in model.items()})


def a_model(dtype: torch.dtype) -> dict[str, Tensor]:
    state = ResNet10(num_classes=10, in_channels=3, width=8).state_dict()
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def a_cohort(model: Mapping[str, Tensor], device: str) -> Cohort:
    generator = torch.Generator().manual_seed(5)
    results = []
    for client in range(len(RATES)):
        trained = {
            name: tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in model.items()
        }
        results.append(ClientResult(client, trained, 1.0))
    return Cohort(results, RATES, None, 0.3, device)


@pytest.mark.parametrize("together", [1 << 18, 1 << 26])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-5), (torch.float64, 1e-11)],
)
def test_the_gpu_moves_a_model_as_the_formulas_on_the_cpu(
    dtype: torch.dtype, tolerance: float, together: int
) -> None:
    model = a_model(dtype)
    kinds, cohort = kinds_of(model), a_cohort(model, "cpu")
    step = StackedStep(model, kinds, a_cohort(model, "cuda"), True, together)
    moved = dict(step.move(WEIGHTS))
    assert moved.keys() == {n for n, kind in kinds.items() if kind is not TensorKind.INTEGER}
    for name, (found, measured) in moved.items():
        expected, expected_measured = move_tensor(name, model[name], kinds[name], cohort, WEIGHTS)
        assert found.device.type == "cpu"
        assert found.dtype == dtype
        # An entry at the edge of C may fall on the other side: its score is the same to rounding.
        is_off = (found.double() - expected.double()).abs() > tolerance * (1 + expected.abs())
        assert is_off.double().mean() <= 2 / max(2000, found.numel())
        if measured is not None and expected_measured is not None:
            assert float(measured.factor) == pytest.approx(
                float(expected_measured.factor), abs=max(tolerance, 1e-5)
            )


def test_the_same_inputs_give_the_same_bits() -> None:
    model = a_model(torch.float32)
    kinds, steps = kinds_of(model), []
    for _ in range(3):
        step = StackedStep(model, kinds, a_cohort(model, "cuda"), True, 1 << 18)
        moved = {name: tensor for name, (tensor, _) in step.move(WEIGHTS)}
        steps.append((moved, [step.directions(name) for name in moved]))
    for moved, directions in steps[1:]:
        assert directions == steps[0][1]
        assert all(torch.equal(tensor, steps[0][0][name]) for name, tensor in moved.items())


@pytest.mark.parametrize("placement", ["server", "client"])
def test_the_papers_network_needs_at_most_30_kernels_a_tensor(placement: str) -> None:
    model = ResNet10(num_classes=10, in_channels=3, width=64).state_dict()
    cohort = third_round(model, 20, placement, "cuda")
    kinds = kinds_of(model)
    counts = profiled(lambda: stacked_step(model, kinds, cohort))
    assert 0 < counts.kernels <= 30 * len(model)


@pytest.mark.parametrize("placement", ["server", "client"])
def test_waits_do_not_depend_on_the_number_of_tensors(placement: str) -> None:
    waits = []
    for number in (3, 100):
        model = {f"layer{place}.weight": torch.randn(76800 // number) for place in range(number)}
        cohort = third_round(model, 4, placement, "cuda")
        stacked_step(model, kinds_of(model), cohort)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                stacked_step(model, kinds_of(model), cohort)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1] <= 4


def test_memory_is_bounded_by_what_is_computed_together() -> None:
    together, kept = 1 << 22, 1 << 20
    model = ResNet10(num_classes=10, in_channels=3, width=32).state_dict()
    peaks = []
    for clients in (5, 40):
        cohort = third_round(model, clients, "server", "cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = StackedStep(model, kinds_of(model), cohort, True, together, kept)
        assert dict(step.move([1 / clients] * clients))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert max(peaks) <= 100 * together + 4 * kept
