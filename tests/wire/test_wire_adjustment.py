"""Request and report come through exactly; whatever else comes in their place is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedpw_flwr.wire.adjustment import (
    AdjustmentReport,
    AdjustmentRequest,
    Upload,
    consensus_members,
    pack_consensus,
)
from fedpw_flwr.wire.packing import UPLOAD_DTYPES

PROPERTY = settings(max_examples=150, deadline=None)
ARRAYS = 4

rates = st.floats(0.0, 1.0)
rounds = st.none() | st.integers(1, 2**40)
magnitudes = st.floats(0.0, allow_nan=False, allow_infinity=False)
places = st.lists(st.integers(0, ARRAYS - 1), unique=True).map(lambda found: tuple(sorted(found)))
uploads: st.SearchStrategy[Upload] = st.sampled_from(["dense", "packed"])

requests = st.builds(
    AdjustmentRequest,
    rate=rates,
    consensus_round=rounds,
    factors=st.dictionaries(st.integers(0, 10**6), st.floats(1.0, 2.0)),
    upload=uploads,
    keep_sign=st.booleans(),
    upload_dtype=st.sampled_from(list(UPLOAD_DTYPES)),
)
reports = st.builds(
    AdjustmentReport,
    rate=rates,
    consensus_round=rounds,
    discarded=st.lists(magnitudes, min_size=ARRAYS, max_size=ARRAYS).map(tuple),
    packed=places,
    trainable=st.none() | places,
)


def decode_request(data: object) -> AdjustmentRequest:
    return AdjustmentRequest.decode(data)


def decode_report(data: object) -> AdjustmentReport:
    return AdjustmentReport.decode(data, ARRAYS)


REQUEST = AdjustmentRequest(0.3, 7, {0: 1.25, 2: 1.5}, "packed", "float16")
REPORT = AdjustmentReport(0.3, 7, (0.5, 0.25, 0.0, 1e-9), (0, 2), (0, 1))
BOTH = pytest.mark.parametrize(
    ("decode", "good"),
    [(decode_request, REQUEST.encode()), (decode_report, REPORT.encode())],
    ids=["request", "report"],
)
Decode = Callable[[object], object]


def refused(decode: Decode, data: object) -> str:
    """The sentence with which `data` is refused: it says whose text is wrong."""
    with pytest.raises(ValueError, match=r"FedPW re(quest|port) \w+ ") as raised:
        decode(data)
    assert type(raised.value) is ValueError
    return str(raised.value)


def changed(good: bytes, **entries: Any) -> bytes:
    """The same text with other entries; underscores stand for dashes."""
    renamed = {key.replace("_", "-"): value for key, value in entries.items()}
    return json.dumps({**json.loads(good), **renamed}).encode()


@PROPERTY
@given(requests)
@example(AdjustmentRequest(5e-324, 1, {0: 1.0000000000000002, 1: 1.9999999999999998}))
@example(AdjustmentRequest(0.1 + 0.2))
def test_a_request_comes_through_exactly(request: AdjustmentRequest) -> None:
    assert AdjustmentRequest.decode(request.encode()) == request


@PROPERTY
@given(reports)
@example(AdjustmentReport(1 / 3, None, (5e-324, 1.7976931348623157e308, 0.1, 2 / 3)))
def test_a_report_comes_through_exactly(report: AdjustmentReport) -> None:
    assert AdjustmentReport.decode(report.encode(), ARRAYS) == report


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        AdjustmentRequest(value).encode()
    with pytest.raises(ValueError, match="JSON"):
        AdjustmentRequest(0.3, 1, {0: value}).encode()
    with pytest.raises(ValueError, match="JSON"):
        AdjustmentReport(0.3, None, (value,)).encode()


@BOTH
@pytest.mark.parametrize(
    "data", [None, "text", 3, 0.5, True, [1], ["{}"], {"version": 1}, bytearray(b"{}"), (b"{}",)]
)
def test_what_is_not_bytes_is_refused(decode: Decode, good: bytes, data: object) -> None:
    assert "not bytes" in refused(decode, data)


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"null",
        b"3",
        b"[]",
        b'"fedpw"',
        b"NaN",
        b"{'version': 1}",
        b"\x80\x04\x95",
        b"\xff\xfe",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"\x00" * 64,
        b"{}" * 2,
        b"1" * 5000,
        b"[" * 200_000,
        b'{"version":' * 200_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_junk_is_refused(decode: Decode, good: bytes, data: bytes) -> None:
    refused(decode, data)


@BOTH
def test_every_truncation_is_refused(decode: Decode, good: bytes) -> None:
    for size in range(len(good)):
        refused(decode, good[:size])


@BOTH
@settings(PROPERTY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_are_read_or_a_value_error(
    decode: Decode, good: bytes, data: st.DataObject
) -> None:
    text = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(text))
    except ValueError:
        return
    assert type(read) is (AdjustmentRequest if decode is decode_request else AdjustmentReport)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, "1", "NaN", "dense", "float32", 0.5]),
    lambda inner: (
        st.lists(inner, max_size=ARRAYS) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@BOTH
@settings(PROPERTY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_entry_of_any_type_is_read_or_a_value_error(
    decode: Decode, good: bytes, data: st.DataObject
) -> None:
    entries = json.loads(good)
    entries[data.draw(st.sampled_from(sorted(entries)))] = data.draw(anything)
    text = json.dumps(entries).encode()
    try:
        decode(text)
    except ValueError:
        refused(decode, text)


@BOTH
def test_every_entry_is_needed(decode: Decode, good: bytes) -> None:
    entries = json.loads(good)
    for key in entries.keys() - {"keep-sign"}:
        rest = {name: value for name, value in entries.items() if name != key}
        assert key in refused(decode, json.dumps(rest).encode())


def test_a_request_of_an_earlier_version_keeps_signs() -> None:
    entries = json.loads(REQUEST.encode())
    del entries["keep-sign"]
    assert decode_request(json.dumps(entries).encode()) == REQUEST


@pytest.mark.parametrize("value", [0, 1, None, "true", []])
def test_a_switch_that_is_no_switch_is_refused(value: object) -> None:
    assert "keep-sign" in refused(decode_request, changed(REQUEST.encode(), keep_sign=value))


@BOTH
def test_an_entry_given_twice_is_refused(decode: Decode, good: bytes) -> None:
    # JSON leaves open which of the two counts; a sender that says two things is not believed.
    for key, value in json.loads(good).items():
        refused(decode, good[:-1] + f", {json.dumps(key)}: {json.dumps(value)}}}".encode())


@BOTH
@pytest.mark.parametrize("version", [0, 2, -1, 1.5, "1", None, [1], {"1": 1}, 10**400])
def test_another_version_is_refused(decode: Decode, good: bytes, version: object) -> None:
    sentence = refused(decode, changed(good, version=version))
    assert "version" in sentence
    assert "install the same version on server and clients" in sentence


@BOTH
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_numbers_that_are_not_finite_are_refused(decode: Decode, good: bytes, literal: str) -> None:
    text = good.replace(b'"rate": 0.3', b'"rate": ' + literal.encode())
    assert text != good
    assert "rate" in refused(decode, text)


@BOTH
@pytest.mark.parametrize(
    "rate", [-1e-9, 1.0000001, -1, 2, 10**400, -(10**400), None, True, "0.3", [0.3], {}, [[]]]
)
def test_a_rate_is_a_number_from_0_to_1(decode: Decode, good: bytes, rate: object) -> None:
    assert "rate" in refused(decode, changed(good, rate=rate))


@BOTH
@pytest.mark.parametrize("rate", [0, 1, 0.0, 1.0, -0.0])
def test_rates_may_be_whole(decode: Decode, good: bytes, rate: float) -> None:
    read: Any = decode(changed(good, rate=rate))
    assert read.rate == rate
    assert type(read.rate) is float


@BOTH
@pytest.mark.parametrize("number", [True, False, 1.0, 2.5, "7", [7], {}, float("nan")])
def test_a_consensus_round_is_a_whole_number_or_none(
    decode: Decode, good: bytes, number: object
) -> None:
    assert "consensus round" in refused(decode, changed(good, consensus_round=number))


@BOTH
def test_unknown_entries_are_left_to_later_versions(decode: Decode, good: bytes) -> None:
    assert decode(changed(good, remark="hello")) == decode(good)


@pytest.mark.parametrize("upload", ["", "Dense", "sparse", None, 1, True, [], {}, ["dense"]])
def test_an_upload_is_dense_or_packed(upload: object) -> None:
    refused(decode_request, changed(REQUEST.encode(), upload=upload))


@pytest.mark.parametrize(
    "dtype", ["", "float64", "Float32", "int8", None, 16, True, [], ["float32"], {}, {"float32": 1}]
)
def test_an_upload_type_is_one_of_three(dtype: object) -> None:
    refused(decode_request, changed(REQUEST.encode(), upload_dtype=dtype))


@pytest.mark.parametrize(
    "factors",
    [
        None,
        1.5,
        "1.5",
        [1.5],
        {"": 1.5},
        {"-1": 1.5},
        {"+1": 1.5},
        {"1.0": 1.5},
        {" 1": 1.5},
        {"x": 1.5},
        {"²": 1.5},
        {"9" * 5000: 1.5},
        {"0": None},
        {"0": True},
        {"0": "1.5"},
        {"0": [1.5]},
        {"0": 10**400},
        {"0": float("nan")},
        {"0": float("inf")},
    ],
    ids=lambda factors: repr(factors)[:20],
)
def test_factors_are_numbers_by_place(factors: object) -> None:
    refused(decode_request, changed(REQUEST.encode(), factors=factors))


@pytest.mark.parametrize(
    "discarded",
    [
        None,
        0.5,
        {"0": 0.5},
        [],
        [0.5] * (ARRAYS - 1),
        [0.5] * (ARRAYS + 1),
        [0.5, 0.5, 0.5, -1e-300],
        [0.5, 0.5, 0.5, -(10**400)],
        [0.5, 0.5, 0.5, 10**400],
        [0.5, 0.5, 0.5, None],
        [0.5, 0.5, 0.5, True],
        [0.5, 0.5, 0.5, "0.5"],
        [0.5, 0.5, 0.5, [0.5]],
        [0.5, 0.5, 0.5, float("nan")],
        [0.5, 0.5, 0.5, float("inf")],
    ],
    ids=lambda discarded: repr(discarded)[:30],
)
def test_discarded_magnitudes_are_one_for_each_array_and_not_negative(discarded: object) -> None:
    refused(decode_report, changed(REPORT.encode(), discarded=discarded))


@pytest.mark.parametrize("entry", ["packed", "trainable"])
@pytest.mark.parametrize(
    "named",
    [
        1,
        "0",
        "01",
        {"0": 1},
        True,
        [-1],
        [ARRAYS],
        [10**400],
        [0.0],
        [True],
        ["0"],
        [None],
        [[0]],
        [float("nan")],
    ],
    ids=lambda named: repr(named)[:12],
)
def test_a_report_names_arrays_of_the_model_only(entry: str, named: object) -> None:
    assert "arrays" in refused(decode_report, changed(REPORT.encode(), **{entry: named}))


def test_only_trainable_places_may_be_untold() -> None:
    assert decode_report(changed(REPORT.encode(), trainable=None)).trainable is None
    refused(decode_report, changed(REPORT.encode(), packed=None))


@pytest.mark.parametrize("arrays", [0, 1, ARRAYS - 1, ARRAYS + 1, 1000])
def test_a_report_on_another_model_is_refused(arrays: int) -> None:
    with pytest.raises(ValueError, match=f"each of {arrays} arrays"):
        AdjustmentReport.decode(REPORT.encode(), arrays)


def test_a_request_is_no_report_and_a_report_no_request() -> None:
    refused(decode_report, REQUEST.encode())
    refused(decode_request, REPORT.encode())


def test_a_report_on_a_model_of_thousands_of_arrays_comes_through() -> None:
    arrays = 2_000
    report = AdjustmentReport(0.3, None, tuple(float(place) for place in range(arrays)))
    assert AdjustmentReport.decode(report.encode(), arrays) == report


def request_for(*places: int) -> AdjustmentRequest:
    return AdjustmentRequest(0.3, 2, dict.fromkeys(places, 1.5))


@PROPERTY
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=5))
@example([[True]])
@example([[False] * 8, [True] * 9])
def test_consensus_sets_come_through_exactly(sets: list[list[bool]]) -> None:
    members = [torch.tensor(chosen) for chosen in sets]
    bits = pack_consensus(members)
    assert len(bits) == sum((len(chosen) + 7) // 8 for chosen in sets)
    # Arrays between them that are not rescaled take no bits.
    places = [2 * place for place in range(len(sets))]
    sizes = [size for chosen in sets for size in (len(chosen), 1000)]
    read = consensus_members(request_for(*places), bits, sizes)
    assert list(read) == places
    for place, chosen in zip(places, members, strict=True):
        assert read[place].dtype == torch.bool
        assert torch.equal(read[place], chosen)


@PROPERTY
@given(st.permutations([0, 1, 3]))
def test_consensus_sets_are_read_by_place_whatever_the_order_of_the_factors(
    order: list[int],
) -> None:
    members = {0: torch.tensor([True] * 3), 1: torch.tensor([False] * 9), 3: torch.tensor([True])}
    bits = pack_consensus(list(members.values()))
    read = consensus_members(request_for(*order), bits, [3, 9, 5, 1])
    assert all(torch.equal(read[place], chosen) for place, chosen in members.items())


@pytest.mark.parametrize("bits", [b"", None, "text", 3, b"\xff" * 100, [b"\xff"]])
def test_where_nothing_is_rescaled_no_bits_are_needed(bits: object) -> None:
    assert consensus_members(request_for(), bits, [3, 9]) == {}


@pytest.mark.parametrize(
    "bits",
    [None, b"", b"\xff", b"\xff" * 2, b"\xff" * 4, "\xff" * 3, 3, [255] * 3, bytearray(3), [b"\0"]],
    ids=repr,
)
def test_consensus_sets_of_another_length_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match=r"the server's consensus sets take 3 bytes, \d came"):
        consensus_members(request_for(0, 1), bits, [8, 9])


def test_consensus_sets_of_a_model_of_other_sizes_are_refused() -> None:
    bits = pack_consensus([torch.ones(8, dtype=torch.bool), torch.ones(9, dtype=torch.bool)])
    with pytest.raises(ValueError, match="take 4 bytes, 3 came"):
        consensus_members(request_for(0, 1), bits, [9, 9])


@pytest.mark.parametrize("place", [2, 3, 10**6, 10**30])
def test_a_factor_for_an_array_the_model_lacks_is_refused(place: int) -> None:
    with pytest.raises(ValueError, match=f"rescales array {place}, but the model has 2 arrays"):
        consensus_members(request_for(0, place), b"\xff" * 3, [8, 9])


def test_reading_consensus_sets_leaves_the_bits_alone() -> None:
    bits = bytes([0b10110000])
    members = consensus_members(request_for(0), bits, [5])[0]
    np.testing.assert_array_equal(members.numpy(), [True, False, True, True, False])
    members.logical_not_()
    assert bits == bytes([0b10110000])
