"""Clients compute in another precision or byte order than the model: their arrays are cast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adjusting_clients import following, ignoring, model_of, round_of
from baselines_federation import BUILDS
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from support.grid import Client, ClientsGrid, train_round
from support.records import NDArrays, array_record, ndarrays, payloads, train_content

from fedpw_flwr import FedPW
from fedpw_flwr.rounds.faults import UnusableRepliesError

NODES = [31, 32, 33, 34]
MANY = 5000
"""More entries than are sorted in one go."""

PLACES: dict[str, tuple[dict[str, object], Callable[..., Client]]] = {
    "server": ({}, ignoring),
    "client": ({"adjustment": "client"}, following),
    "packed": ({"adjustment": "client", "upload": "packed", "upload_dtype": "float16"}, following),
    "client's update adjusted by the server": ({"adjustment": "client"}, ignoring),
}
PAIRS = [
    ("float32", "float64"),
    ("float32", "float16"),
    ("float32", ">f4"),
    ("float32", ">f8"),
    ("float64", "float32"),
    ("float64", ">f8"),
    ("float16", "float32"),
    ("float16", "float64"),
]


def model_in(dtype: str) -> NDArrays:
    rng = np.random.default_rng(5)
    return {
        "wide.weight": rng.standard_normal((50, MANY // 50)).astype(dtype),
        "bias": rng.standard_normal(7).astype(dtype),
        "steps": np.array(2),
    }


def computing_in(dtype: str, cast_back: bool) -> Callable[[Message], Message]:
    """A train function whose arithmetic ends in a dtype; one that casts its result back itself."""

    def train(message: Message) -> Message:
        node, sent = message.metadata.dst_node_id, model_of(message)
        rng = np.random.default_rng([node, round_of(message)])
        model = {}
        for name, array in sent.items():
            if array.dtype.kind == "f":
                trained = (array + 0.1 * rng.standard_normal(array.shape)).astype(dtype)
                model[name] = trained.astype(array.dtype) if cast_back else trained
            else:
                model[name] = array + 1
        return Message(train_content(model, loss=0.3 * (node - 30)), reply_to=message)

    return train


def after_rounds(
    place: str, model: NDArrays, train: Callable[[Message], Message], rounds: int = 4
) -> tuple[ArrayRecord, list[MetricRecord]]:
    options, client_of = PLACES[place]
    strategy, arrays, told = FedPW(device="cpu", **options), array_record(model), []  # type: ignore[arg-type]
    grid = ClientsGrid(dict.fromkeys(NODES, client_of(train)))
    for server_round in range(1, rounds + 1):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        told.append(metrics)
    return arrays, told


@pytest.mark.parametrize(
    ("models", "replies", "place"),
    [(*pair, "server") for pair in PAIRS]
    + [(*pair, place) for pair in PAIRS[::2] for place in PLACES if place != "server"],
)
def test_replies_in_another_precision_are_as_good_as_those_that_were_cast(
    models: str, replies: str, place: str
) -> None:
    model = model_in(models)
    arrays, told = after_rounds(place, model, computing_in(replies, cast_back=False))
    expected, metrics = after_rounds(place, model, computing_in(replies, cast_back=True))
    assert payloads(arrays) == payloads(expected)
    assert told == metrics
    assert {array.dtype for name, array in arrays.items() if name != "steps"} == {models}
    assert [one["fedpw-quarantined"] for one in told] == [0] * 4
    assert not np.array_equal(arrays["bias"].numpy(), model["bias"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_a_big_endian_model_is_trained_as_the_same_numbers_in_this_machines_order(
    dtype: str, place: str
) -> None:
    model = model_in(dtype)
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in model.items()}
    arrays, _ = after_rounds(place, model, computing_in(dtype, cast_back=False))
    expected, _ = after_rounds(place, native, computing_in(dtype, cast_back=True))
    assert payloads(arrays) == payloads(expected)


def test_one_client_in_another_precision_among_others() -> None:
    def mixed(message: Message) -> Message:
        dtype = "float64" if message.metadata.dst_node_id == 33 else "float32"
        return computing_in(dtype, cast_back=False)(message)

    _, told = after_rounds("server", model_in("float32"), mixed)
    assert [one["fedpw-client-id"] for one in told] == [NODES] * 4


@pytest.mark.parametrize(
    ("models", "replies", "value"), [("float16", "float32", 7e4), ("float32", "float64", 1e200)]
)
def test_a_value_that_the_models_dtype_does_not_hold_costs_its_reply(
    models: str, replies: str, value: float
) -> None:
    def client(message: Message) -> list[Message]:
        [reply] = ignoring(computing_in(replies, cast_back=False))(message)
        if message.metadata.dst_node_id == 32:
            model = copy.deepcopy(ndarrays(reply.content["arrays"]))
            model["bias"][3] = value
            reply.content["arrays"] = array_record(model)
        return [reply]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, metrics = train_round(FedPW(), grid, array_record(model_in(models)))
    assert metrics["fedpw-client-id"] == [31, 33, 34]
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_what_is_not_floating_is_not_cast_to_a_floating_array(dtype: str) -> None:
    def client(message: Message) -> list[Message]:
        model = {**model_of(message), "bias": np.ones(7, dtype)}
        return [Message(train_content(model), reply_to=message)]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    with pytest.raises(
        UnusableRepliesError, match=rf"'bias' is torch.{dtype} instead of .*float32"
    ):
        train_round(FedPW(), grid, array_record(model_in("float32")))


def test_a_model_without_a_floating_array_is_refused_before_anybody_is_asked() -> None:
    def nobody(message: Message) -> list[Message]:
        raise AssertionError("asked")

    blob = ArrayRecord({"0": Array(np.frombuffer(b'{"learner": {}}', np.uint8))})
    grid = ClientsGrid(dict.fromkeys(NODES, nobody))
    with pytest.raises(
        ValueError, match=r"no floating array.*uint8.*FedXgbBagging or FedXgbCyclic"
    ):
        FedPW().start(grid, blob, num_rounds=1)
    assert not grid.sent


# Integers

WIDTHS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


def integers_after(
    sent: np.ndarray, of_node: Callable[[int, np.ndarray], np.ndarray], **options: object
) -> np.ndarray:
    def client(message: Message) -> list[Message]:
        model = model_of(message)
        node = message.metadata.dst_node_id
        model["w"] = model["w"] + np.float32(0.1 * (node - 30))
        model["key"] = of_node(node, model["key"])
        return [Message(train_content(model), reply_to=message)]

    strategy = FedPW(adapt_weights=False, **options)  # type: ignore[arg-type]
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays = array_record({"w": np.ones((3, 4), np.float32), "key": sent})
    for server_round in (1, 2):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["fedpw-quarantined"] == 0
    return arrays["key"].numpy()


@pytest.mark.parametrize("options", [{}, {"adjustment": "client"}])
@pytest.mark.parametrize("width", WIDTHS)
def test_integers_on_which_all_agree_are_kept_exactly(
    width: str, options: dict[str, object]
) -> None:
    limits = np.iinfo(width)
    sent = np.array([limits.min, limits.max, limits.max - 1, 77], width)
    key = integers_after(sent, lambda node, array: array, **options)
    assert key.dtype == width
    assert key.tolist() == sent.tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_integers_that_differ_are_averaged_and_rounded_to_nearest(width: str) -> None:
    key = integers_after(
        np.zeros(2, width), lambda node, array: np.array([node, 90 + node % 2], width)
    )
    assert key.dtype == width
    assert key.tolist() == [32, 90]


@pytest.mark.parametrize("width", ["uint64", "int64"])
def test_keys_beyond_double_precision_that_change_alike_stay_exact(width: str) -> None:
    step = 0x1234_5678_9ABC_DE01

    def split(node: int, array: np.ndarray) -> np.ndarray:
        return array + np.array(step, width)

    key = integers_after(np.array([3, 11], width), split)
    with np.errstate(over="ignore"):
        assert key.tolist() == (np.array([3, 11], width) + 2 * np.array(step, width)).tolist()


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


def counting(message: Message) -> list[Message]:
    """A client with keys of all widths and byte orders beside what it trains."""
    sent = model_of(message)
    moved = sent["w"].astype(np.float32) + np.float32(0.1 * (message.metadata.dst_node_id - 30))
    model = {**sent, "w": moved}
    return [Message(train_content(model, loss=0.5), reply_to=message)]


KEYS: NDArrays = {
    "w": np.ones((3, 4), ">f4"),
    **{width: np.array([7, np.iinfo(width).max], width) for width in WIDTHS},
    "big-endian": np.array([1, 2**63 + 5], ">u8"),
    "truth": np.array([True, False]),
}


def assert_kept(arrays: ArrayRecord) -> None:
    for name, array in ndarrays(arrays).items():
        assert array.dtype == KEYS[name].dtype.newbyteorder("=")
        assert name == "w" or array.tolist() == KEYS[name].tolist()


@pytest.mark.parametrize("name", BUILDS)
def test_baselines_carry_keys_of_all_widths(name: str) -> None:
    strategy, arrays = BUILDS[name](), array_record(KEYS)
    grid = ClientsGrid(dict.fromkeys(NODES, counting))
    for server_round in (1, 2):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["quarantined"] == 0
    assert_kept(arrays)


def test_keys_of_all_widths_are_in_a_checkpoint_as_they_are(tmp_path: Path) -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, counting))
    arrays = array_record(KEYS)
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "fraction_evaluate": 0.0}
    FedPW(**options).start(grid, arrays, num_rounds=1)
    result = FedPW(resume=True, **options).start(grid, arrays, num_rounds=3)
    assert_kept(result.arrays)


def test_truths_are_decided_by_the_majority() -> None:
    key = integers_after(
        np.array([True, False]), lambda node, array: np.array([node != 31, node == 31])
    )
    assert key.dtype == np.bool_
    assert key.tolist() == [True, False]
