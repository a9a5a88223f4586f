"""Packed replies are read as the trained model they stand for, and arrays without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.client.masking import adjust_reply
from fedpw_flwr.client.request import ReceivedRequest
from fedpw_flwr.wire.adjustment import AdjustmentReport, AdjustmentRequest, Upload, pack_consensus
from fedpw_flwr.wire.arrays import ArrayTensors, PackedTensors, array_of_npy, decode_array
from fedpw_flwr.wire.packing import pack_update

NDArray = npt.NDArray[Any]

SHAPES = {"conv": (3, 4, 5), "twin": (3, 4, 5), "bias": (61,), "scale": (), "no": (0,)}
PACKABLE = {"conv", "twin", "bias"}
RATE = 0.4


def a_model(seed: int, precision: str = "float32") -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    model = {
        name: np.asarray(rng.standard_normal(shape)).astype(precision)
        for name, shape in SHAPES.items()
    }
    return {**model, "steps": np.array(seed)}


def moved(model: Mapping[str, NDArray], seed: int) -> dict[str, NDArray]:
    rng = np.random.default_rng([seed, 1])
    return {
        name: np.asarray(array + 0.01 * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    }


def tensors(model: Mapping[str, NDArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in model.items()}


def record(names: Iterable[str], arrays: Iterable[NDArray]) -> ArrayRecord:
    named = zip(names, arrays, strict=True)
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in named})


def reply_of(
    start: Mapping[str, NDArray], end: Mapping[str, NDArray], upload: Upload, rescaled: bool = True
) -> ArrayRecord:
    """What a client answers to the server's request; `PACKABLE` is packed where it shall be."""
    names = list(start)
    members = torch.arange(start["conv"].size) % 3 == 0
    factors = {names.index("conv"): 1.75} if rescaled else {}
    request = AdjustmentRequest(RATE, 1 if rescaled else None, factors, upload)
    received = ReceivedRequest(request, pack_consensus([members]) if rescaled else None)
    sent, report = adjust_reply(list(start.values()), list(end.values()), received, "cpu")
    packed = AdjustmentReport.decode(report, len(names)).packed
    assert {names[index] for index in packed} == (PACKABLE if upload == "packed" else set())
    return record(names, sent)


def read(arrays: ArrayRecord, start: Mapping[str, NDArray]) -> PackedTensors:
    return PackedTensors(arrays, PACKABLE, tensors(start), "float32", RATE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["float32", "float64"]), st.booleans())
def test_packed_float32_is_the_dense_upload_to_the_last_bit(
    seed: int, precision: str, rescaled: bool
) -> None:
    start = a_model(seed, precision)
    end = moved(start, seed)
    dense = ArrayTensors(reply_of(start, end, "dense", rescaled))
    model = read(reply_of(start, end, "packed", rescaled), start)
    assert list(model) == list(start)
    for name, array in start.items():
        expected = dense[name]
        assert (model[name].dtype, model[name].shape) == (expected.dtype, array.shape)
        # A double's update travels in single precision: half a unit in the last place of a float.
        exact = precision == "float32" or name not in PACKABLE
        update = np.abs(array - expected.numpy())
        allowed = 0.0 if exact else 2.0**-24 * update + 2.0**-52
        assert (np.abs(model[name].numpy() - expected.numpy()) <= allowed).all()


START = a_model(5)
PACKED = reply_of(START, moved(START, 5), "packed")


SENT = PACKED["conv"].numpy()
WRONG = {
    "dense": Array(START["conv"]),
    "dense and flat": Array(START["conv"].reshape(-1)),
    "no bytes": Array(np.zeros(0, dtype=np.uint8)),
    "zeros": Array(np.zeros(500, dtype=np.uint8)),
    "a number": Array(np.asarray(7, dtype=np.uint8)),
    "truncated": Array(SENT[:-1]),
    "begins too late": Array(SENT[1:]),
    "signed bytes": Array(SENT.astype(np.int8)),
    "a row in a table": Array(SENT.reshape(1, -1)),
    "no npy": Array("uint8", (3,), "numpy.ndarray", b"junk"),
    "another tensor of another shape": PACKED["bias"],
    "another tensor of the same shape": PACKED["twin"],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_payload_is_a_value_error_that_names_the_tensor(kind: str) -> None:
    with pytest.raises(ValueError, match=r"tensor 'conv': ."):
        read(ArrayRecord({**PACKED, "conv": WRONG[kind]}), START)["conv"]


def test_whole_numbers_are_never_packed() -> None:
    model = PackedTensors(PACKED, {"steps"}, tensors(START), "float32", RATE)
    with pytest.raises(ValueError, match=r"tensor 'steps' is packed but torch\.int64"):
        model["steps"]


@pytest.mark.parametrize("more", [0, 1])
def test_a_mask_that_keeps_more_than_the_rate_leaves_is_refused(more: int) -> None:
    kept = START["conv"].size - entry_count(START["conv"].size, RATE)
    update = torch.zeros(START["conv"].size)
    update[: kept + more] = 1e-3
    arrays = record(["conv"], [pack_update(update, "float32")])
    model = read(arrays, {"conv": START["conv"]})
    if not more:
        expected = START["conv"] - update.numpy().reshape(3, 4, 5)
        np.testing.assert_array_equal(model["conv"].numpy(), expected)
        return
    with pytest.raises(ValueError, match=rf"tensor 'conv'.*keeps {kept + 1} of 60.*leaves {kept}"):
        model["conv"]


def test_reading_changes_neither_the_model_nor_the_reply() -> None:
    start = {name: array.copy() for name, array in START.items()}
    model = read(PACKED, start)
    first = {name: model[name].clone() for name in model}
    for name in model:
        if name in PACKABLE:
            model[name].zero_()
        assert torch.equal(model[name], first[name])
        np.testing.assert_array_equal(start[name], START[name])
    assert len(model) == len(START)


def shares_memory(tensor: torch.Tensor, data: bytes) -> bool:
    start = np.frombuffer(data, dtype=np.uint8).ctypes.data
    return start < tensor.data_ptr() < start + len(data)


@pytest.mark.parametrize("name", ["conv", "bias", "scale", "steps"])
def test_arrays_of_the_legacy_api_are_wrapped_and_decoded_without_a_copy(name: str) -> None:
    data = Array(START[name]).data
    array = array_of_npy(data)
    assert array.data is data
    assert array.dtype == str(START[name].dtype)
    assert array.shape == START[name].shape
    decoded = decode_array(array)
    assert shares_memory(torch.from_numpy(decoded), data)
    np.testing.assert_array_equal(decoded, START[name])


def test_dense_arrays_of_a_packed_reply_are_read_without_a_copy() -> None:
    model = read(PACKED, START)
    for name in ("scale", "steps"):
        assert shares_memory(model[name], PACKED[name].data)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        Array(START["conv"]).data[:6],
        Array(START["conv"]).data[:40],
        b"\x93NUMPY\x09\x00" + Array(START["conv"]).data[8:],
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ],
    ids=["nothing", "junk", "only the magic", "half a header", "version 9", "a deep header"],
)
def test_unreadable_legacy_arrays_are_wrapped_and_refused_when_they_are_read(data: bytes) -> None:
    array = array_of_npy(data)
    assert array.data is data
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        decode_array(array)
