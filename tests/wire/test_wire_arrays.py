"""Flower's arrays become tensors without a copy, and lies in them become ValueErrors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.broken_replies import npy

from fedpw_flwr.wire.arrays import (
    ArrayTensors,
    decode_array,
    encode_arrays,
    take_as_arrays,
)

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
    decoded = decode_array(payload)
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)
    if array.size:
        assert np.shares_memory(decoded, np.frombuffer(payload.data, dtype=np.uint8))
        tensor = ArrayTensors(ArrayRecord({"one": payload}))["one"]
        assert np.shares_memory(tensor.numpy(), decoded)


@pytest.mark.parametrize("kind", ARRAYS)
def test_encoding_and_decoding_is_the_identity(kind: str) -> None:
    tensors = {"first": torch.from_numpy(ARRAYS[kind].copy()), "second": torch.zeros(2)}
    decoded = ArrayTensors(encode_arrays(tensors))
    assert list(decoded) == ["first", "second"]
    assert len(decoded) == 2
    for name, tensor in tensors.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)


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


def test_unpickling_is_never_reached() -> None:
    class Explosive:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("a payload was unpickled",)

    import pickle

    header = HEADER.replace("<f4", "|O")
    array = npy(header, pickle.dumps(Explosive()), (6, 4), dtype="object")
    with pytest.raises(ValueError, match="objects"):
        decode_array(array)


def test_unknown_tensor_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        ArrayTensors(ArrayRecord({}))["layer.weight"]


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
