"""From a trained model to what the client sends: masking, rescaling, packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from client_federation import (
    Arrays,
    reference_count,
    reference_sent,
    reference_update,
    request_entries,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.client.masking import ReceivedRequest, adjust_reply, take_request
from fedpw_flwr.wire.adjustment import (
    CONSENSUS_KEY,
    REQUEST_KEY,
    AdjustmentReport,
    AdjustmentRequest,
)
from fedpw_flwr.wire.packing import UPLOAD_DTYPES, packed_size, unpack_update

RATES = (0.0, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.9, 1.0)

COUNTER = np.array([3]), np.array([4])
"""A counter before and after training: an update that is never masked to nothing."""

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def received(*arguments: Any, **named: Any) -> ReceivedRequest:
    _, request = take_request(request_entries(*arguments, **named))
    assert request is not None
    return request


def adjusted(
    start: Arrays, after: Arrays, request: ReceivedRequest, device: str = "cpu", **named: Any
) -> tuple[Arrays, AdjustmentReport]:
    sent, report = adjust_reply(start, after, request, device, **named)
    assert report is not None
    return sent, AdjustmentReport.decode(report, len(start))


def assert_same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    """Two arrays agree in shape, dtype and every bit."""
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.dtype) == (second.shape, second.dtype)
    assert first.tobytes() == second.tobytes()


def noise(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A tensor before and after training; in half of them many entries move equally far."""
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    shape = draw(st.sampled_from([(1,), (10,), (100,), (4, 7), (2, 3, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        start = rng.standard_normal(shape).astype(dtype)
        return start, start + rng.standard_normal(shape).astype(dtype)
    steps = rng.choice([-0.25, -0.125, 0.125, 0.25], size=shape)
    return np.zeros(shape, dtype), steps.astype(dtype)


@pytest.mark.parametrize("device", DEVICES)
@given(
    training=trainings(),
    rate=st.one_of(st.sampled_from(RATES), st.floats(0.0, 1.0)),
    factor=st.floats(1.0, 2.0, exclude_min=True, exclude_max=True),
    rescaled=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_an_update_is_masked_and_rescaled_as_the_formulas_say(
    device: str,
    training: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    rate: float,
    factor: float,
    rescaled: bool,
    seed: int,
) -> None:
    start, after = training
    members = np.random.default_rng(seed).random(start.size) < 0.3 if rescaled else None
    update, discarded = reference_update(start, after, rate, members, factor)
    consensus = {} if members is None else {0: (members, factor)}
    sent, report = adjusted(
        [start, COUNTER[0]], [after, COUNTER[1]], received(rate, consensus), device
    )
    as_trained = rate == 0 and members is None
    assert_same(sent[0], after if as_trained else reference_sent(start, update))
    assert report.discarded[0] == pytest.approx(discarded, rel=1e-5)
    assert report.rate == rate
    assert report.consensus_round == (2 if rescaled else None)


@given(training=trainings(), rate=st.one_of(st.sampled_from(RATES), st.floats(0.0, 1.0)))
@settings(deadline=None)
def test_as_many_entries_are_masked_as_the_rate_says(
    training: tuple[npt.NDArray[Any], npt.NDArray[Any]], rate: float
) -> None:
    start, after = training
    after = np.where(after == start, start + 1, after)
    sent, _ = adjusted([start, COUNTER[0]], [after, COUNTER[1]], received(rate))
    assert np.count_nonzero(sent[0] == start) == reference_count(start.size, rate)


def test_a_share_that_is_a_whole_number_loses_no_entry_to_rounding() -> None:
    # 100 · 0.29 is 28.999999999999996 in double precision.
    start, after = np.zeros(100, np.float32), np.arange(1, 101, dtype=np.float32)
    sent, report = adjusted([start], [after], received(0.29))
    assert np.count_nonzero(sent[0] == 0) == 29
    assert report.discarded == (15.0,)


@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_magnitudes_the_lower_index_is_masked(device: str) -> None:
    start = np.zeros((2, 4), np.float32)
    after = np.array([[1, -1, 3, 1], [-1, 1, 1, -4]], np.float32)
    sent, report = adjusted([start], [after], received(0.5), device)
    np.testing.assert_array_equal(sent[0], [[0, 0, 3, 0], [0, 1, 1, -4]])
    assert report.discarded == (1.0,)


def test_rescaling_follows_masking_and_stays_on_the_consensus_set() -> None:
    start = np.zeros(6, np.float32)
    after = np.array([1, 2, 3, -4, 5, 6], np.float32)
    members = np.array([True, False, False, True, False, True])
    sent, _ = adjusted([start], [after], received(0.34, {0: (members, 1.5)}))
    np.testing.assert_array_equal(sent[0], [0, 0, 3, -6, 5, 9])


def test_every_array_has_its_own_mask_and_its_own_factor() -> None:
    starts: Arrays = [
        np.zeros(9, np.float32),
        np.zeros((2, 2), np.float64),
        np.zeros(20, np.float32),
    ]
    afters = [noise(start.shape, place, start.dtype) for place, start in enumerate(starts)]
    members = np.arange(20) % 2 == 0
    sent, report = adjusted(starts, afters, received(0.3, {2: (members, 1.25)}))
    for place, (start, after) in enumerate(zip(starts, afters, strict=True)):
        own = (members, 1.25) if place == 2 else ()
        update, discarded = reference_update(start, after, 0.3, *own)
        assert_same(sent[place], reference_sent(start, update))
        assert report.discarded[place] == pytest.approx(discarded, rel=1e-6)


@needs_cuda
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_cuda_and_the_cpu_send_the_same_bits(upload: str) -> None:
    starts = [noise((300, 500), 1), np.zeros(10_000, np.float32), noise((7,), 2, np.float64)]
    afters = [starts[0] + noise((300, 500), 3), np.repeat(noise((100,), 4), 100), starts[2] + 1]
    members = np.random.default_rng(5).random(150_000) < 0.3
    request = received(0.37, {0: (members, 1.7)}, upload)
    expected, on_cpu = adjusted(starts, afters, request)
    sent, report = adjusted(starts, afters, request, "cuda")
    for first, second in zip(sent, expected, strict=True):
        assert_same(first, second)
    assert report.discarded == pytest.approx(on_cpu.discarded, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_arrays_that_are_not_floating_are_never_adjusted(dtype: Any) -> None:
    counters = np.arange(40).astype(dtype), (np.arange(40) % 2).astype(dtype)
    sent, report = adjusted(
        [counters[0], np.zeros(10, np.float32)], [counters[1], noise((10,))], received(0.5)
    )
    assert_same(sent[0], counters[1])
    assert report.discarded[0] == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_a_0d_array_is_never_adjusted(dtype: Any, rate: float, upload: str) -> None:
    start, after = np.array(1.0, dtype), np.array(3.0, dtype)
    sent, report = adjusted(
        [start, np.zeros(100, np.float32)],
        [after, noise((100,))],
        received(rate, upload=upload),
    )
    assert_same(sent[0], after)
    assert report.discarded[0] == 0.0
    assert 0 not in report.packed


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_an_array_without_entries_stays_as_it_is(upload: str) -> None:
    empty = np.zeros((0, 3), np.float32)
    sent, _ = adjusted(
        [empty, np.zeros(100, np.float32)],
        [empty, noise((100,))],
        received(0.5, upload=upload),
    )
    assert_same(sent[0], empty)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "every other column": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "reversed": lambda array: array[::-1].copy()[::-1],
    "transposed view": lambda array: array.T.copy().T,
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_the_layout_of_arrays_in_memory_does_not_matter(layout: str, upload: str) -> None:
    lay = LAYOUTS[layout]
    start, after = noise((12, 10), 1), noise((12, 10), 2)
    members = np.random.default_rng(3).random(120) < 0.3
    request = received(0.3, {0: (members, 1.5)}, upload)
    expected, _ = adjusted([start], [after], request)
    for before, trained in ((lay(start), after), (start, lay(after)), (lay(start), lay(after))):
        sent, _ = adjusted([before], [trained], request)
        assert_same(sent[0], expected[0])


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_nothing_that_was_given_is_modified(upload: str) -> None:
    starts, afters = [noise((100,), 1), COUNTER[0]], [noise((100,), 2), COUNTER[1]]
    before = [array.tobytes() for array in starts + afters]
    sent, _ = adjusted(
        starts, afters, received(0.5, {0: (np.ones(100, np.bool_), 1.5)}, upload=upload)
    )
    assert [array.tobytes() for array in starts + afters] == before
    assert not np.shares_memory(sent[0], starts[0])


def test_half_precision_saturates_instead_of_overflowing() -> None:
    start, after = np.array([60000, 0], np.float16), np.array([-60000, 1], np.float16)
    sent, _ = adjusted([start], [after], received(0.0, {0: (np.array([True, False]), 1.9)}))
    np.testing.assert_array_equal(sent[0], np.array([-65504, 1], np.float16))


def test_without_rate_and_consensus_the_model_is_sent_as_trained() -> None:
    start, after = noise((50,), 1), noise((50,), 2)
    sent, report = adjusted([start], [after], received(0.0))
    assert_same(sent[0], after)
    assert report == AdjustmentReport(rate=0.0, consensus_round=None, discarded=(0.0,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("upload", ["dense", "packed"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_a_diverged_model_goes_to_the_server_as_trained(
    value: float, upload: str, rate: float
) -> None:
    after = noise((100,), 2)
    after[17] = value
    sent, report = adjust_reply(
        [noise((100,), 1), COUNTER[0]],
        [after, COUNTER[1]],
        received(rate, upload=upload),
        "cpu",
    )
    assert report is None
    assert_same(sent[0], after)
    assert_same(sent[1], COUNTER[1])


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_an_update_masked_to_nothing_is_left_to_the_server(rate: float) -> None:
    start = noise((100,), 1)
    after = start + 1 if rate == 1 else start.copy()
    sent, report = adjust_reply([start], [after], received(rate), "cpu")
    assert report is None
    assert_same(sent[0], after)


def test_a_counter_that_moved_is_an_update() -> None:
    start = noise((10,), 1)
    sent, report = adjusted([start, COUNTER[0]], [start + 1, COUNTER[1]], received(1.0))
    assert_same(sent[0], start)
    assert_same(sent[1], COUNTER[1])
    assert report.discarded == pytest.approx((1.0, 0.0), rel=1e-6)


@given(
    training=trainings(), rate=st.floats(0.0, 1.0), factor=st.floats(1.0, 1.9), size=st.integers(0)
)
@settings(deadline=None, max_examples=50)
def test_packed_and_dense_uploads_hold_the_same_update(
    training: tuple[npt.NDArray[Any], npt.NDArray[Any]], rate: float, factor: float, size: int
) -> None:
    start, after = (np.tile(array.reshape(-1), 1 + size % 5) for array in training)
    start, after = start.astype(np.float32), after.astype(np.float32)
    members = np.arange(start.size) % 3 == 0
    consensus = {0: (members, factor)}
    packed, report = adjusted(
        [start, COUNTER[0]], [after, COUNTER[1]], received(rate, consensus, "packed")
    )
    update, _ = reference_update(start, after, rate, members, factor)
    if report.packed:
        assert report.packed == (0,)
        assert packed[0].nbytes < start.nbytes
        unpacked = unpack_update(packed[0], start.size, "float32").numpy()
        np.testing.assert_array_equal(unpacked, update)
    else:
        assert_same(packed[0], reference_sent(start, update))
    assert_same(packed[1], COUNTER[1])


@pytest.mark.parametrize("upload_dtype", UPLOAD_DTYPES)
def test_an_update_of_zeros_can_be_packed(upload_dtype: str) -> None:
    start = noise((1000,), 1)
    request = received(1.0, None, "packed", upload_dtype)
    sent, report = adjusted([start], [start + 1], request)
    assert report.packed == (0,)
    assert sent[0].nbytes < 150
    assert not unpack_update(sent[0], 1000, upload_dtype).any()


@pytest.mark.parametrize(("upload_dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_halved_values_keep_their_size_to_the_precision_of_their_type(
    upload_dtype: str, tolerance: float
) -> None:
    start = np.zeros(1000, np.float32)
    after = 1e-6 * (1 + np.abs(noise((1000,), 1)))
    request = received(0.4, None, "packed", upload_dtype)
    sent, report = adjusted([start], [after], request)
    update, _ = reference_update(start, after, 0.4)
    assert report.packed == (0,)
    assert sent[0].nbytes == packed_size(1000, 600, upload_dtype) < 1400
    np.testing.assert_allclose(
        unpack_update(sent[0], 1000, upload_dtype).numpy(), update, rtol=tolerance
    )


def test_an_array_that_is_no_smaller_packed_stays_dense() -> None:
    small, large = np.zeros(3, np.float32), np.zeros(1000, np.float32)
    sent, report = adjusted(
        [small, large, large],
        [small + 1, large + 1, noise((1000,))],
        received(0.0, upload="packed"),
    )
    assert report.packed == ()
    assert_same(sent[0], small + 1)
    assert_same(sent[1], large + 1)
    sent, report = adjusted(
        [small, large], [small + 1, noise((1000,))], received(0.3, upload="packed")
    )
    assert report.packed == (1,)
    assert sent[1].nbytes == packed_size(1000, 700, "float32") < 3000


OTHER_MODELS: dict[str, Arrays] = {
    "too few": [noise((4, 3))],
    "too many": [noise((4, 3)), noise((5,)), noise((5,))],
    "none": [],
    "transposed": [noise((3, 4)), noise((5,))],
    "another order": [noise((5,)), noise((4, 3))],
    "a column": [noise((4, 3)), noise((5, 1))],
    "integers first": [np.zeros((4, 3), np.int16), noise((5,))],
    "integers last": [noise((4, 3)), np.arange(5)],
    "text": [np.full((4, 3), "w"), noise((5,))],
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_another_model_than_was_sent_goes_to_the_server_as_trained(kind: str, upload: str) -> None:
    after = OTHER_MODELS[kind]
    sent, report = adjust_reply(
        [noise((4, 3)), noise((5,))], after, received(0.3, upload=upload), "cpu", (7,)
    )
    assert report is None
    assert len(sent) == len(after)
    for first, second in zip(sent, after, strict=True):
        assert_same(first, second)


def test_places_of_trainable_arrays_travel_in_the_report() -> None:
    starts, afters = [noise((4,), 1), noise((4,), 2)], [noise((4,), 3), noise((4,), 4)]
    _, report = adjusted(starts, afters, received(0.0), trainable=(1,))
    assert report.trainable == (1,)
    _, report = adjusted(starts, afters, received(0.0))
    assert report.trainable is None


@pytest.mark.parametrize(("place", "complaint"), [(2, "2 arrays"), (0, "int64")])
def test_a_trainable_place_must_be_a_floating_array(place: int, complaint: str) -> None:
    starts, afters = [COUNTER[0], noise((4,), 1)], [COUNTER[1], noise((4,), 2)]
    with pytest.raises(ValueError, match=f"trainable names array {place}.*{complaint}"):
        adjust_reply(starts, afters, received(0.3), "cpu", (place,))


@pytest.mark.parametrize("bits", [None, b"", b"\0" * 3, "text", [1, 0]], ids=repr)
def test_consensus_bits_of_another_model_are_an_error(bits: object) -> None:
    request = received(0.3, {0: (np.ones(16, np.bool_), 1.5)}).request
    with pytest.raises(ValueError, match="consensus sets take 2 bytes"):
        adjust_reply([noise((16,), 1)], [noise((16,), 2)], ReceivedRequest(request, bits), "cpu")


def test_a_factor_for_an_array_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="rescales array 3, but the model has 1 arrays"):
        adjust_reply(
            [noise((8,), 1)],
            [noise((8,), 2)],
            received(0.3, {3: (np.ones(8, np.bool_), 1.5)}),
            "cpu",
        )


def test_the_servers_entries_are_taken_out_of_the_configuration() -> None:
    consensus = {0: (np.array([True, False]), 1.5)}
    entries = request_entries(0.25, consensus, "packed", "bfloat16")
    config = {"lr": 0.1, **entries, "name": "x", "flag": True}
    plain, request = take_request(config)
    assert plain == {"lr": 0.1, "name": "x", "flag": True}
    assert set(config) == {"lr", "name", "flag", REQUEST_KEY, CONSENSUS_KEY}
    assert request is not None
    asked = AdjustmentRequest(0.25, 2, {0: 1.5}, "packed", "bfloat16", keep_sign=False)
    assert request.request == asked
    assert request.consensus == entries[CONSENSUS_KEY]


def test_a_configuration_without_request_asks_for_nothing() -> None:
    assert take_request({"lr": 0.1}) == ({"lr": 0.1}, None)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("text", "is str, not bytes"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1]", "no JSON object"),
        (b'{"version": 2}', "version 2.*same version on server and clients"),
        (b'{"version": 1}', "lacks"),
    ],
)
def test_an_unreadable_request_is_an_error(entry: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        take_request({REQUEST_KEY: entry})


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_an_update_whose_norm_no_float32_holds_goes_to_the_server_as_trained(
    upload: Any,
) -> None:
    start, end = [np.zeros(4, np.float32)], [np.full(4, 1e30, np.float32)]
    request = AdjustmentRequest(0.25, upload=upload)
    sent, report = adjust_reply(start, end, ReceivedRequest(request, None), "cpu")
    assert report is None
    assert sent[0] is end[0]
