"""Time FedPW's `aggregate_train` against Flower's FedAvg on the same replies, and weigh its memory.

    python benchmarks/server_step.py

Real strategies, real Messages: a round is configured, N clients answer with updates of noise (half
of it shared, so that there is something to agree on) through a real ClientApp with `FedPWMod`, and
`aggregate_train` is timed from the Messages to the next ArrayRecord. FedAvg and FedPW take turns
on the same machine in the same process; a ratio is the median over the turns. FedPW's third round
is timed: the first has no masks, the second no consensus yet. FedAvg gets the dense replies of the
same clients; against a packed upload, FedAvg's time is that of the dense one.

Memory is the peak of the resident set during one `aggregate_train` in a process of its own, above
what was resident with all replies in place.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from report import Table

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.lab.models.resnet import ResNet10

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.grid import ClientsGrid, running

PLACEMENTS = ("server", "client", "packed float32", "packed float16")
UPDATE_SIZE = 1e-3

Model = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    clients: int
    width: int
    repeats: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-10")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only-times", action="store_true", help="the first table only")
    parser.add_argument("--memory", metavar="PLACEMENT", help="print one peak in models, and end")
    arguments = parser.parse_args()
    prepare()
    size = Size(arguments.clients, arguments.width, arguments.repeats)
    if arguments.memory:
        print(peak_in_models(size, arguments.memory))
        return
    printed = [times_table(size)] if arguments.only_times else tables(tiny=arguments.tiny)
    print("\n\n".join(table.markdown() for table in printed))


def tables(tiny: bool = False) -> list[Table]:
    """Measure with the sizes of the documents; tiny: a network of width 2, once."""
    prepare()
    if tiny:
        size = Size(3, 2, 1)
        return [times_table(size), memory_table(size, (3,)), growth_table((2, 3), (2, 3), 2, 1)]
    return [
        times_table(Size(20, 64, 9)),
        memory_table(Size(20, 64, 1), (10, 20, 50)),
        growth_table((5, 10, 20, 50, 100, 200), (9, 29, 91, 289), 32, 5),
    ]


def prepare() -> None:
    """Be the process of a ServerApp that logs errors only."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def times_table(size: Size) -> Table:
    """Time every placement against FedAvg."""
    rows = []
    for placement in PLACEMENTS:
        fedavg, fedpw = measure(size, placement)
        rows.append(_row(placement, fedavg, fedpw))
    return Table(
        title=f"aggregate_train, {size.clients} clients of {network_name(size.width)}",
        header=("adjustment", "FedAvg, ms", "FedPW, ms", "FedPW / FedAvg"),
        rows=tuple(rows),
        note=(
            f"Medians of {size.repeats} turns with up to {torch.get_num_threads()} threads, the "
            "third round. The ratio is the median of the turns' ratios."
        ),
    )


def growth_table(clients: Sequence[int], widths: Sequence[int], width: int, repeats: int) -> Table:
    """Time the server's adjustment against the number of clients and of parameters."""
    rows = []
    for count in clients:
        times = measure(Size(count, width, repeats), "server")
        rows.append((str(count), f"{parameters(width):,}", *_row("", *times)[1:]))
    for wide in widths:
        times = measure(Size(5, wide, repeats), "server")
        rows.append(("5", f"{parameters(wide):,}", *_row("", *times)[1:]))
    rows = [
        (*row, f"{1e6 * float(row[3]) / (int(row[0]) * int(row[1].replace(',', ''))):.2f}")
        for row in rows
    ]
    return Table(
        title="Growth with clients and parameters, adjustment on the server",
        header=("clients", "parameters", "FedAvg, ms", "FedPW, ms", "ratio", "FedPW, ns an entry"),
        rows=tuple(rows),
        note=(
            "A straight line has the same time an entry (client × parameter) in every row. Below "
            "16,777,216 entries the reference computes, from there on compiled loops; a round has "
            "fixed costs of some ms beside."
        ),
    )


def memory_table(size: Size, clients: Sequence[int]) -> Table:
    """Measure peaks in fresh processes."""
    rows = []
    for placement in PLACEMENTS:
        peaks = []
        for count in clients:
            command = [sys.executable, str(Path(__file__)), "--memory", placement]
            command += ["--clients", str(count), "--width", str(size.width)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(f"{float(done.stdout):.2f}")
        rows.append((placement, *peaks))
    return Table(
        title=f"Peak memory of aggregate_train above the replies, {network_name(size.width)}",
        header=("adjustment", *(f"{count} clients, models" for count in clients)),
        rows=tuple(rows),
        note="In models (float32 parameters); the new model and its encoded copy are two of them.",
    )


def measure(size: Size, placement: str) -> tuple[list[float], list[float]]:
    """Return the seconds of FedAvg's and of FedPW's turns."""
    replies, strategy = third_round(size, placement)
    plain = third_round(size, "server")[0] if placement.startswith("packed") else replies
    fedavg = FedAvg(fraction_evaluate=0.0)
    driver, method = strategy.driver, strategy.method
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(size.repeats + 1):
        seconds = [_seconds(lambda: fedavg.aggregate_train(3, _again(plain)))]
        strategy.method = copy.copy(method)
        strategy.driver = copy.copy(driver)
        strategy.driver.method = strategy.method
        seconds.append(_seconds(lambda: strategy.aggregate_train(3, _again(replies))))
        if turn or size.repeats == 1:
            for kept, measured in zip(times, seconds, strict=True):
                kept.append(measured)
    return times


def nodes(count: int, app: ClientApp) -> ClientsGrid:
    """Return a grid of so many nodes that run one ClientApp, in this process."""
    return ClientsGrid({node: running(app, _context(node)) for node in range(1, count + 1)})


def third_round(size: Size, placement: str) -> tuple[list[Message], FedPW]:
    """Run two rounds and return the replies of the third, with the strategy that waits for them."""
    strategy = fedpw(placement)
    arrays = ArrayRecord(network(size.width).state_dict())
    for round_number in (1, 2, 3):
        app = client_app(round_number, with_mod=placement != "server")
        grid = nodes(size.clients, app)
        messages = list(strategy.configure_train(round_number, arrays, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages))
        if round_number < 3:
            aggregated, _ = strategy.aggregate_train(round_number, replies)
            assert aggregated is not None
            arrays = aggregated
    return replies, strategy


def fedpw(placement: str, **options: Any) -> FedPW:
    where, _, dtype = placement.partition(" ")
    if dtype:
        options |= {"upload": "packed", "upload_dtype": dtype}
    options["adjustment"] = "client" if dtype else where
    return FedPW(fraction_evaluate=0.0, device="cpu", **options)


def client_app(round_number: int, *, with_mod: bool) -> ClientApp:
    app = ClientApp(mods=[FedPWMod(device="cpu")] if with_mod else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        state = arrays.to_torch_state_dict()
        trained = moved(state, round_number, context.node_id)
        metrics = MetricRecord({"train_loss": 1.0 + context.node_id % 7, "num-examples": 100})
        content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def moved(state: Model, round_number: int, node: int) -> Model:
    """Move a model by noise, half of which all clients of a round share.

    As after training, channels have scales of their own, and a tenth of them do not move.
    """
    shared = torch.Generator().manual_seed(round_number)
    own = torch.Generator().manual_seed(1000 * round_number + node)
    return {
        name: tensor
        + UPDATE_SIZE
        * channel_scales(tensor, shared)
        * (torch.randn(tensor.shape, generator=shared) + torch.randn(tensor.shape, generator=own))
        if tensor.is_floating_point()
        else tensor + 1
        for name, tensor in state.items()
    }


def channel_scales(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a scale for each input channel of a layer, and for each output channel."""
    scales = torch.ones(())
    for axis in range(min(2, tensor.dim())):
        drawn = torch.randn(tensor.shape[axis], generator=generator).exp_()
        drawn[torch.rand(len(drawn), generator=generator) < 0.05] = 0
        scales = scales * drawn.reshape([-1 if at == axis else 1 for at in range(tensor.dim())])
    return scales


def network(width: int) -> ResNet10:
    torch.manual_seed(0)
    return ResNet10(num_classes=10, in_channels=3, width=width)


def parameters(width: int) -> int:
    return sum(tensor.numel() for tensor in network(width).parameters())


def network_name(width: int) -> str:
    return f"ResNet-10 of width {width} ({parameters(width):,} parameters)"


def peak_in_models(size: Size, placement: str) -> float:
    """Return the peak of one `aggregate_train` above what is resident before it."""
    replies, strategy = third_round(size, placement)
    gc.collect()
    # Linux: give back what earlier rounds left free, and let the peak begin anew.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    strategy.aggregate_train(3, replies)
    return (_resident("VmHWM") - before) / (4 * parameters(size.width))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])


def _again(replies: Sequence[Message]) -> list[Message]:
    """Return the replies with record containers of their own, in case a strategy changes them."""
    return [_with_content(reply, RecordDict({**reply.content})) for reply in replies]


def _with_content(reply: Message, content: RecordDict) -> Message:
    again = copy.copy(reply)
    again.__dict__["_content"] = content
    return again


def _context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(name: str, fedavg: Sequence[float], fedpw: Sequence[float]) -> tuple[str, ...]:
    ratio = statistics.median(mine / other for mine, other in zip(fedpw, fedavg, strict=True))
    medians = [f"{1e3 * statistics.median(times):.1f}" for times in (fedavg, fedpw)]
    return (name, *medians, f"{ratio:.2f}")


if __name__ == "__main__":
    main()
