"""What goes in as an array comes out as the same kind of array, whatever clients compute in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from support.adjusting_clients import WHERE, Train, model_of, round_of
from support.baselines_federation import BUILDS
from support.grid import ClientsGrid, train_round
from support.records import NDArrays, array_record, ndarrays, payloads, train_content
from support.small_model import MODEL, good_client, train_reply, trained

from fedpw_flwr import FedPW
from fedpw_flwr.rounds.faults import UnusableRepliesError

NODES = [31, 32, 33, 34]


def after_rounds(
    model: NDArrays, train: Train = train_reply, where: str = "server", rounds: int = 3
) -> tuple[ArrayRecord, list[MetricRecord]]:
    options, client_of = WHERE[where]
    strategy, arrays, told = FedPW(device="cpu", **options), array_record(model), []
    grid = ClientsGrid(dict.fromkeys(NODES, client_of(train)))
    for server_round in range(1, rounds + 1):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["fedpw-client-id"] == NODES
        told.append(metrics)
    return arrays, told


# --- Floating arrays --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_names_dtypes_and_shapes_are_kept(dtype: str) -> None:
    model = {
        "w": np.linspace(-1, 1, 40).astype(dtype).reshape(8, 5),
        "scale": np.array(2.0, dtype),
        "none": np.zeros((0, 4), dtype),
    }
    arrays, _ = after_rounds(model)
    assert [(name, array.dtype, array.shape) for name, array in arrays.items()] == [
        (name, dtype, array.shape) for name, array in model.items()
    ]
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())
    assert not np.array_equal(arrays["w"].numpy(), model["w"])
    assert arrays["scale"].numpy() != 2.0


def test_key_order_is_the_models_whatever_the_clients_order() -> None:
    def train(message: Message) -> Message:
        model = trained(MODEL, (message.metadata.dst_node_id,))
        names = sorted(model, reverse=message.metadata.dst_node_id % 2 == 0)
        return Message(train_content({name: model[name] for name in names}), reply_to=message)

    assert list(after_rounds(MODEL, train, rounds=1)[0]) == list(MODEL)


def test_neither_the_sent_model_nor_the_replies_are_written_to() -> None:
    strategy, start = FedPW(), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    arrays, _ = train_round(strategy, grid, start, 1)
    messages = list(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    records = [arrays, *(reply.content["arrays"] for reply in replies)]
    before = [payloads(record) for record in records]
    strategy.aggregate_train(2, replies)
    assert [payloads(record) for record in records] == before
    assert payloads(start) == payloads(array_record(MODEL))


# --- Replies in another precision or byte order -----------------------------------------------


def model_in(dtype: str) -> NDArrays:
    """More entries than are sorted in one go, few, and a counter."""
    rng = np.random.default_rng(5)
    return {
        "wide.weight": rng.standard_normal((50, 100)).astype(dtype),
        "bias": rng.standard_normal(7).astype(dtype),
        "steps": np.array(2),
    }


def computing_in(dtype: str, cast_back: bool) -> Train:
    """A train function whose arithmetic ends in a dtype; one that casts its result back itself."""

    def train(message: Message) -> Message:
        node, sent = message.metadata.dst_node_id, model_of(message)
        rng = np.random.default_rng([node, round_of(message)])
        model = {"steps": sent["steps"] + 1}
        for name in ("wide.weight", "bias"):
            moved = (sent[name] + 0.1 * rng.standard_normal(sent[name].shape)).astype(dtype)
            model[name] = moved.astype(sent[name].dtype) if cast_back else moved
        return Message(train_content(model, loss=0.3 * (node - 30)), reply_to=message)

    return train


@pytest.mark.parametrize(
    ("models", "replies", "where"),
    [
        ("float32", "float16", "server"),
        ("float32", ">f8", "server"),
        ("float64", "float32", "server"),
        ("float64", ">f8", "server"),
        ("float16", "float64", "server"),
        *(("float32", "float64", where) for where in WHERE),
        *(("float32", ">f4", where) for where in WHERE),
        *(("float16", "float32", where) for where in WHERE),
    ],
)
def test_replies_in_another_precision_are_as_good_as_those_that_were_cast(
    models: str, replies: str, where: str
) -> None:
    model = model_in(models)
    arrays, told = after_rounds(model, computing_in(replies, cast_back=False), where)
    expected, metrics = after_rounds(model, computing_in(replies, cast_back=True), where)
    assert payloads(arrays) == payloads(expected)
    assert told == metrics
    assert {array.dtype for name, array in arrays.items() if name != "steps"} == {models}
    assert not np.array_equal(arrays["bias"].numpy(), model["bias"])
    steps = arrays["steps"].numpy()
    assert (steps.shape, steps.dtype, int(steps)) == ((), np.dtype(np.int64), 2 + 3)


@pytest.mark.parametrize(("dtype", "where"), [(">f4", "server"), (">f8", "packed")])
def test_a_big_endian_model_is_trained_as_the_same_numbers_in_this_machines_order(
    dtype: str, where: str
) -> None:
    model = model_in(dtype)
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in model.items()}
    arrays, _ = after_rounds(model, computing_in(dtype, cast_back=False), where)
    expected, _ = after_rounds(native, computing_in(dtype, cast_back=True), where)
    assert payloads(arrays) == payloads(expected)


@pytest.mark.parametrize(
    ("models", "replies", "value"), [("float16", "float32", 7e4), ("float32", "float64", 1e200)]
)
def test_a_value_that_the_models_dtype_does_not_hold_costs_its_reply_alone(
    models: str, replies: str, value: float
) -> None:
    def client(message: Message) -> list[Message]:
        # Two compute in another precision; one of them gets too far.
        node = message.metadata.dst_node_id
        dtype = replies if node in (32, 33) else models
        reply = computing_in(dtype, cast_back=False)(message)
        if node == 32:
            model = ndarrays(reply.content["arrays"])
            model["bias"] = np.full(7, value, dtype)
            reply.content["arrays"] = array_record(model)
        return [reply]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, metrics = train_round(FedPW(), grid, array_record(model_in(models)))
    assert metrics["fedpw-client-id"] == [31, 33, 34]
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_what_is_not_floating_is_not_cast_to_a_floating_array(dtype: str) -> None:
    def train(message: Message) -> Message:
        model = {**model_of(message), "bias": np.ones(7, dtype)}
        return Message(train_content(model), reply_to=message)

    with pytest.raises(
        UnusableRepliesError, match=rf"'bias' is torch.{dtype} instead of .*float32"
    ):
        after_rounds(model_in("float32"), train)


def test_a_model_without_a_floating_array_is_refused_before_anybody_is_asked() -> None:
    blob = ArrayRecord({"0": Array(np.frombuffer(b'{"learner": {}}', np.uint8))})
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    with pytest.raises(
        ValueError, match=r"no floating array.*uint8.*FedXgbBagging or FedXgbCyclic"
    ):
        FedPW().start(grid, blob, num_rounds=1)
    assert not grid.sent


# --- Integers and truths ----------------------------------------------------------------------

WIDTHS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


def integers_after(
    sent: np.ndarray, of_node: Callable[[int, np.ndarray], np.ndarray], **options: Any
) -> np.ndarray:
    """The array after two rounds of clients that count alike."""

    def client(message: Message) -> list[Message]:
        model = model_of(message)
        node = message.metadata.dst_node_id
        model["w"] = model["w"] + np.float32(0.1 * (node - 30))
        model["key"] = of_node(node, model["key"])
        return [Message(train_content(model), reply_to=message)]

    strategy = FedPW(adapt_weights=False, **options)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays = array_record({"w": np.ones((3, 4), np.float32), "key": sent})
    for server_round in (1, 2):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["fedpw-quarantined"] == 0
    return arrays["key"].numpy()


@pytest.mark.parametrize("width", WIDTHS)
def test_integers_keep_their_width_and_are_averaged_and_rounded_to_nearest(width: str) -> None:
    # The means are 32.5 and, of 90, 91, 90 and 91, 90.5; a half goes to the even number.
    key = integers_after(
        np.zeros(2, width), lambda node, array: np.array([node, 90 + node % 2], width)
    )
    assert key.dtype == width
    assert key.tolist() == [32, 90]


@pytest.mark.parametrize("width", ["uint64", "int64"])
def test_keys_beyond_double_precision_that_change_alike_stay_exact(width: str) -> None:
    step = np.array(0x1234_5678_9ABC_DE01, width)
    key = integers_after(np.array([3, 11], width), lambda node, array: array + step)
    with np.errstate(over="ignore"):
        assert key.tolist() == (np.array([3, 11], width) + 2 * step).tolist()


def test_huge_integers_that_differ_have_a_mean_within_what_their_dtype_holds() -> None:
    most = np.iinfo(np.uint64).max
    key = integers_after(
        np.zeros(2, np.uint64), lambda node, array: np.array([most - node, node % 2 * most], "u8")
    )
    assert key[0] >= np.uint64(most - 4096)
    assert key[1] == 2**63


@pytest.mark.parametrize("order", [">i4", ">i8", ">u2", ">u8"])
def test_big_endian_integers_are_the_same_numbers(order: str) -> None:
    sent = np.array([2, 300], order)
    key = integers_after(sent, lambda node, array: (array + 5).astype(order))
    assert key.tolist() == [12, 310]
    assert key.dtype == np.dtype(order).newbyteorder("=")


def test_truths_are_decided_by_the_majority() -> None:
    key = integers_after(
        np.array([True, False]), lambda node, array: np.array([node != 31, node == 31])
    )
    assert key.dtype == np.bool_
    assert key.tolist() == [True, False]


KEYS: NDArrays = {
    "w": np.ones((3, 4), ">f4"),
    **{
        width: np.array([np.iinfo(width).min, np.iinfo(width).max, np.iinfo(width).max - 1], width)
        for width in WIDTHS
    },
    "big-endian": np.array([1, 2**63 + 5], ">u8"),
    "truth": np.array([True, False]),
}


def keeping_keys(message: Message) -> list[Message]:
    """A client with keys of all widths and byte orders beside what it trains."""
    sent = model_of(message)
    moved = sent["w"].astype(np.float32) + np.float32(0.1 * (message.metadata.dst_node_id - 30))
    return [Message(train_content({**sent, "w": moved}, loss=0.5), reply_to=message)]


def assert_kept(arrays: ArrayRecord) -> None:
    for name, array in ndarrays(arrays).items():
        assert array.dtype == KEYS[name].dtype.newbyteorder("=")
        assert name == "w" or array.tolist() == KEYS[name].tolist()


STRATEGIES: dict[str, Callable[[], Any]] = {
    **BUILDS,
    "FedPW": FedPW,
    "FedPW, on the clients": lambda: FedPW(adjustment="client"),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_keys_on_which_all_agree_are_kept_exactly_by_every_method(name: str) -> None:
    strategy, arrays = STRATEGIES[name](), array_record(KEYS)
    grid = ClientsGrid(dict.fromkeys(NODES, keeping_keys))
    for server_round in (1, 2):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics[f"{strategy.metrics_prefix}quarantined"] == 0
    assert_kept(arrays)


def test_keys_of_all_widths_are_in_a_checkpoint_as_they_are(tmp_path: Path) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, keeping_keys))
    arrays = array_record(KEYS)
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "fraction_evaluate": 0.0}
    FedPW(**options).start(grid, arrays, num_rounds=1)
    result = FedPW(resume=True, **options).start(grid, arrays, num_rounds=3)
    assert_kept(result.arrays)
