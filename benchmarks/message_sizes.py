"""Print what FedPW's messages weigh on the wire, against plain FedAvg's, as Markdown tables.

    python benchmarks/message_sizes.py --drop-rates 0.3 0.5 0.9

Three rounds of the real strategy with two real ClientApps, the paper's ResNet-10 and updates of
noise, half of which the clients share. The third round is the first that has everything: masks,
consensus bits and factors. Its messages are weighed as a SuperNode and its SuperLink exchange
them: one protobuf message with the metadata and the tree of objects, then one for every object
(records, arrays and their chunks). Flower does not compress them, and sends equal objects once.
"Down" is what a SuperNode pulls for one training message, "up" what it pushes for the reply; HTTP
headers, acknowledgements and heartbeats are left out.

Times are medians on one thread, for the whole update. Flower's is what it does to the same update
when it travels dense, both ends together: npy, chunks, SHA-256, protobuf, and back to tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from report import Table
from server_step import UPDATE_SIZE, Model, fedpw, network, network_name, prepare
from support.grid import Client, ClientsGrid

from fedpw_flwr import FedPWMod
from fedpw_flwr.algorithm.client_step import adjust_tensor
from fedpw_flwr.wire.arrays import ArrayTensors
from fedpw_flwr.wire.packing import UPLOAD_DTYPES, PackedUpdate, pack_update

RUN_ID = 2**61 + 1
NODES = (2**63 + 1, 2**63 + 3)
"""Flower draws ids of 64 bits; small ones would take fewer bytes."""

SESSION_ID = "0" * 32
ROUNDS = 3
DROP_RATES = (0.3, 0.5, 0.9)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a training message of the last round, and of its reply."""

    down: int
    up: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-10; the paper's is 64")
    parser.add_argument("--drop-rates", type=float, nargs="+", default=list(DROP_RATES))
    parser.add_argument("--repeats", type=int, default=9, help="of every timing")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    given = parser.parse_args()
    size = (2, (0.5,), 1) if given.tiny else (given.width, given.drop_rates, given.repeats)
    print("\n\n".join(table.markdown() for table in tables(*size)))


def tables(width: int, drop_rates: Sequence[float], repeats: int) -> list[Table]:
    """Weigh the messages, and time packing, for a width of the network and some drop rates."""
    torch.set_num_threads(1)
    prepare()
    TaskIdentity.run_id = RUN_ID
    return [sizes_table(width, drop_rates), times_table(width, drop_rates, repeats)]


def sizes_table(width: int, drop_rates: Iterable[float]) -> Table:
    """Weigh FedAvg's messages and FedPW's with every kind of upload."""
    plain = measure_sizes(FedAvg(fraction_evaluate=0.0), width)
    rows = [_size_row("", "FedAvg", "dense", plain, plain)]
    for rate in drop_rates:
        for placement in ("client", *(f"packed {dtype}" for dtype in UPLOAD_DTYPES)):
            sizes = measure_sizes(fedpw(placement, avg_drop_rate=rate), width)
            upload = placement.replace("client", "dense")
            rows.append(_size_row(f"{rate:g}", "FedPW", upload, sizes, plain))
    return Table(
        title=f"Messages of {network_name(width)}",
        header=(
            *("drop rate", "strategy", "upload"),
            *("down, bytes", "/ FedAvg", "up, bytes", "/ FedAvg"),
        ),
        rows=tuple(rows),
        note=(
            "Serialised messages of the third round: what a SuperNode pulls for a training message "
            "(down) and pushes for its reply (up), without HTTP headers and heartbeats."
        ),
    )


def times_table(width: int, drop_rates: Iterable[float], repeats: int) -> Table:
    """Time packing and unpacking, and what Flower does anyway."""
    flower = measure_flower(width, repeats)
    rows = []
    for rate in drop_rates:
        for dtype in UPLOAD_DTYPES:
            pack, unpack = measure_packing(width, rate, dtype, repeats)
            milliseconds = [f"{1e3 * seconds:.0f}" for seconds in (pack, unpack, pack + unpack)]
            rows.append((f"{rate:g}", dtype, *milliseconds, f"{(pack + unpack) / flower:.2f}"))
    return Table(
        title=f"Packing of {network_name(width)}",
        header=(
            *("drop rate", "values", "pack, ms", "unpack, ms", "both, ms"),
            f"/ Flower's {1e3 * flower:.0f} ms",
        ),
        rows=tuple(rows),
        note=(
            f"Medians of {repeats} on one thread, for the whole update. Flower's is what it does "
            "to the same update when it travels dense, both ends together."
        ),
    )


def measure_sizes(strategy: Strategy, width: int) -> Sizes:
    """Weigh the last of three rounds of a strategy; the heavier of the two clients counts."""
    app = _client_app(width)
    sizes: dict[int, list[Sizes]] = {node: [] for node in NODES}
    grid = ClientsGrid({node: weighed(app, sizes[node]) for node in NODES})
    arrays = ArrayRecord(network(width).state_dict())
    strategy.start(grid, initial_arrays=arrays, num_rounds=ROUNDS)
    if any(len(of_client) != ROUNDS for of_client in sizes.values()):
        raise RuntimeError("a client was left out of a round")
    last = [of_client[-1] for of_client in sizes.values()]
    return Sizes(max(one.down for one in last), max(one.up for one in last))


def measure_packing(width: int, drop_rate: float, dtype: str, repeats: int) -> tuple[float, float]:
    """Return the seconds in which a whole masked update is packed, and unpacked."""
    start = network(width).state_dict()
    end = _trained(start, (1, 2))
    updates = [
        adjust_tensor(tensor, end[name], drop_rate)[0]
        for name, tensor in start.items()
        if tensor.is_floating_point()
    ]
    payloads = [pack_update(update, dtype) for update in updates]
    packing = _median_seconds(repeats, lambda: [pack_update(update, dtype) for update in updates])
    unpacking = _median_seconds(
        repeats,
        lambda: [
            PackedUpdate(payload, update.numel(), dtype).unpack()
            for payload, update in zip(payloads, updates, strict=True)
        ],
    )
    return packing, unpacking


def measure_flower(width: int, repeats: int) -> float:
    """Return the seconds in which Flower writes and reads the same update as dense arrays."""
    arrays = {name: tensor.numpy() for name, tensor in network(width).state_dict().items()}
    question = Message(RecordDict(), dst_node_id=NODES[0], message_type="train")

    def there_and_back() -> list[torch.Tensor]:
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        reply, _ = carry_up(Message(RecordDict({"arrays": record}), reply_to=question))
        read = ArrayTensors(reply.content.array_records["arrays"])
        return [read[name] for name in read]

    return _median_seconds(repeats, there_and_back)


def carry_down(message: Message) -> tuple[Message, int]:
    """Take a message to a SuperNode; return what arrives there, and its weight."""
    found = partial(PullObjectResponse, object_found=True, object_available=True)
    return _carried(message, PullMessagesResponse, lambda _, content: found(object_content=content))


def carry_up(message: Message) -> tuple[Message, int]:
    """Take a reply to the SuperLink; return what arrives there, and its weight."""
    node = Node(node_id=message.metadata.src_node_id)
    pushed = partial(PushObjectRequest, node=node, run_id=RUN_ID, session_id=SESSION_ID)
    return _carried(
        message,
        partial(PushMessagesRequest, node=node, clientapp_runtime_list=[1.0]),
        lambda object_id, content: pushed(object_id=object_id, object_content=content),
    )


def _carried(
    message: Message, head_of: Callable[..., Any], request_of: Callable[[str, bytes], Any]
) -> tuple[Message, int]:
    """Write a message and each of its objects, and read them again."""
    with no_object_id_recompute():
        objects = get_all_nested_objects(message)
        contents = {object_id: nested.deflate() for object_id, nested in objects.items()}
        head = head_of(
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
        )
    weight, arrived = len(head.SerializeToString(deterministic=True)), {}
    for object_id, content in contents.items():
        request = request_of(object_id, content)
        written = request.SerializeToString(deterministic=True)
        weight += len(written)
        arrived[object_id] = type(request).FromString(written).object_content
    message_id = next(reversed(arrived))
    read = inflate_object_from_contents(message_id, arrived)
    assert isinstance(read, Message)
    read.metadata.__dict__["_message_id"] = message_id
    return read, weight


def weighed(app: ClientApp, sizes: list[Sizes]) -> Client:
    """A client that takes each message to an app and its reply back, and notes what they weigh."""

    def client(message: Message) -> list[Message]:
        message.metadata.__dict__["_message_id"] = message.object_id
        received, down = carry_down(message)
        node = message.metadata.dst_node_id
        reply, up = carry_up(app(received, Context(RUN_ID, node, {}, RecordDict(), {})))
        sizes.append(Sizes(down, up))
        return [reply]

    return client


def _client_app(width: int) -> ClientApp:
    """Return a ClientApp whose training is noise, with FedPW's mod; losses are always equal."""
    app = ClientApp(mods=[FedPWMod(device="cpu")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        own = 1 + NODES.index(context.node_id)
        model = network(width)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        end = _trained(model.state_dict(), (100 * server_round, 100 * server_round + own))
        metrics = MetricRecord({"train_loss": 1.0, "num-examples": 100})
        content = RecordDict({"arrays": ArrayRecord(end), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def _trained(start: Mapping[str, torch.Tensor], seeds: Iterable[int]) -> Model:
    """Move floating tensors by noise of every seed, and counters by one."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    end = {}
    for name, tensor in start.items():
        end[name] = tensor.clone() if tensor.is_floating_point() else tensor + 1
        if tensor.is_floating_point():
            for source in sources:
                end[name] += UPDATE_SIZE * torch.randn(tensor.shape, generator=source)
    return end


def _size_row(rate: str, strategy: str, upload: str, sizes: Sizes, plain: Sizes) -> tuple[str, ...]:
    down = (f"{sizes.down:,}", f"{sizes.down / plain.down:.3f}")
    return (rate, strategy, upload, *down, f"{sizes.up:,}", f"{sizes.up / plain.up:.3f}")


def _median_seconds(repeats: int, run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
