"""One step of training (forward, backward, SGD) in the variants that the client loop chose from.

    python benchmarks/training_steps.py            # --tiny shows that it runs

ResNet-10 of width 16 on 64 images of 32x32 pixels, one thread. In one process, the variants take
turns, and the figures are medians over the turns. Freed memory is kept or given back for a whole
process, so processes of the two kinds alternate. The tables are part of client_loop.py's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from plain_loop import PlainResNet10
from report import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.models.resnet import ResNet10
from fedpw_flwr.lab.training.memory import keep_freed_memory
from fedpw_flwr.lab.training.settings import Precision

Step = Callable[[], object]

CPU = torch.device("cpu")
CLIENTS = 4
"""Models in one batched program."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--in-process", choices=("kept", "given-back"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        if arguments.in_process == "kept":
            keep_freed_memory()
        print(json.dumps(_measure(step_variants(tiny=arguments.tiny), 2 if arguments.tiny else 9)))
        return
    print("\n\n".join(table.markdown() for table in step_tables(arguments.tiny)))


def step_tables(tiny: bool = False) -> list[Table]:
    torch.set_num_threads(1)
    return [steps_table(tiny=tiny), batched_table(tiny=tiny)]


def steps_table(*, tiny: bool = False) -> Table:
    """Milliseconds of a step, with freed memory given back to the system and kept."""
    times: dict[str, dict[str, list[float]]] = {"given-back": {}, "kept": {}}
    for _ in range(1 if tiny else 3):
        for kind, seen in times.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--in-process", kind]
            done = subprocess.run(
                [*command, *(["--tiny"] if tiny else [])],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                seen.setdefault(name, []).extend(seconds)
    given_back, kept = times["given-back"], times["kept"]
    first = statistics.median(next(iter(given_back.values())))
    rows = [
        (
            name,
            f"{1e3 * statistics.median(given_back[name]):.1f}",
            f"{1e3 * statistics.median(kept[name]):.1f}",
            f"{first / statistics.median(kept[name]):.2f} ×",
        )
        for name in kept
    ]
    return Table(
        "One step, one thread",
        ("variant", "ms, freed memory given back", "ms, kept", "first row's first / kept"),
        tuple(rows),
        "ResNet-10 of width 16, 64 images of 32x32, without cutting the batch; medians over "
        "variants that take turns in a process, and processes of both kinds that take turns. "
        "Compiling takes tens of seconds more in the first step of each worker.",
    )


def step_variants(*, tiny: bool = False) -> dict[str, Step]:
    """Return the steps by name; the first is the plain loop's, the fourth this package's."""
    width, batch = (4, 4) if tiny else (16, 64)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step(
        network: type[ResNet10] = ResNet10,
        *,
        precision: Precision = "float32",
        weights: torch.memory_format = torch.contiguous_format,
        compile: bool = False,
        **sgd: bool,
    ) -> Step:
        torch.manual_seed(0)
        model = network(10, width=width).train().to(memory_format=weights)
        return training_step(model, images, labels, precision, compile=compile, **sgd)

    last = torch.channels_last
    variants = {
        "plain order, float32": step(PlainResNet10),
        "activations channels_last": step(),
        "the same, SGD foreach": step(foreach=True),
        "the same, SGD fused: float32 as it is here": step(fused=True),
        "the same, weights channels_last too": step(fused=True, weights=last),
        "plain order, bfloat16": step(PlainResNet10, precision="bfloat16", fused=True),
        "bfloat16 as it is here": step(precision="bfloat16", fused=True),
        "the same, weights channels_last too (bfloat16)": step(
            precision="bfloat16", fused=True, weights=last
        ),
    }
    if not tiny:
        variants["compiled, float32"] = step(fused=True, compile=True)
        variants["compiled, bfloat16"] = step(precision="bfloat16", fused=True, compile=True)
    return variants


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: Precision,
    *,
    compile: bool = False,
    **sgd: bool,
) -> Step:
    """Return a call that trains `model` for one step, computed as fedpw_flwr.lab.training does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-5, **sgd)
    network = torch.compile(model) if compile else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        mixed = precision == "bfloat16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def batched_table(*, tiny: bool = False) -> Table:
    """Several clients in one program (torch.func.vmap), against one after another."""
    keep_freed_memory()
    rows = []
    for name, network, ours, size in (
        ("SmallCNN", lambda: SmallCNN(10, width=4 if tiny else 32), None, 16),
        ("SmallCNN", lambda: SmallCNN(10, width=4 if tiny else 32), None, 32),
        (
            "ResNet-10 of width 16",
            lambda: PlainResNet10(10, width=2 if tiny else 16),
            lambda: ResNet10(10, width=2 if tiny else 16),
            32,
        ),
    ):
        for batch in (4,) if tiny else (16, 64):
            images = torch.randn(CLIENTS, batch, 3, size, size)
            labels = torch.randint(0, 10, (CLIENTS, batch))
            one_by_one = [
                training_step((ours or network)().train(), x, y, "float32", fused=True)
                for x, y in zip(images, labels, strict=True)
            ]

            def in_turn(steps: Sequence[Step] = one_by_one) -> None:
                for step in steps:
                    step()

            batched = batched_step([network().train() for _ in range(CLIENTS)], images, labels)
            times = _measure({"in turn": in_turn, "batched": batched}, 2 if tiny else 7)
            turn, batch_time = (statistics.median(times[kind]) for kind in ("in turn", "batched"))
            rows.append(
                (
                    name,
                    f"{size}",
                    f"{batch}",
                    f"{1e3 * turn:.1f}",
                    f"{1e3 * batch_time:.1f}",
                    f"{turn / batch_time:.2f} ×",
                )
            )
    return Table(
        f"A step of {CLIENTS} clients: one after another, and batched with torch.func.vmap",
        ("network", "pixels", "batch", "in turn, ms", "vmap, ms", "in turn / vmap"),
        tuple(rows),
        "One thread, float32. The ResNet-10 is batched in plain order, because vmap refuses "
        "conversions to channels_last; one after another it is as the client loop trains it.",
    )


def batched_step(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Step:
    """Return a call that trains several models of one kind for a step in one program."""
    stacked, buffers = stack_module_state(models)
    weights = {name: tensor.detach() for name, tensor in stacked.items()}
    momenta = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    skeleton = models[0]

    def loss(
        weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        return cross_entropy(functional_call(skeleton, (weights, buffers), (images,)), labels)

    gradients_of = vmap(grad(loss))

    def step() -> None:
        gradients = gradients_of(weights, buffers, images, labels)
        for name, weight in weights.items():
            gradient = gradients[name].add_(weight, alpha=1e-5)
            weight.sub_(momenta[name].mul_(0.9).add_(gradient), alpha=0.01)

    return step


def _measure(steps: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each step; they take turns after two that are not counted."""
    torch.set_num_threads(1)
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
