"""A packed update comes back as it was, or as near as its type allows; a broken one is refused."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from message_sizes import measure_sizes
from server_step import fedpw

from fedpw_flwr.wire.packing import (
    UPLOAD_DTYPES,
    PackedUpdate,
    pack_update,
    packed_size,
)

Floats = npt.NDArray[np.floating[Any]]
Payload = npt.NDArray[np.uint8]

HEADER = packed_size(0, 0, "float32")
TYPE_CODE, SCALE, CHECKSUM = slice(4, 5), slice(8, 12), slice(HEADER - 4, HEADER)
"""Parts of the header."""

PROPERTY = settings(max_examples=150, deadline=None)


def unpack_update(
    payload: Payload, entries: int, dtype: str, most_kept: int | None = None, index: int = 0
) -> torch.Tensor:
    return PackedUpdate(payload, entries, dtype, most_kept, index).unpack()


def unpacked(update: Floats, dtype: str) -> Floats:
    payload = pack_update(torch.from_numpy(update), dtype)
    return unpack_update(payload, update.size, dtype).numpy()


def updates(largest: float, width: Literal[32, 64] = 32) -> st.SearchStrategy[Floats]:
    """Flat updates of any size, many of their entries masked."""
    dtype = np.dtype(f"float{width}")
    bound = float(np.asarray(largest, dtype=dtype))
    values = st.floats(-bound, bound, width=width)
    return hnp.arrays(dtype, st.integers(0, 70), elements=st.one_of(st.just(0.0), values))


FLOAT32_MAX = float(np.finfo(np.float32).max)


@PROPERTY
@given(updates(FLOAT32_MAX))
@example(np.zeros(0, dtype=np.float32))
@example(np.zeros(1, dtype=np.float32))
@example(np.ones(7, dtype=np.float32))
@example(np.zeros(8, dtype=np.float32))
@example(np.arange(9, dtype=np.float32))
@example(np.array([1e-45, -1e-45, 1.2e-38, 0.0], dtype=np.float32))
@example(np.array([FLOAT32_MAX, -FLOAT32_MAX], dtype=np.float32))
def test_float32_comes_back_bit_for_bit(update: Floats) -> None:
    received = unpacked(update, "float32")
    assert received.dtype == np.float32
    # x + 0 is x for every x but -0, which is masked like any other zero.
    assert received.tobytes() == (update + np.float32(0)).tobytes()


@PROPERTY
@given(updates(1e38))
@example(np.array([1e38, 1e30, 1e-45], dtype=np.float32))
@example(np.array([2.0**-126, 1e-45], dtype=np.float32))
def test_float16_keeps_eleven_bits_of_every_entry_not_much_smaller_than_the_largest(
    update: Floats,
) -> None:
    received = unpacked(update, "float16").astype(np.float64)
    magnitude = np.abs(update.astype(np.float64))
    largest = magnitude.max(initial=0.0)
    difference = np.abs(received - update)
    large = (magnitude >= largest * 2.0**-13) & (magnitude >= 2.0**-100)
    assert (difference[large] <= magnitude[large] * 2.0**-11).all()
    if largest >= 2.0**-126:
        assert (difference <= largest * 2.0**-11).all()
    assert not received[update == 0].any()


@PROPERTY
@given(updates(1e38))
@example(np.array([1e38, -1e38, 1e-30], dtype=np.float32))
def test_bfloat16_is_off_by_at_most_2_to_the_minus_8_of_every_entry(update: Floats) -> None:
    magnitude = np.abs(update.astype(np.float64))
    difference = np.abs(unpacked(update, "bfloat16").astype(np.float64) - update)
    normal = magnitude >= 2.0**-126
    assert (difference[normal] <= magnitude[normal] * 2.0**-8).all()
    assert (difference[~normal] <= 2.0**-133).all()


@PROPERTY
@given(updates(1e38, 64))
@example(np.array([1e-60, -5e-324, 0.0, 1e-46]))
def test_float64_updates_arrive_in_single_precision(update: Floats) -> None:
    received = unpacked(update, "float32")
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, update.astype(np.float32))


@PROPERTY
@given(updates(FLOAT32_MAX), st.sampled_from(list(UPLOAD_DTYPES)))
def test_a_payload_takes_a_bit_an_entry_and_a_value_for_each_that_is_kept(
    update: Floats, dtype: str
) -> None:
    before = update.copy()
    payload = pack_update(torch.from_numpy(update), dtype)
    assert payload.dtype == np.uint8
    width = 4 if dtype == "float32" else 2
    kept = int(np.count_nonzero(update))
    size = HEADER + (update.size + 7) // 8 + width * kept
    assert payload.shape == (size,)
    assert packed_size(update.size, kept, dtype) == size
    np.testing.assert_array_equal(update, before)


SPARSE = np.array([0.0, 1.5, 0.0, -2.25, 0.5, 0.0, 0.0, 3.0, -0.75, 0.0, 0.0, 1.0, 0.0])
SPARSE = SPARSE.astype(np.float32)
"""13 entries, 6 kept: the mask takes two bytes, the second with three bits to spare."""

MASK = slice(HEADER, HEADER + 2)


def good_payload(dtype: str) -> Payload:
    return pack_update(torch.from_numpy(SPARSE), dtype).copy()


def sealed(payload: Payload) -> Payload:
    """The same payload with the checksum of what it holds: a lie, and no accident."""
    lie = payload.copy()
    rest = np.delete(lie, np.arange(CHECKSUM.start, CHECKSUM.stop))
    lie[CHECKSUM] = np.frombuffer(struct.pack("<I", zlib.crc32(rest.data)), dtype=np.uint8)
    return lie


def refused(payload: npt.NDArray[Any], entries: int = SPARSE.size, dtype: str = "float32") -> str:
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+") as raised:
        unpack_update(payload, entries, dtype)
    return str(raised.value)


def accepted(payload: Payload, dtype: str) -> Floats | None:
    """What the payload is read as; None where it is refused as it should be."""
    try:
        update = unpack_update(payload, SPARSE.size, dtype)
    except ValueError:
        return None
    assert update.dtype == torch.float32
    assert update.shape == (SPARSE.size,)
    return update.numpy()


def test_the_checksum_is_that_of_everything_else() -> None:
    good = good_payload("float32")
    np.testing.assert_array_equal(sealed(good), good)


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_a_changed_byte_is_noticed_and_a_lie_of_one_about_values_only(dtype: str) -> None:
    # What a client says of its own values cannot be known to be wrong; nothing else may pass.
    good = good_payload(dtype)
    expected = unpacked(SPARSE, dtype)
    for position, change in itertools.product(range(good.size), range(1, 256)):
        payload = good.copy()
        payload[position] ^= change
        assert accepted(payload, dtype) is None, f"byte {position} ^ {change}"
        update = accepted(sealed(payload), dtype)
        if update is None:
            continue
        assert np.isfinite(update).all()
        if MASK.start <= position < MASK.stop:
            # As many entries as before, elsewhere.
            kept = np.unpackbits(payload[MASK], count=SPARSE.size).astype(bool)
            np.testing.assert_array_equal(update[kept], expected[SPARSE != 0])
            assert not update[~kept].any()
        elif position < HEADER and not (
            dtype == "float16" and position in range(*SCALE.indices(99))
        ):
            np.testing.assert_array_equal(update, expected, f"byte {position} ^ {change}")
        else:
            assert not update[SPARSE == 0].any()


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_every_truncation_and_extension_is_noticed(dtype: str) -> None:
    good = good_payload(dtype)
    others = [good[:size].copy() for size in range(good.size)]
    others += [np.append(good, np.zeros(surplus, np.uint8)) for surplus in (1, 2, 3, 4, 8, 1000)]
    for payload in others:
        refused(payload, dtype=dtype)
        if payload.size >= HEADER:
            refused(sealed(payload), dtype=dtype)


@PROPERTY
@given(st.binary(max_size=60), st.integers(0, 100), st.sampled_from(list(UPLOAD_DTYPES)))
def test_noise_is_a_value_error(noise: bytes, entries: int, dtype: str) -> None:
    refused(np.frombuffer(noise, dtype=np.uint8), entries, dtype)


@pytest.mark.parametrize("entry", [13, 14, 15])
def test_bits_behind_the_last_entry_are_noticed(entry: int) -> None:
    payload = np.append(good_payload("float32"), np.ones(4, dtype=np.uint8))
    payload[HEADER + 1] |= 128 >> entry % 8
    assert "bits behind its 13 entries" in refused(sealed(payload))


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_values_of_another_type_than_asked_for_are_refused(dtype: str) -> None:
    own = list(UPLOAD_DTYPES).index(dtype)
    for code in {*range(256)} - {own}:
        payload = good_payload(dtype)
        payload[TYPE_CODE] = code
        assert f"of type {code}, not {dtype} as asked" in refused(sealed(payload), dtype=dtype)


def scaled(dtype: str, scale: float) -> Payload:
    payload = good_payload(dtype)
    payload[SCALE] = np.frombuffer(struct.pack("<f", scale), dtype=np.uint8)
    return sealed(payload)


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
@pytest.mark.parametrize(
    "scale", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, -1e-45, 1.5, 1.0000001, 3e38]
)
def test_scale_that_packing_never_chooses_is_refused(dtype: str, scale: float) -> None:
    refused(scaled(dtype, scale), dtype=dtype)
    if dtype != "float16":
        for exponent in (-126, -1, 1, 127):
            refused(scaled(dtype, 2.0**exponent), dtype=dtype)


@pytest.mark.parametrize("factor", [0.25, 0.5, 4.0])
def test_float16_values_that_do_not_fill_their_scale_are_refused(factor: float) -> None:
    payload = good_payload("float16")
    values = payload[MASK.stop :].copy().view(np.float16) * np.float16(factor)
    payload[MASK.stop :] = values.view(np.uint8)
    refused(sealed(payload), dtype="float16")


def test_float16_values_that_overflow_with_their_scale_are_refused() -> None:
    # 2 in float16 is a value like any other, 2^127 a scale like any other.
    payload = scaled("float16", 2.0**127)
    values = payload[MASK.stop :].copy().view(np.float16)
    values[0] = 2.0
    payload[MASK.stop :] = values.view(np.uint8)
    refused(sealed(payload), dtype="float16")


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
def test_payload_of_another_tensor_is_refused(dtype: str) -> None:
    payload = pack_update(torch.from_numpy(SPARSE), dtype, index=3)
    received = unpack_update(payload, SPARSE.size, dtype, index=3)
    np.testing.assert_array_equal(received.numpy(), unpacked(SPARSE, dtype))
    for index in (0, 2, 4, 3 + 2**8, 3 + 2**16):
        with pytest.raises(ValueError, match=f"array 3 with 13 entries, not of array {index} "):
            unpack_update(payload, SPARSE.size, dtype, index=index)
    for entries in {*range(40)} - {SPARSE.size}:
        refused(good_payload(dtype), entries, dtype)


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(dtype: str, value: float) -> None:
    update = torch.from_numpy(SPARSE.copy())
    update[3] = value
    with pytest.raises(ValueError, match="not finite"):
        unpack_update(pack_update(update, dtype), SPARSE.size, dtype)


def test_a_read_only_payload_is_read_and_not_kept_alive() -> None:
    payload = np.frombuffer(good_payload("float32").tobytes(), dtype=np.uint8)
    update = unpack_update(payload, SPARSE.size, "float32")
    np.testing.assert_array_equal(update.numpy(), SPARSE)
    update.mul_(2.0)
    assert not np.shares_memory(update.numpy(), payload)


@pytest.mark.parametrize("dtype", UPLOAD_DTYPES)
@pytest.mark.parametrize("entries", [1025, 65537, 70001])
@pytest.mark.parametrize("kept", [0, -1])
def test_blocks_without_a_kept_value_are_unpacked(dtype: str, entries: int, kept: int) -> None:
    """Behind a mask of odd length the values are not aligned, and a block may have none."""
    update = torch.zeros(entries)
    update[kept] = 0.5
    packed = PackedUpdate(pack_update(update, dtype), entries, dtype)
    start = np.ones(entries, dtype=np.float32)
    for step in (1024, 65536):
        for begin in range(0, entries, step):
            end = min(begin + step, entries)
            out = np.empty(end - begin, dtype=np.float32)
            packed.subtract_from(start[begin:end], begin, out)
            np.testing.assert_array_equal(out, 1 - update[begin:end].numpy())


def test_packed_uploads_of_a_resnet_are_as_small_as_promised() -> None:
    plain = measure_sizes(FedAvg(fraction_evaluate=0.0), 32)
    float32 = measure_sizes(fedpw("packed float32", avg_drop_rate=0.3), 32)
    float16 = measure_sizes(fedpw("packed float16", avg_drop_rate=0.3), 32)
    assert float32.up <= 0.75 * plain.up
    assert float16.up <= 0.40 * plain.up
    # What consensus costs on the way down: a bit for each entry of 32 bits.
    for sizes in (float32, float16):
        assert plain.down < sizes.down <= 1.035 * plain.down
