"""How many kernels a server step launches on a GPU, and how often the host waits for it.

    python benchmarks/cuda_kernels.py [--tiny]

A kernel takes microseconds to launch and a wait stops the host, so on a GPU a step over many small
tensors costs what their number costs. Counted is what a third round of the paper's ResNet-10 asks
of the device, tensor by tensor (`tensorwise`) and in stacks (`stacked`): directions, and with the
weights decided, masks, average and consensus.

Where there is a GPU, torch.profiler counts what it ran. Elsewhere the same code runs on torch's
"meta" device, which has shapes but no numbers and refuses to mix with the CPU's tensors; counted
are operations on its tensors (one operation may launch several kernels: a sort about ten) and
copies to the host, in whose place ones are given. Counts, no times.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from report import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpw_flwr.algorithm.client_step import AppliedAdjustment, Consensus, SentAdjustment
from fedpw_flwr.algorithm.cohort import ClientResult, Cohort
from fedpw_flwr.algorithm.direction import add_tensor_directions
from fedpw_flwr.algorithm.stacked import StackedStep
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors
from fedpw_flwr.algorithm.tensorwise import LazyTensors, move_tensor
from fedpw_flwr.models.resnet import ResNet10

RATE = 0.3

Model = Mapping[str, Tensor]

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a narrow network, few clients")
    for table in tables(parser.parse_args().tiny):
        print(table.markdown(), end="\n\n")


def tables(tiny: bool = False) -> list[Table]:
    width = 4 if tiny else 64
    model = ResNet10(num_classes=10, in_channels=3, width=width).state_dict()
    tensors = sum(tensor.is_floating_point() for tensor in model.values())
    on_gpu = torch.cuda.is_available()
    what = "kernels" if on_gpu else "operations"
    rows = []
    for placement, clients in itertools.product(
        ("server", "client"), (3, 5) if tiny else (20, 100)
    ):
        for name, step in (("tensorwise", tensorwise_step), ("stacked", stacked_step)):
            if name == "tensorwise" and clients > 20:
                continue
            work = _on_device(step, model, clients, placement, "cuda" if on_gpu else "meta")
            counts = profiled(work) if on_gpu else counted(work)
            rows.append(
                (
                    f"{name}, adjustment {placement}",
                    str(clients),
                    str(counts.kernels),
                    f"{counts.kernels / tensors:.1f}",
                    str(counts.to_host),
                )
            )
    note = f"ResNet-10 of width {width}: {tensors} floating tensors. " + (
        f"Kernels and copies that torch.profiler saw on {torch.cuda.get_device_name()}."
        if on_gpu
        else "No GPU: counted are PyTorch's operations on tensors of the device (views and "
        "allocations are none), each one kernel or, as a sort, several; and copies to the "
        "host, each at most one wait."
    )
    return [
        Table(
            title="A server step's launches on a GPU",
            header=("step", "clients", what, f"{what} a tensor", "copies to the host"),
            rows=tuple(rows),
            note=note,
        )
    ]


@dataclass
class Counts:
    """What a step asked of the device."""

    kernels: int = 0
    to_host: int = 0
    to_device: int = 0


class Ledger(TorchDispatchMode):
    """Counts operations on tensors of the "meta" device, and what crosses its border.

    What comes to the host is made of ones. An operation whose result has a shape that depends on
    numbers would make the host wait: on this device it is an error.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()
        self.to_device: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket.__name__)
        given = [value for value in _flat((args, kwargs or {})) if isinstance(value, Tensor)]
        if any(value.is_meta for value in given):
            if name == "_local_scalar_dense":
                self.to_host[name] += 1
                return 1.0
            if (
                name == "_to_copy"
                and torch.device((kwargs or {}).get("device", "meta")).type == "cpu"
            ):
                self.to_host[name] += 1
                dtype = (kwargs or {}).get("dtype") or given[0].dtype
                return torch.ones(given[0].shape, dtype=dtype)
        result = func(*args, **(kwargs or {}))
        made = [value for value in _flat(result) if isinstance(value, Tensor)]
        if any(value.is_meta for value in made):
            if any(not value.is_meta and value.dim() > 0 for value in given):
                self.to_device[name] += 1
            elif not (_is_view(func) or name in _ALLOCATIONS):
                self.kernels[name] += 1
        return result

    def counts(self) -> Counts:
        """Return the sums."""
        return Counts(self.kernels.total(), self.to_host.total(), self.to_device.total())


def counted(work: Callable[[], object]) -> Counts:
    """Count what some work on the "meta" device asks of it."""
    ledger = Ledger()
    with ledger, torch.no_grad():
        work()
    return ledger.counts()


def profiled(work: Callable[[], object]) -> Counts:
    """Count the kernels and copies that some work ran on the GPU, its second time."""
    with torch.no_grad():
        work()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            work()
            torch.cuda.synchronize()
    counts = Counts()
    for event in profile.events():
        if event.device_type.name != "CUDA":
            continue
        if event.name.startswith("Memcpy DtoH"):
            counts.to_host += 1
        elif event.name.startswith("Memcpy HtoD"):
            counts.to_device += 1
        elif not event.name.startswith(("Memcpy", "Memset")):
            counts.kernels += 1
    return counts


def third_round(model: Model, clients: int, placement: str, device: str) -> Cohort:
    """Participants whose updates are masked by the server, or were by themselves."""
    trained = {
        name: tensor + 0.01 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in model.items()
    }
    rates = (RATE,) * clients
    if placement == "server":
        results = [ClientResult(client, trained, loss=1.0) for client in range(clients)]
        return Cohort(results, rates, None, RATE, device)
    kinds = classify_tensors({name: tensor.dtype for name, tensor in model.items()})
    adjusted = [name for name, kind in kinds.items() if kind is TensorKind.TRAINABLE]
    consensus = Consensus(
        round=2,
        members={name: torch.arange(model[name].numel()) % 3 == 0 for name in adjusted},
        factors=dict.fromkeys(adjusted, 1.5),
    )
    applied = AppliedAdjustment(RATE, dict.fromkeys(model, 0.001), 2)
    results = [ClientResult(client, trained, 1.0, applied=applied) for client in range(clients)]
    sent = SentAdjustment(dict.fromkeys(range(clients), RATE), consensus)
    return Cohort(results, rates, sent, RATE, device)


def stacked_step(model: Model, kinds: Mapping[str, TensorKind], cohort: Cohort) -> None:
    """Directions and new model, in stacks."""
    step = StackedStep(model, kinds, cohort, with_directions=True)
    for _, (_, measured) in step.move(_equal_weights(cohort)):
        if measured is not None:
            float(measured.factor)


def tensorwise_step(model: Model, kinds: Mapping[str, TensorKind], cohort: Cohort) -> None:
    """Directions and new model, tensor by tensor."""
    directions = [0.0] * len(cohort.results)
    for name, kind in kinds.items():
        if kind is TensorKind.TRAINABLE:
            start = model[name].to(cohort.device)
            add_tensor_directions(directions, start, LazyTensors(cohort.results, name))
    for name, kind in kinds.items():
        _, measured = move_tensor(name, model[name], kind, cohort, _equal_weights(cohort))
        if measured is not None:
            float(measured.factor)


def _equal_weights(cohort: Cohort) -> Sequence[float]:
    return [1.0 / len(cohort.results)] * len(cohort.results)


def _on_device(
    step: Callable[[Model, Mapping[str, TensorKind], Cohort], None],
    model: Model,
    clients: int,
    placement: str,
    device: str,
) -> Callable[[], None]:
    kinds = classify_tensors({name: tensor.dtype for name, tensor in model.items()})
    cohort = third_round(model, clients, placement, device)
    return lambda: step(model, kinds, cohort)


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


if __name__ == "__main__":
    main()
