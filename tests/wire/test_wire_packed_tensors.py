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
from fedpw_flwr.client.masking import ReceivedRequest, adjust_reply
from fedpw_flwr.wire.adjustment import AdjustmentReport, AdjustmentRequest, Upload, pack_consensus
from fedpw_flwr.wire.arrays import PackedTensors, array_of_npy, decode_array
from fedpw_flwr.wire.packing import UPLOAD_DTYPES, pack_update

NDArray = npt.NDArray[Any]
PROPERTY = settings(max_examples=40, deadline=None)

SHAPES = {"conv": (3, 4, 5), "twin": (3, 4, 5), "bias": (61,), "scale": (), "steps": (), "no": (0,)}
RATE = 0.4


def a_model(seed: int, precision: str) -> dict[str, NDArray]:
    rng = np.random.default_rng(seed)
    return {
        name: np.array(seed)
        if name == "steps"
        else np.asarray(rng.standard_normal(shape)).astype(precision)
        for name, shape in SHAPES.items()
    }


def moved(model: Mapping[str, NDArray], seed: int, size: float = 0.01) -> dict[str, NDArray]:
    rng = np.random.default_rng([seed, 1])
    return {
        name: np.asarray(array + 1 if name == "steps" else array + size * rng.standard_normal())
        if array.ndim == 0
        else (array + size * rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    } | {"scale": np.asarray(model["scale"] * 1.01).astype(model["scale"].dtype)}


def tensors(model: Mapping[str, NDArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in model.items()}


def record(names: Iterable[str], arrays: Iterable[NDArray]) -> ArrayRecord:
    named = zip(names, arrays, strict=True)
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in named})


def reply_of(
    start: Mapping[str, NDArray],
    end: Mapping[str, NDArray],
    upload: Upload,
    dtype: str = "float32",
    rescaled: bool = True,
) -> tuple[ArrayRecord, AdjustmentReport]:
    """What a client answers to the server's request, and its report."""
    names = list(start)
    members = torch.arange(start["conv"].size) % 3 == 0
    factors = {names.index("conv"): 1.75} if rescaled else {}
    request = AdjustmentRequest(RATE, 1 if rescaled else None, factors, upload, dtype)
    received = ReceivedRequest(request, pack_consensus([members]) if rescaled else None)
    sent, report = adjust_reply(list(start.values()), list(end.values()), received, "cpu")
    assert report is not None
    return record(names, sent), AdjustmentReport.decode(report, len(names))


def read(
    arrays: ArrayRecord,
    report: AdjustmentReport,
    start: Mapping[str, NDArray],
    dtype: str = "float32",
    rate: float = RATE,
) -> PackedTensors:
    names = list(start)
    packed = {names[place] for place in report.packed}
    return PackedTensors(arrays, packed, tensors(start), dtype, rate)


@PROPERTY
@given(st.integers(0, 2**32), st.sampled_from(["float32", "float64"]), st.booleans())
def test_packed_float32_is_the_dense_upload_to_the_last_bit(
    seed: int, precision: str, rescaled: bool
) -> None:
    start = a_model(seed, precision)
    end = moved(start, seed)
    dense, _ = reply_of(start, end, "dense", rescaled=rescaled)
    packed, report = reply_of(start, end, "packed", rescaled=rescaled)
    assert {list(start)[place] for place in report.packed} == {"conv", "twin", "bias"}
    model = read(packed, report, start)
    assert list(model) == list(start)
    for name, array in start.items():
        expected = decode_array(dense[name])
        assert model[name].dtype == expected.dtype
        assert model[name].shape == array.shape
        # A double's update travels in single precision: half a unit in the last place of a float.
        exact = precision == "float32" or name not in {"conv", "twin", "bias"}
        update = np.abs(array - expected.numpy())
        allowed = 0.0 if exact else 2.0**-24 * update + 2.0**-52
        assert (np.abs(model[name].numpy() - expected.numpy()) <= allowed).all()


@PROPERTY
@given(st.integers(0, 2**32), st.sampled_from(["float16", "bfloat16"]))
def test_halved_values_are_near_the_dense_upload_and_masked_entries_do_not_move(
    seed: int, dtype: str
) -> None:
    start = a_model(seed, "float32")
    end = moved(start, seed)
    dense, _ = reply_of(start, end, "dense")
    packed, report = reply_of(start, end, "packed", dtype)
    model = read(packed, report, start, dtype)
    for name in ("conv", "twin", "bias"):
        update = start[name] - decode_array(dense[name]).numpy()
        received = start[name] - model[name].numpy()
        largest = float(np.abs(update).max())
        assert np.abs(received - update).max() <= largest * 2.0**-8 + 2.0**-22
        masked = update == 0
        assert masked.sum() >= entry_count(update.size, RATE)
        np.testing.assert_array_equal(model[name].numpy()[masked], start[name][masked])


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_an_update_of_zeros_is_packed_and_read_as_the_model_that_was_sent(dtype: str) -> None:
    start = a_model(1, "float32")
    end = moved(start, 1)
    end["conv"] = start["conv"].copy()
    packed, report = reply_of(start, end, "packed", dtype)
    model = read(packed, report, start, dtype)
    np.testing.assert_array_equal(model["conv"].numpy(), start["conv"])


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_a_client_that_drops_everything_moves_only_what_is_never_adjusted(dtype: str) -> None:
    start = a_model(1, "float32")
    request = ReceivedRequest(AdjustmentRequest(1.0, None, {}, "packed", dtype), None)
    sent, report = adjust_reply(
        list(start.values()), list(moved(start, 1).values()), request, "cpu"
    )
    assert report is not None
    decoded = AdjustmentReport.decode(report, len(start))
    model = read(record(start, sent), decoded, start, dtype, rate=1.0)
    for name in ("conv", "twin", "bias"):
        np.testing.assert_array_equal(model[name].numpy(), start[name])
    assert model["steps"] == start["steps"] + 1


@pytest.mark.parametrize("upload", ["dense", "packed"])
@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
def test_a_single_number_is_sent_as_trained(upload: Upload, precision: str) -> None:
    start = a_model(2, precision)
    end = moved(start, 2)
    arrays, report = reply_of(start, end, upload)
    assert arrays["scale"].shape == ()
    assert arrays["scale"].dtype == precision
    assert read(arrays, report, start)["scale"] == end["scale"]
    assert report.discarded[list(start).index("scale")] == 0


def test_half_precision_models_are_packed_when_that_saves_bytes() -> None:
    start = a_model(3, "float16")
    end = moved(start, 3, size=0.1)
    dense, _ = reply_of(start, end, "dense")
    packed, report = reply_of(start, end, "packed", "float16")
    assert report.packed
    model = read(packed, report, start, "float16")
    for name in ("conv", "twin", "bias"):
        assert model[name].dtype == torch.float16
        difference = model[name].float() - decode_array(dense[name]).float()
        assert float(difference.abs().max()) <= 2.0**-8
    _, report = reply_of(start, end, "packed", "float32")
    assert not report.packed


START = a_model(5, "float32")
PACKED, REPORT = reply_of(START, moved(START, 5), "packed")


def tampered(name: str, array: Array, start: Mapping[str, NDArray] = START) -> PackedTensors:
    packed = {"conv", "twin", "bias"}
    return PackedTensors(
        ArrayRecord({**PACKED, name: array}), packed, tensors(start), "float32", RATE
    )


@pytest.mark.parametrize(
    "array",
    [
        Array(START["conv"]),
        Array(START["conv"].reshape(-1)),
        Array(np.zeros(0, dtype=np.uint8)),
        Array(np.zeros(500, dtype=np.uint8)),
        Array(np.asarray(7, dtype=np.uint8)),
        Array(PACKED["conv"].numpy()[:-1]),
        Array(PACKED["conv"].numpy()[1:]),
        Array(PACKED["conv"].numpy().astype(np.int8)),
        Array(PACKED["conv"].numpy().reshape(1, -1)),
        Array("uint8", (3,), "numpy.ndarray", b"junk"),
        PACKED["bias"],
        PACKED["twin"],
    ],
    ids=[
        "dense",
        "dense and flat",
        "no bytes",
        "zeros",
        "a number",
        "truncated",
        "begins too late",
        "signed bytes",
        "a row in a table",
        "no npy",
        "another tensor of another shape",
        "another tensor of the same shape",
    ],
)
def test_a_wrong_payload_is_a_value_error_that_names_the_tensor(array: Array) -> None:
    with pytest.raises(ValueError, match=r"tensor 'conv': ."):
        tampered("conv", array)["conv"]


def test_whole_numbers_are_never_packed() -> None:
    model = PackedTensors(PACKED, {"steps"}, tensors(START), "float32", RATE)
    with pytest.raises(ValueError, match=r"tensor 'steps' is packed but torch\.int64"):
        model["steps"]


def test_a_mask_that_keeps_more_than_the_rate_leaves_is_refused() -> None:
    kept = START["conv"].size - entry_count(START["conv"].size, RATE)
    update = torch.zeros(START["conv"].size)
    update[:kept] = 1e-3
    names = ["conv"]
    start = {"conv": torch.from_numpy(START["conv"])}
    arrays = record(names, [pack_update(update, "float32")])
    np.testing.assert_array_equal(
        PackedTensors(arrays, names, start, "float32", RATE)["conv"].numpy(),
        START["conv"] - update.numpy().reshape(3, 4, 5),
    )
    update[kept] = 1e-3
    arrays = record(names, [pack_update(update, "float32")])
    with pytest.raises(ValueError, match=rf"tensor 'conv'.*keeps {kept + 1} of 60.*leaves {kept}"):
        PackedTensors(arrays, names, start, "float32", RATE)["conv"]


@pytest.mark.parametrize("precision", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_packed_values_that_are_not_finite_never_become_a_finite_model(
    precision: torch.dtype, dtype: str, value: float
) -> None:
    # Half precision saturates at 65504: infinity would arrive as an entry like any other.
    start = {"conv": torch.zeros(60, dtype=precision)}
    update = torch.zeros(60)
    update[7] = value
    arrays = record(["conv"], [pack_update(update, dtype)])
    model = PackedTensors(arrays, ["conv"], start, dtype, RATE)
    try:
        tensor = model["conv"]
    except ValueError:
        return
    assert not torch.isfinite(tensor).all()


def test_reading_changes_neither_the_model_nor_the_reply() -> None:
    start = tensors({name: array.copy() for name, array in START.items()})
    model = PackedTensors(PACKED, {"conv", "twin", "bias"}, start, "float32", RATE)
    first = {name: model[name].clone() for name in model}
    for name in model:
        if model[name].numel() and name in {"conv", "twin", "bias"}:
            model[name].zero_()
        assert torch.equal(model[name], first[name])
        np.testing.assert_array_equal(start[name].numpy(), START[name])
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
    tensor = decode_array(array)
    assert shares_memory(tensor, data)
    np.testing.assert_array_equal(tensor.numpy(), START[name])


def test_dense_arrays_of_a_packed_reply_are_read_without_a_copy() -> None:
    model = PackedTensors(PACKED, {"conv", "twin", "bias"}, tensors(START), "float32", RATE)
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


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 20),
)
def test_legacy_arrays_with_flipped_bytes_decode_or_are_a_value_error(
    flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(Array(START["conv"]).data)
    for position, value in flips:
        data[position] = value
    try:
        tensor = decode_array(array_of_npy(bytes(data[: len(data) - cut])))
    except ValueError:
        return
    assert tensor.numel() * tensor.element_size() <= len(data)
