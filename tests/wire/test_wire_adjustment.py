"""Request and report come through exactly; whatever else comes in their place is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

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

PROPERTY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ARRAYS = 4

rates = st.floats(0.0, 1.0)
rounds = st.none() | st.integers(1, 2**40)
magnitudes = st.floats(0.0, allow_nan=False, allow_infinity=False)
each_arrays = st.lists(magnitudes, min_size=ARRAYS, max_size=ARRAYS).map(tuple)
indices = st.lists(st.integers(0, ARRAYS - 1), unique=True).map(lambda found: tuple(sorted(found)))
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
    discarded=each_arrays,
    packed=indices,
    norms=st.just(()) | each_arrays,
    trainable=st.none() | indices,
)


decode_request = AdjustmentRequest.decode
decode_report = partial(AdjustmentReport.decode, arrays=ARRAYS)
REQUEST = AdjustmentRequest(0.3, 7, {0: 1.25, 2: 1.5}, "packed", "float16")
REPORT = AdjustmentReport(0.3, 7, (0.5, 0.25, 0.0, 1e-9), (0, 2), trainable=(0, 1))
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


def test_the_texts_are_those_that_other_versions_read() -> None:
    assert REQUEST.encode() == (
        b'{"version": 1, "rate": 0.3, "consensus-round": 7, "factors": {"0": 1.25, "2": 1.5}, '
        b'"upload": "packed", "upload-dtype": "float16", "keep-sign": true}'
    )
    assert REPORT.encode() == (
        b'{"version": 1, "rate": 0.3, "consensus-round": 7, "discarded": [0.5, 0.25, 0.0, 1e-09], '
        b'"packed": [0, 2], "norms": [], "trainable": [0, 1]}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_written(value: float) -> None:
    for message in (
        AdjustmentRequest(value),
        AdjustmentRequest(0.3, 1, {0: value}),
        AdjustmentReport(0.3, None, (value,)),
    ):
        with pytest.raises(ValueError, match="JSON"):
            message.encode()


NOT_BYTES: list[object] = [None, "text", 3, 0.5, True, [1], ["{}"], {"version": 1}, (b"{}",)]
NOT_BYTES.append(bytearray(b"{}"))
TEXTS = [b"", b" ", b"{", b"null", b"3", b"[]", b'"fedpw"', b"NaN", b"{'version': 1}", b"{}" * 2]
NO_TEXTS = [b"\x80\x04\x95", b"\xff\xfe", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"\x00" * 64]
DEEP = [b"1" * 5000, b"[" * 200_000, b'{"version":' * 200_000]


@BOTH
@pytest.mark.parametrize("data", NOT_BYTES + TEXTS + NO_TEXTS + DEEP, ids=lambda it: repr(it)[:12])
def test_junk_is_refused(decode: Decode, good: bytes, data: object) -> None:
    assert ("not bytes" in refused(decode, data)) == (data in NOT_BYTES)


@BOTH
def test_every_truncation_is_refused(decode: Decode, good: bytes) -> None:
    for size in range(len(good)):
        refused(decode, good[:size])


@BOTH
@PROPERTY
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


NAN, INF, VAST = float("nan"), float("inf"), 10**400

OF_BOTH: dict[str, list[Any]] = {
    "rate": [-1e-9, 1.0000001, -1, 2, VAST, -VAST, NAN, INF, None, True, "0.3", [0.3], {}, [[]]],
    "consensus_round": [True, False, 1.0, 2.5, "7", [7], {}, NAN],
}
OF_REQUESTS: dict[str, list[Any]] = {
    "keep_sign": [0, 1, None, "true", []],
    "upload": ["", "Dense", "sparse", None, 1, True, [], {}, ["dense"]],
    "upload_dtype": ["", "float64", "Float32", "int8", None, 16, True, [], ["float32"], {}],
    "factors": [None, 1.5, "1.5", [1.5], *({"0": value} for value in (None, True, "1", [1.5]))],
}
OF_REQUESTS["factors"] += [{"0": value} for value in (VAST, NAN, INF)]
OF_REQUESTS["factors"] += [
    {key: 1.5} for key in ("", "-1", "+1", "1.0", " 1", "x", "²", "9" * 5000)
]
OF_REPORTS: dict[str, list[Any]] = {
    "discarded": [None, 0.5, {"0": 0.5}, [], [0.5] * (ARRAYS - 1), [0.5] * (ARRAYS + 1)],
    "packed": [None, 1, "0", "01", {"0": 1}, True, [-1], [ARRAYS], [VAST], [0.0], [True], ["0"]],
    "trainable": [1, "0", {"0": 1}, True, [-1], [ARRAYS], [VAST], [0.0], [True], [[0]], [NAN]],
}
OF_REPORTS["discarded"] += [
    [0.5, 0.5, 0.5, odd] for odd in (-1e-300, -VAST, VAST, None, True, "0.5", [0.5], NAN, INF)
]
OF_REPORTS["norms"] = OF_REPORTS["discarded"].copy()
OF_REPORTS["norms"].remove([])


@pytest.mark.parametrize(
    ("decode", "good", "odd"),
    [
        (decode_request, REQUEST.encode(), OF_BOTH | OF_REQUESTS),
        (decode_report, REPORT.encode(), OF_BOTH | OF_REPORTS),
    ],
    ids=["request", "report"],
)
def test_an_entry_that_makes_no_sense_is_refused(
    decode: Decode, good: bytes, odd: dict[str, list[Any]]
) -> None:
    for key, values in odd.items():
        for value in values:
            refused(decode, changed(good, **{key: value}))


@BOTH
@pytest.mark.parametrize("rate", [0, 1, 0.0, 1.0, -0.0])
def test_rates_may_be_whole(decode: Decode, good: bytes, rate: float) -> None:
    read: Any = decode(changed(good, rate=rate))
    assert read.rate == rate
    assert type(read.rate) is float


@BOTH
def test_unknown_entries_are_left_to_later_versions(decode: Decode, good: bytes) -> None:
    assert decode(changed(good, remark="hello")) == decode(good)


def request_for(*indices: int) -> AdjustmentRequest:
    return AdjustmentRequest(0.3, 2, dict.fromkeys(indices, 1.5))


@PROPERTY
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=5), st.data()
)
@example([[True]], None)
@example([[False] * 8, [True] * 9], None)
def test_consensus_sets_come_through_exactly(
    sets: list[list[bool]], data: st.DataObject | None
) -> None:
    members = [torch.tensor(chosen) for chosen in sets]
    bits = pack_consensus(members)
    assert len(bits) == sum((len(chosen) + 7) // 8 for chosen in sets)
    # Arrays between them that are not rescaled take no bits; the order of the factors is no matter.
    indices = [2 * index for index in range(len(sets))]
    order = indices if data is None else data.draw(st.permutations(indices))
    sizes = [size for chosen in sets for size in (len(chosen), 1000)]
    read = consensus_members(request_for(*order), bits, sizes)
    assert list(read) == indices
    for index, chosen in zip(indices, members, strict=True):
        assert read[index].dtype == torch.bool
        assert torch.equal(read[index], chosen)


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


@pytest.mark.parametrize("index", [2, 3, 10**6, 10**30])
def test_a_factor_for_an_array_the_model_lacks_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"rescales array {index}, but the model has 2 arrays"):
        consensus_members(request_for(0, index), b"\xff" * 3, [8, 9])
