"""Flower's arrays become tensors without a copy, and lies in them become ValueErrors.

Packed replies are read as the trained model they stand for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.broken_replies import npy
from support.records import array_record
from support.small_model import trained

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.client.masking import adjust_reply
from fedpw_flwr.client.request import ReceivedRequest
from fedpw_flwr.wire.adjustment import AdjustmentReport, AdjustmentRequest, Upload, pack_consensus
from fedpw_flwr.wire.arrays import (
    ArrayTensors,
    PackedTensors,
    array_of_npy,
    decode_array,
    encode_arrays,
    take_as_arrays,
)
from fedpw_flwr.wire.packing import pack_update

ARRAYS: dict[str, np.ndarray] = {
    "row-major": np.arange(12, dtype=np.float32).reshape(3, 4),
    "column-major": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "column-major, 4-d": np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 2, 2)),
    "bool": np.array([[True, False], [False, True]]),
    "int64": np.arange(5),
    "uint8": np.arange(5, dtype=np.uint8),
    "float16": np.linspace(0, 1, 7, dtype=np.float16),
    "0-d float": np.array(2.5, dtype=np.float32),
    "0-d int": np.array(7),
    "0-d bool": np.array(True),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "not contiguous": np.arange(20, dtype=np.float32)[::2],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_is_decoded_without_a_copy(kind: str) -> None:
    array, payload = ARRAYS[kind], Array(ARRAYS[kind])
    legacy = array_of_npy(payload.data)
    assert (legacy.dtype, legacy.shape) == (payload.dtype, payload.shape)
    assert legacy.data is payload.data
    decoded = decode_array(payload)
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)
    if array.size:
        assert np.shares_memory(decoded, np.frombuffer(payload.data, dtype=np.uint8))
        tensor = ArrayTensors(ArrayRecord({"one": payload}))["one"]
        assert np.shares_memory(tensor.numpy(), decoded)


def test_decoding_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ArrayTensors(ArrayRecord({"one": Array(np.ones(3, dtype=np.float32))}))["one"]


GOOD = Array(np.arange(24, dtype=np.float32).reshape(6, 4))
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 4), }"
BODY = b"\0" * 96


def _payload(data: bytes) -> Array:
    return Array(dtype="float32", shape=(6, 4), stype="numpy.ndarray", data=data)


BROKEN = {
    "no bytes": _payload(b""),
    "half a magic string": _payload(GOOD.data[:3]),
    "magic string only": _payload(GOOD.data[:8]),
    "half a header": _payload(GOOD.data[:40]),
    "no body": _payload(GOOD.data[:128]),
    "short body": _payload(GOOD.data[:-1]),
    "long body": _payload(GOOD.data + b"\0"),
    "another format": _payload(b"PK\x03\x04" + GOOD.data),
    "version 3": _payload(GOOD.data[:6] + b"\x03" + GOOD.data[7:]),
    "version 9": _payload(GOOD.data[:6] + b"\x09" + GOOD.data[7:]),
    "other shape": npy(HEADER.replace("(6, 4)", "(4, 6)"), BODY, (6, 4)),
    "other dtype": npy(HEADER.replace("<f4", "<i4"), BODY, (6, 4)),
    "negative shape": npy(HEADER.replace("(6, 4)", "(-6, -4)"), BODY, (-6, -4)),
    "shape beyond memory": npy(HEADER.replace("(6, 4)", "(0, 10**30)"), b"", (0, 10**30)),
    "vast shape": npy(HEADER.replace("(6, 4)", f"(0, {10**30})"), b"", (0, 10**30)),
    "objects": npy(HEADER.replace("<f4", "|O"), BODY, (6, 4), dtype="object"),
    "text": Array(np.array(["a", "b"])),
    "dates": Array(np.array(["2025-12-01"], dtype="datetime64[D]")),
    "a structure": Array(np.zeros(2, dtype=[("x", "f4"), ("y", "f4")])),
    "no itemsize": npy(HEADER.replace("<f4", "|V0"), b"", (6, 4), dtype="|V0"),
    "open bracket": npy(HEADER.replace(")", ""), BODY, (6, 4)),
    "open quote": npy(HEADER[:-1] + "'''", BODY, (6, 4)),
    "unhashable key": npy("{[]: 1}", BODY, (6, 4)),
    "unsortable keys": npy("{1: 1, 'descr': 2, None: 3}", BODY, (6, 4)),
    "empty descr": npy(HEADER.replace("'<f4'", "()"), BODY, (6, 4)),
    "deeply nested": npy("(" * 5000, BODY, (6, 4)),
    "deeply negated": npy("-" * 5000 + "1", BODY, (6, 4)),
    "not a dictionary": npy("[1, 2]", BODY, (6, 4)),
    "other serialization": Array(dtype="float32", shape=(6, 4), stype="pickle", data=GOOD.data),
}


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_payload_is_a_value_error_that_names_the_tensor(kind: str) -> None:
    tensors = ArrayTensors(ArrayRecord({"layer.weight": BROKEN[kind]}))
    with pytest.raises(ValueError, match=r"tensor 'layer\.weight': ."):
        tensors["layer.weight"]


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_legacy_arrays_are_wrapped_and_refused_when_they_are_read(kind: str) -> None:
    wrapped = array_of_npy(BROKEN[kind].data)
    assert wrapped.data is BROKEN[kind].data
    if wrapped.dtype == "unknown":
        with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
            decode_array(wrapped)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD.data) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@example([(GOOD.data.index(b")"), ord(" "))])
def test_flipped_bytes_decode_or_are_a_value_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD.data)
    for position, value in flips:
        data[position] = value
    try:
        array = decode_array(_payload(bytes(data)))
    except ValueError:
        return
    assert array.shape == (6, 4)
    assert array.dtype == np.float32


def test_a_header_whose_shape_says_true_for_one_is_read_as_one() -> None:
    array = Array(np.ones(1, dtype=np.float32))
    data = array.data.replace(b"(1,), }   ", b"(True,), }")
    assert len(data) == len(array.data)
    odd = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)
    assert decode_array(odd).tolist() == [1.0]


@pytest.mark.parametrize("kind", ARRAYS)
def test_the_payload_is_byte_for_byte_flowers(kind: str) -> None:
    encoded = encode_arrays({"one": torch.from_numpy(ARRAYS[kind].copy())})["one"]
    flowers = Array(torch.from_numpy(ARRAYS[kind].copy()).numpy())
    assert encoded.data == flowers.data
    assert (encoded.dtype, tuple(encoded.shape), encoded.stype) == (
        flowers.dtype,
        tuple(flowers.shape),
        flowers.stype,
    )


def test_a_model_that_is_given_up_is_the_same_record() -> None:
    model = {"first": torch.arange(6.0).reshape(2, 3).t(), "second": torch.tensor(3)}
    expected = encode_arrays(model)
    assert take_as_arrays(model).object_id == expected.object_id
    assert model == {}


# Packed replies

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


def tensors(model: Mapping[str, NDArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in model.items()}


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
    return array_record(dict(zip(names, sent, strict=True)))


def read(arrays: ArrayRecord, start: Mapping[str, NDArray]) -> PackedTensors:
    return PackedTensors(arrays, PACKABLE, tensors(start), "float32", RATE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["float32", "float64"]), st.booleans())
def test_packed_float32_is_the_dense_upload_to_the_last_bit(
    seed: int, precision: str, rescaled: bool
) -> None:
    start = a_model(seed, precision)
    end = trained(start, (seed, 1), 0.01)
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
PACKED = reply_of(START, trained(START, (5, 1), 0.01), "packed")


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
    arrays = array_record({"conv": pack_update(update, "float32")})
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


def test_dense_arrays_of_a_packed_reply_are_read_without_a_copy() -> None:
    model = read(PACKED, START)
    for name in ("scale", "steps"):
        sent = np.frombuffer(PACKED[name].data, dtype=np.uint8)
        assert np.shares_memory(model[name].numpy(), sent)
